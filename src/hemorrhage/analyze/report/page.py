"""The page: one file that opens from disk, with everything it shows inside it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hemorrhage.analyze.axes import AXES, failure, sweeps
from hemorrhage.analyze.budget import DAMAGE_KINDS
from hemorrhage.analyze.curves.definitions import NAMES
from hemorrhage.analyze.curves.entries import CurveEntry, curves_of
from hemorrhage.analyze.curves.thresholds import DESCRIBED
from hemorrhage.analyze.inputs import BASE, Inputs, model_name
from hemorrhage.analyze.report import card, figures, findings
from hemorrhage.analyze.report import decoding as decoding_page
from hemorrhage.analyze.report import doctor as examination
from hemorrhage.analyze.report import mitigations as mitigation_report
from hemorrhage.analyze.report.layer_figures import MAPS, layer_maps, profiles, told
from hemorrhage.analyze.rows.missing import missing_parts
from hemorrhage.analyze.rows.tables import Estimate, Numbers
from hemorrhage.analyze.rows.tasks import ALL_TASKS
from hemorrhage.analyze.study import Study
from hemorrhage.analyze.verdicts.flags import Flag
from hemorrhage.analyze.verdicts.shipping import lossless, pick
from hemorrhage.compress.info import FAMILY_TITLES

PAGE = Path(__file__).parent / "templates"
"""The page: report.html.j2 holds it together, each section is a file."""

PALETTES = {
    "light": {
        "ink": "#1c2024",
        "muted": "#6b727a",
        "grid": "#dfe2e6",
        "surface": "#ffffff",
        "band": "#f3f4f6",
        "series": ["#0067a5", "#c8500a", "#00805c", "#9b2c74", "#7a6200", "#5552c9"],
    },
    "dark": {
        "ink": "#e6e8ea",
        "muted": "#9aa2ab",
        "grid": "#363c43",
        "surface": "#1b1f24",
        "band": "#20252b",
        "series": ["#5cb3ef", "#ff8f52", "#3fcf9f", "#e58bc2", "#dcc04a", "#a6a4ff"],
    },
}
"""Colours that stay apart for the colour-blind (after Okabe and Ito), with a contrast of at least 4.5 to 1 in
light and dark; every series has a symbol of its own besides."""


def render(study: Study) -> str:
    """The whole page as HTML."""
    inputs, rows, numbers, corpora = study.inputs, study.rows, study.numbers, study.corpora
    thresholds, verdicts, spec = study.thresholds, study.verdicts, study.spec
    curves = sweeps(inputs)
    families = [
        {
            "key": family,
            "name": findings.family_name(family),
            **findings.advice([one for one in verdicts if one.variant.family == family]),
            "doubling": findings.doubling(
                thresholds,
                [curve for curve in curves if curve.family == family],
                corpora[0] if corpora else "",
            ),
        }
        for family in findings.families(inputs)
    ]
    total, failed = findings.counts(inputs)
    charts = _charts(inputs)
    maps = _maps(inputs, rows, numbers, corpora)
    recoveries = {
        f"recovery|{against}|{corpus}": mitigation_report.chart(study.trials, inputs, thresholds, corpus, against)
        for against in mitigation_report.AGAINST
        for corpus in corpora
    }
    inside = profiles(rows, [name for name in inputs.variants if name != BASE])
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            title=model_name(inputs.base),
            note=inputs.base.get("note") or "",
            base=_base_facts(inputs, numbers, corpora),
            total=total,
            failed=failed,
            families=families,
            charts=charts,
            ship=findings.advice(verdicts),
            quantized_before=findings.quantized_before(lossless(inputs), pick(verdicts)),
            verdicts=findings.verdict_rows(verdicts, spec.budget),
            limits=[(DAMAGE_KINDS[kind].name, findings.amount(kind, limit)) for kind, limit in spec.budget.items()],
            budget=findings.budget_words(spec.budget),
            fronts={corpus: _front_rows(entries) for corpus, entries in study.recommended["front"].items()},
            corpora=corpora,
            blocks=study.blocks,
            confidence=f"{100 * spec.confidence:g}",
            spec=spec,
            thresholds={corpus: _threshold_rows(thresholds, corpus) for corpus in corpora},
            threshold_names=list(NAMES.values()),
            claims=_claim_rows(study.claims),
            linear_below=figures.LINEAR_BELOW,
            table=_table(inputs, numbers, corpora, study.flags),
            column_groups=COLUMN_GROUPS,
            buckets=BUCKETS,
            flags=study.flags,
            examined=study.examined,
            diagnoses=study.examined.diagnoses,
            predictions=examination.predicted(study.examined),
            errors=examination.errors(study.examined),
            noise=findings.noise(inputs, numbers, corpora),
            detectable=findings.detectable(inputs, numbers, corpora),
            tasks=findings.tasks(rows, study.suites),
            costs=findings.costs(inputs, numbers),
            cards=_cards(inputs, card.Study(rows, study.provenance, study.recommended)),
            mitigation={
                "rows": {
                    corpus: mitigation_report.rows(study.trials, inputs, thresholds, corpus) for corpus in corpora
                },
                "against": mitigation_report.against(recoveries),
                "calibration": mitigation_report.calibration(rows, inputs, numbers),
                "to_add": mitigation_report.to_add(study.trials),
            },
            maps={key.partition("|")[0] for key in maps},
            layer_maps=[(key, shape.name) for key, shape in MAPS.items() if f"layers|{key}" in maps],
            profiled=[key.partition("|")[2] for key in inside if key.startswith("cascade|")],
            map_height=80 + 15 * len(inputs.variants),
            failures=findings.failures(inputs),
            missing=missing_parts(inputs),
            protocols=_protocols(rows),
            provenance=study.provenance,
            palettes=PALETTES,
            figures={
                **_figures(inputs, numbers, thresholds, charts, corpora, study.recommended),
                **maps,
                **inside,
                **recoveries,
                **decoding_page.figures(numbers, study.decoded),
                **examination.figures(study.examined, corpora),
            },
            scales=_scales(numbers),
            corpus_options=[(corpus, corpus) for corpus in corpora],
            **decoding_page.section(inputs, numbers, study.decoded),
            rows=_columns(rows),
            plotly=plotly(),
        )
    )


def environment() -> Environment:
    """What renders the templates."""
    made = Environment(
        loader=FileSystemLoader(PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["json"] = _json
    return made


def plotly() -> Markup:
    """plotly.js."""
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs())


def _json(value: Any) -> Markup:
    """JSON that may stand inside a script element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))  # no tag can open


