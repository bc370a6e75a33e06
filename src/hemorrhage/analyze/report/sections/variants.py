"""The table of all variants."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hemorrhage.analyze.axes import failure
from hemorrhage.analyze.inputs import BASE, Inputs
from hemorrhage.analyze.manifests import CheckpointManifest
from hemorrhage.analyze.protocol import of_engine
from hemorrhage.analyze.report.charts.scales import factor
from hemorrhage.analyze.report.sections.families import family_name
from hemorrhage.analyze.report.sections.wording import in_plain_words
from hemorrhage.analyze.rows.tables import Estimate, Numbers
from hemorrhage.analyze.rows.tasks import ALL_TASKS
from hemorrhage.analyze.study import Study
from hemorrhage.analyze.verdicts.flags import Flag


@dataclass(frozen=True)
class Column:
    """A column of numbers: an estimate of ``metric`` on a data set, or on CORPUS for the one that was chosen.

    It is shown in ``groups``, with ``digits`` after the point, ``times`` as large. ``shows``: the estimate with its
    interval, a log ratio as a factor, the p-value above its q, or the minimum detectable effect.
    """

    label: str
    groups: str
    metric: str
    dataset: str = ""
    digits: int = 2
    times: float = 1.0
    shows: str = "estimate"


CORPUS = "the corpus"
COLUMN_GROUPS = {"main": "Main", "size": "Size", "kl": "Divergence", "text": "Likelihood", "tests": "Tests"}

COLUMNS = (
    Column("Bits", "main size", "effective_bits"),
    Column("Bits of the layers", "size", "layer_bits"),
    Column("Stored bits, % of base", "size", "size_ratio", "", 1, 100),
    Column("MB", "main size", "disk_bytes", "", 1, 1e-6),
    Column("Perplexity", "text", "perplexity", CORPUS),
    Column("Perplexity per word", "text", "word_perplexity", CORPUS),
    Column("Bits per token", "text", "bits_per_token", CORPUS, 3),
    Column("Bits per byte", "text", "bits_per_byte", CORPUS, 3),
    Column("PPL ratio", "main text tests", "ln_perplexity_ratio", CORPUS, shows="factor"),
    Column("p of PPL ratio", "tests", "ln_perplexity_ratio", CORPUS, shows="p"),
    Column("Detectable, %", "tests", "ln_perplexity_ratio", CORPUS, 2, 100, shows="mde"),
    Column("Correlation of ln p", "text", "ln_probability_correlation", CORPUS, 4),
    Column("Entropy gap", "text", "entropy_gap", CORPUS, 3),
    Column("Calibration error, %", "text", "calibration_error", CORPUS, 1, 100),
    Column("Calibration error change, points", "text", "calibration_error_change", CORPUS, 1, 100),
    Column("Brier of top-1", "text", "top1_brier", CORPUS, 3),
    Column("KL", "main kl tests", "kl_mean", CORPUS, 4),
    Column("KL median", "kl", "kl_median", CORPUS, 4),
    Column("KL p99", "main kl", "kl_p99", CORPUS, 3),
    Column("KL max", "kl", "kl_max", CORPUS, 2),
    Column("Same top, %", "main kl", "same_top1", CORPUS, 1, 100),
    Column("Top-10 overlap, %", "kl", "top10_overlap", CORPUS, 1, 100),
    Column("Δp mean, %", "kl", "probability_change_mean", CORPUS, 2, 100),
    Column("Δp RMS, %", "kl", "probability_change_rms", CORPUS, 2, 100),
    Column("Δp p1, %", "kl", "probability_change_p1", CORPUS, 1, 100),
    Column("Δp p99, %", "kl", "probability_change_p99", CORPUS, 1, 100),
    Column("Flips, %", "main", "mean_flips", ALL_TASKS, 1, 100),
    Column("Accuracy, %", "main", "mean_accuracy", ALL_TASKS, 1, 100),
    Column("Change, points", "tests", "mean_accuracy_change", ALL_TASKS, 1, 100),
    Column("p of change", "tests", "mean_accuracy_change", ALL_TASKS, shows="p"),
)


@dataclass(frozen=True)
class Cell:
    """A text with a note below it, and what the column is sorted by; None: last."""

    text: str
    note: str = ""
    sort: float | str | None = None


@dataclass(frozen=True)
class Row:
    """A variant: why it failed, the rules that flag it, a cell per column, and how it was altered in plain words."""

    name: str
    failure: str
    flags: str
    cells: list[Cell]
    words: str = ""


@dataclass(frozen=True)
class Variants:
    """The table: headings with their groups, and corpus -> rows."""

    columns: list[tuple[str, str]]
    rows: dict[str, list[Row]]
    column_groups: dict[str, str]


def section(study: Study) -> Variants:
    """Return the section of a study."""
    engines = {verdict.variant.name: engine_names(verdict.size.engine) for verdict in study.verdicts}
    return Variants(
        columns=[
            ("Variant", ""),
            ("Family", "size"),
            ("Setting", "size"),
            *((each.label, each.groups) for each in COLUMNS),
            ("Tokens/s", "main"),
            ("Loads in", "main"),
        ],
        rows={
            corpus: [
                table_row(study.inputs, study.numbers, name, corpus, study.flags, engines)
                for name in study.inputs.variants
            ]
            for corpus in study.corpora or [""]
        },
        column_groups=COLUMN_GROUPS,
    )


def engine_names(loads: str) -> str:
    """Return the engines of a size's ``engine`` without versions and devices: ``vLLM, transformers``."""
    return ", ".join(re.sub(r" \S*\d.*$", "", part) for part in re.sub(r" ?\([^)]*\)", "", loads).split(", "))