def _base_facts(inputs: Inputs, numbers: Numbers, corpora: list[str]) -> dict[str, Any]:
    perplexities = []
    for corpus in corpora:
        found = numbers.get(BASE, "perplexity", corpus)
        if found:
            perplexities.append({"corpus": corpus, "value": f"{found.value:.2f}", "interval": _interval(found, 2)})
    parameters = inputs.base["parameters"]
    accuracy = numbers.get(BASE, "mean_accuracy", ALL_TASKS)
    chance = numbers.get(BASE, "chance", ALL_TASKS)
    return {
        "parameters": f"{parameters / 1e6:.1f} M" if parameters >= 1e6 else f"{parameters / 1e3:.0f} k",
        "megabytes": f"{inputs.base['disk_bytes'] / 1e6:.1f}",
        "bits": f"{inputs.base['effective_bits']:.1f}",
        "perplexities": perplexities,
        "accuracy": f"{100 * accuracy.value:.0f}\u00a0%" if accuracy else "",
        "chance": f"{100 * chance.value:.0f}\u00a0%" if chance else "",
    }


def _interval(found: Estimate, digits: int) -> str:
    return f"{found.low:.{digits}f} to {found.high:.{digits}f}"


def _scales(numbers: Numbers) -> dict[str, str]:
    names = {"factor": "Perplexity", "kl": "KL", "top1": "Top-1 agreement", "accuracy": "Task accuracy"}
    return {scale: name for scale, name in names.items() if numbers.datasets(figures.METRICS[scale])}


def _cards(inputs: Inputs, study: card.Study) -> dict[str, str]:
    """Model card of each variant that was made: first the recommended one, or the one that comes nearest."""
    overall = study.recommendation["overall"]
    names = [name for name, variant in inputs.variants.items() if name != BASE and not variant.failure]
    names.sort(key=lambda name: name != (overall["variant"] or overall["nearest"]))
    identities = {Path(identity).parent.name: identity for identity in inputs.directories["checkpoints"]}
    base = dict(inputs.base.get("model") or {})
    return {name: card.written(name, inputs.variants[name].manifest, identities[name], base, study) for name in names}