def table_row(
    inputs: Inputs, numbers: Numbers, name: str, corpus: str, flags: Sequence[Flag], engines: Mapping[str, str]
) -> Row:
    """Return the row of a variant on a corpus; ``engines``: variant -> what loads it."""
    variant = inputs.variants[name]
    family = "Base" if name == BASE else family_name(variant.family)
    reason = failure(inputs, variant) or ""
    setting = "failed, see below" if reason else variant.label
    cells = [Cell(family, sort=family), Cell(setting, _note(variant.manifest), setting)]
    for column in COLUMNS:
        dataset = corpus if column.dataset == CORPUS else column.dataset
        cells.append(_cell(column, numbers.get(name, column.metric, dataset)))
    cells += [_speed(inputs, numbers, name), Cell(engines.get(name) or "–")]
    rules = ", ".join(dict.fromkeys(flag.rule for flag in flags if flag.variant == name))
    words = "" if name == BASE or reason else in_plain_words(variant)
    return Row(name, reason, rules, cells, words)


def _speed(inputs: Inputs, numbers: Numbers, name: str) -> Cell:
    """Return how fast an engine decodes; what this bench emulates has no speed."""
    speeds = [
        (numbers.get(name, of_engine("decode_tokens_per_second", engine)), engine)
        for engine, outputs in inputs.served.items()
        if name in outputs
    ]
    measured = [(speed.value, engine) for speed, engine in speeds if speed]
    if not measured:
        return Cell("–")
    value, engine = max(measured)
    return Cell(f"{value:,.0f}", engine, value)


def _cell(column: Column, estimate: Estimate | None) -> Cell:
    if estimate is None:
        return Cell("–")
    if column.shows == "p":
        p, q = probability(estimate.p), probability(estimate.q)
        return Cell("–") if math.isnan(estimate.p) else Cell(p, f"q {q}", estimate.p)
    if column.shows == "mde":
        size = _fixed(column.times * estimate.mde, column.digits)
        return Cell("–") if math.isnan(estimate.mde) else Cell(size, sort=estimate.mde)
    if column.shows == "factor":
        value, low, high = (factor(number) for number in estimate[:3])
        return Cell(value, f"{low} to {high}", estimate.value)
    value, low, high = (_fixed(column.times * number, column.digits) for number in estimate[:3])
    return Cell(value, "" if math.isnan(estimate.low) else f"{low} to {high}", estimate.value)


def _note(manifest: CheckpointManifest) -> str:
    """Say which statistics a variant was made with, and whether its gain is theoretical."""
    statistics, theoretical = manifest.get("statistics"), manifest.get("theoretical")
    notes = [f"statistics: {statistics}" if statistics else "", f"theoretical ({theoretical})" if theoretical else ""]
    return "; ".join(filter(None, notes))


def _fixed(value: float, digits: int) -> str:
    if math.isnan(value):
        return "–"
    if abs(value) >= 1e6:
        return f"{value:.3g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{1 if abs(value) >= 100 else digits}f}" if value else "0"


def probability(value: float) -> str:
    """Write a p-value or q."""
    if math.isnan(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.2g}"