def _charts(inputs: Inputs) -> list[dict[str, Any]]:
    """A damage chart for each family and each axis in it, with the curves that it shows."""
    curves = sweeps(inputs)
    found = []
    for family in findings.families(inputs):
        axes = list(dict.fromkeys(curve.axis for curve in curves if curve.family == family))
        for axis in axes:
            name = findings.family_name(family)
            found.append(
                {
                    "key": f"{family}-{axis}",
                    "name": name if len(axes) == 1 else f"{name}: {AXES.get(axis, axis)}",
                    "curves": [curve for curve in curves if (curve.family, curve.axis) == (family, axis)],
                }
            )
    return found


def _figures(
    inputs: Inputs,
    numbers: Numbers,
    thresholds: Sequence[CurveEntry],
    charts: Sequence[dict[str, Any]],
    corpora: list[str],
    recommended: dict[str, Any],
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for corpus in corpora:
        for chart in charts:
            for scale in _scales(numbers):
                found[f"{chart['key']}|{scale}|{corpus}"] = figures.damage(
                    inputs, numbers, chart["curves"], thresholds, scale, corpus
                )
        found[f"tradeoff|{corpus}"] = figures.tradeoff(
            inputs, numbers, corpus, recommended["front"].get(corpus, []), FAMILY_TITLES
        )
    return found


def _front_rows(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the table of the front: what is on it in at least one of twenty resamples."""
    return [
        {
            **entry,
            "family": findings.family_name(entry["family"]),
            "size": f"{100 * entry['size']:.1f}",
            "megabytes": f"{entry['bytes'] / 1e6:.1f}",
            "kl": f"{entry['kl']:.2g}",
            "interval": "" if entry["low"] is None else f"{entry['low']:.2g} to {entry['high']:.2g}",
            "often": f"{100 * entry['probability']:.0f}",
            "probability": entry["probability"],
        }
        for entry in entries
        if entry["probability"] >= 0.05 and entry["size"] < 1
    ]


def _maps(inputs: Inputs, rows: pd.DataFrame, numbers: Numbers, corpora: list[str]) -> dict[str, Any]:
    """The heat maps that there are numbers for: ``layers|<metric>``, ``buckets|<kind>|<corpus>`` and ``tasks``."""
    found: dict[str, Any] = {}
    altered = [name for name in inputs.variants if name != BASE]
    names = rows.loc[rows["status"] == "ok", "metric"].drop_duplicates()
    found |= layer_maps(rows, altered)
    for kind in BUCKETS:
        labels = list(names.str.extract(rf"^kl_mean\{{{kind}=([^}}]+)\}}", expand=False).dropna())
        for corpus in corpora:
            cells = {
                name: {label: numbers.get(name, f"kl_mean{{{kind}={label}}}", corpus) for label in labels}
                for name in altered
            }
            title = f"mean KL by {BUCKETS[kind].lower()}"
            found[f"buckets|{kind}|{corpus}"] = figures.heat(cells, labels, title, told, figures.bent)
    tasks = numbers.datasets("accuracy_change")
    if tasks:
        cells = {name: {task: numbers.get(name, "accuracy_change", task) for task in tasks} for name in altered}
        found["tasks"] = figures.heat(cells, tasks, "change of accuracy", _tested, lambda one: one, signed=True)
    return found


BUCKETS = {"position": "Position in the window", "frequency": "Occurrences of the target"}
"""What KL is split by."""


def _tested(found: Estimate) -> str:
    value, low, high = (100 * number for number in found[:3])
    return f"{value:+.1f} points ({low:+.1f} to {high:+.1f}), p {_probability(found.p)}, q {_probability(found.q)}"


def _probability(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.2g}"


def _threshold_rows(thresholds: Sequence[CurveEntry], corpus: str) -> list[dict[str, Any]]:
    """Rows of the table of thresholds on one corpus: curves that have more than one point."""
    return [
        {
            "name": entry.name,
            "axis": entry.unit,
            "points": entry.points,
            "cells": [{"text": findings.where(entry, kind), "note": findings.why(entry, kind)} for kind in NAMES],
            "shape": _shape(entry),
            "missing": ", ".join(entry.missing),
            "defects": "; ".join(f"{', '.join(defect.cells)}: {defect.rule}" for defect in entry.defects),
            "next": ", ".join(f"{value:g}" for value in entry.next.values) if entry.next else "",
            "next_why": entry.next.reason if entry.next else "",
        }
        for entry in curves_of(thresholds, corpus)
    ]


def _shape(entry: CurveEntry) -> str:
    """The shape that describes a curve's log-perplexity ratio best."""
    fit = entry.fits.get("ln_perplexity_ratio")
    return DESCRIBED[fit.shape] if fit else ""


def _claim_rows(claims: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Claims as the page shows them."""
    return [{**claim, "number": _claimed(claim)} for claim in claims]


def _claimed(claim: dict[str, Any]) -> str:
    if claim["estimate"] is None:
        return ""
    low, high = ("" if claim[end] is None else f"{claim[end]:.3g}" for end in ("low", "high"))
    limits = f" ({low} to {high})" if low and high else ""
    return f"{claim['unit']}: {claim['estimate']:.3g}{limits}"


# The table of all variants.


@dataclass(frozen=True)
class Column:
    """A column of numbers: an estimate of ``metric`` on ``of`` (a data set, or CORPUS for the one that was chosen),
    shown in ``groups``, with ``digits`` after the point, ``times`` as large. ``shows``: the estimate with its interval,
    a log ratio as a factor, the p-value above its q, or the minimum detectable effect."""

    label: str
    groups: str
    metric: str
    of: str = ""
    digits: int = 2
    times: float = 1.0
    shows: str = "estimate"


CORPUS = "the corpus"
COLUMN_GROUPS = {"main": "Main", "size": "Size", "kl": "Divergence", "text": "Likelihood", "tests": "Tests"}

COLUMNS = (
    Column("Effective bits", "main size", "effective_bits"),
    Column("… of the layers", "size", "layer_bits"),
    Column("Size, % of base", "main size", "size_ratio", "", 1, 100),
    Column("On disk, MB", "size", "disk_bytes", "", 1, 1e-6),
    Column("Perplexity", "main text", "perplexity", CORPUS),
    Column("Perplexity per word", "text", "word_perplexity", CORPUS),
    Column("Bits per token", "text", "bits_per_token", CORPUS, 3),
    Column("Bits per byte", "text", "bits_per_byte", CORPUS, 3),
    Column("Times base", "main text tests", "ln_perplexity_ratio", CORPUS, shows="factor"),
    Column("p of times base", "main tests", "ln_perplexity_ratio", CORPUS, shows="p"),
    Column("Detectable, %", "tests", "ln_perplexity_ratio", CORPUS, 2, 100, shows="mde"),
    Column("Correlation of ln p", "text", "ln_probability_correlation", CORPUS, 4),
    Column("Entropy gap", "text", "entropy_gap", CORPUS, 3),
    Column("Calibration error, %", "text", "calibration_error", CORPUS, 1, 100),
    Column("Change of it, points", "text", "calibration_error_change", CORPUS, 1, 100),
    Column("Brier of top-1", "text", "top1_brier", CORPUS, 3),
    Column("KL mean", "main kl tests", "kl_mean", CORPUS, 4),
    Column("p of KL", "tests", "kl_mean", CORPUS, shows="p"),
    Column("KL median", "kl", "kl_median", CORPUS, 4),
    Column("KL p99", "kl", "kl_p99", CORPUS, 3),
    Column("KL max", "kl", "kl_max", CORPUS, 2),
    Column("Same top-1, %", "main kl", "same_top1", CORPUS, 1, 100),
    Column("Top-10 overlap, %", "kl", "top10_overlap", CORPUS, 1, 100),
    Column("Δp mean, %", "kl", "probability_change_mean", CORPUS, 2, 100),
    Column("Δp RMS, %", "kl", "probability_change_rms", CORPUS, 2, 100),
    Column("Δp p1, %", "kl", "probability_change_p1", CORPUS, 1, 100),
    Column("Δp p99, %", "kl", "probability_change_p99", CORPUS, 1, 100),
    Column("Accuracy, %", "main", "mean_accuracy", ALL_TASKS, 1, 100),
    Column("Change, points", "main tests", "mean_accuracy_change", ALL_TASKS, 1, 100),
    Column("p of change", "main tests", "mean_accuracy_change", ALL_TASKS, shows="p"),
)


def _table(inputs: Inputs, numbers: Numbers, corpora: list[str], flags: Sequence[Flag]) -> dict[str, Any]:
    """Headings with their groups, and for each corpus a list of rows of cells ``{text, note, sort}``."""
    bodies = {}
    for corpus in corpora or [""]:
        bodies[corpus] = [_table_row(inputs, numbers, name, corpus, flags) for name in inputs.variants]
    columns = [("Variant", ""), ("Family", ""), ("Setting", "")] + [(one.label, one.groups) for one in COLUMNS]
    return {"columns": columns, "bodies": bodies}


def _table_row(inputs: Inputs, numbers: Numbers, name: str, corpus: str, flags: Sequence[Flag]) -> dict[str, Any]:
    variant = inputs.variants[name]
    family = "Base" if name == BASE else findings.family_name(variant.family)
    reason = failure(inputs, variant) or ""
    setting = "failed, see below" if reason else variant.label
    cells = [
        {"text": family, "note": "", "sort": family},
        {"text": setting, "note": _about(variant.manifest), "sort": setting},
    ]
    for column in COLUMNS:
        found = numbers.get(name, column.metric, corpus if column.of == CORPUS else column.of)
        cells.append(_cell(column, found))
    rules = ", ".join(dict.fromkeys(flag.rule for flag in flags if flag.variant == name))
    return {"name": name, "failure": reason, "flags": rules, "cells": cells}


def _cell(column: Column, found: Estimate | None) -> dict[str, Any]:
    if found is not None and column.shows == "p" and not math.isnan(found.p):
        return {"text": _probability(found.p), "note": f"q {_probability(found.q)}", "sort": found.p}
    if found is not None and column.shows == "mde" and not math.isnan(found.mde):
        return {"text": _fixed(column.times * found.mde, column.digits), "note": "", "sort": found.mde}
    if found is None or column.shows in ("p", "mde"):
        return {"text": "–", "note": "", "sort": None}
    if column.shows == "factor":
        value, low, high = (figures.factor(number) for number in found[:3])
        return {"text": value, "note": f"{low} to {high}", "sort": found.value}
    value, low, high = (_fixed(column.times * number, column.digits) for number in found[:3])
    return {"text": value, "note": "" if math.isnan(found.low) else f"{low} to {high}", "sort": found.value}


def _about(manifest: Mapping[str, Any]) -> str:
    """What a reader has to know about a variant beside its setting: which statistics, and what is theoretical."""
    statistics, theoretical = manifest.get("statistics"), manifest.get("theoretical")
    parts = [statistics and f"statistics: {statistics}", theoretical and f"theoretical ({theoretical})"]
    return "; ".join(part for part in parts if part)


def _fixed(value: float, digits: int) -> str:
    if math.isnan(value):
        return "–"
    if abs(value) >= 1e6:
        return f"{value:.3g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{1 if abs(value) >= 100 else digits}f}" if value else "0"


# What is underneath.


def _protocols(rows: pd.DataFrame) -> list[dict[str, str]]:
    """Data set, protocol and hash of every text and task."""
    used = rows[(rows["data"] != "") & ~rows["dataset"].isin(findings.SUITES)]
    unique = used[["dataset", "protocol", "data"]].drop_duplicates()
    return [dict(zip(("dataset", "protocol", "data"), row, strict=True)) for row in unique.itertuples(index=False)]


def _columns(rows: pd.DataFrame) -> dict[str, Any]:
    """Rows for the page's CSV, but those of layers and buckets: columns of numbers, or of places in a list of texts."""
    rows = rows[~rows["metric"].str.contains(r"\{(?:layer|head|position|frequency)=")]
    found: dict[str, Any] = {}
    for name in rows.columns:
        column = rows[name]
        if column.dtype == object or pd.api.types.is_string_dtype(column):
            codes, texts = pd.factorize(column)
            found[name] = {"texts": list(texts), "codes": codes.tolist()}
        else:
            found[name] = {"numbers": [None if pd.isna(value) else _number(value) for value in column]}
    return found


def _number(value: Any) -> float | int:
    return int(value) if float(value).is_integer() else float(f"{float(value):.8g}")
