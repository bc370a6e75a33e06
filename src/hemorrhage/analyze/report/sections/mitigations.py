"""Mitigations: a table, recovery against the relative severity, and which sweeps to add."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd

from hemorrhage.analyze.axes import FEWER_IS_WORSE, position
from hemorrhage.analyze.curves.entries import CurveEntry
from hemorrhage.analyze.inputs import BASE, Inputs, Variant
from hemorrhage.analyze.report.charts.plotly import Figure
from hemorrhage.analyze.report.charts.recovery import Point, recoveries
from hemorrhage.analyze.report.charts.scales import factor
from hemorrhage.analyze.rows.corrections import DECODING
from hemorrhage.analyze.rows.mitigations import Outcome, Recovery, TrialSummary
from hemorrhage.analyze.rows.tables import Estimate, Numbers
from hemorrhage.analyze.study import Study
from hemorrhage.compress.info import GRADIENTS, SCALES, TRAINING

AXES = {"severity": "Severity relative to the knee", "damage": "Damage of the plain method"}
"""Key of an x axis of the chart of recoveries -> what people call it."""

X_TITLES = {
    "severity": "severity of the plain method relative to the knee (1: at the knee)",
    "damage": "damage of the plain method",
}

MEASURES = {"kl_mean": "KL", "ln_perplexity_ratio": "perplexity", "distance": "distance", "flips": "flips", "kl": "KL"}
SHOWN = ("kl_mean", "distance", "ln_perplexity_ratio", "flips", "generation_kl", "generation_distance")
"""Metrics whose recovery the table shows, the first of them first."""

CORRECTIONS = {"none": "uncorrected", "top_p": "plain nucleus"}
"""Correction of decoding -> what the table calls it, where that differs."""

NO_THRESHOLD = "no knee and no doubling point among the measured points"


class Example(NamedTuple):
    """A method that would try an arm: its own example settings, the plain method, and the variant that it alters."""

    method: str
    settings: Mapping[str, float | int | list[float]]
    plain: str = ""
    on: str = ""


EXAMPLES = {
    GRADIENTS: Example("wanda_plus", {"sparsity": [0.5]}, plain="wanda"),
    SCALES: Example("awq", {"bits": [4], "group_size": 64}, plain="rtn"),
    TRAINING: Example("recovery", {"steps": [50]}, on="<a pruned variant>"),
}
"""Arm -> the sweep that would try it. A test holds the settings to those that the methods themselves give."""


@dataclass(frozen=True)
class Row:
    """A mitigation and its plain method; with ``missing``, why there is nothing to compare, all after it is empty."""

    arm: str
    treatment: str
    plain: str
    missing: str = ""
    severity: str = ""
    damage: str = ""
    recovery: str = ""
    control: str = ""
    not_neutral: str = ""
    verdict: str = ""
    others: str = ""


@dataclass(frozen=True)
class CalibrationRow:
    """A correction of decoding and what it leaves, in absolute numbers."""

    variant: str
    correction: str
    kl: str
    distance: str
    error: str
    greedy: str
    generation_kl: str
    generation_nll: str


@dataclass(frozen=True)
class Proposal:
    """Lines of params.yaml that would answer an open question."""

    reason: str
    lines: list[str]


@dataclass(frozen=True)
class Mitigations:
    """The section: corpus -> rows; ``axes``: what the chart can be drawn against."""

    rows: dict[str, list[Row]]
    axes: dict[str, str]
    calibration: list[CalibrationRow]
    proposals: list[Proposal]
    figures: dict[str, Figure] = field(repr=False)


def section(study: Study) -> Mitigations:
    """Return the section of a study, with ``recovery|<axis>|<corpus>`` drawn."""
    charts = {
        (axis, corpus): recovery_chart(study.trials, study.thresholds, corpus, axis)
        for axis in AXES
        for corpus in study.corpora
    }
    drawn = {axis for (axis, _), chart in charts.items() if chart["data"]}
    return Mitigations(
        rows={corpus: rows(study.trials, study.thresholds, corpus) for corpus in study.corpora},
        axes={axis: name for axis, name in AXES.items() if axis in drawn or axis == "damage"},
        calibration=calibration_rows(study.rows, study.inputs, study.numbers),
        proposals=proposals(study.trials),
        figures={f"recovery|{axis}|{corpus}": chart for (axis, corpus), chart in charts.items()},
    )


def rows(trials: Sequence[TrialSummary], entries: Sequence[CurveEntry], corpus: str) -> list[Row]:
    """Return the table of mitigations on one corpus: a row per mitigation and plain method."""
    table = []
    for trial in trials:
        outcomes = _outcomes(trial, corpus)
        if outcomes:
            table.append(_row(trial, outcomes, entries, corpus))
        elif trial.missing:
            table.append(Row(trial.arm, trial.treatment, trial.plain.name, missing=trial.missing))
    return table


def _row(trial: TrialSummary, outcomes: Sequence[Outcome], entries: Sequence[CurveEntry], corpus: str) -> Row:
    main = outcomes[0]
    severity, threshold = relative_severity(trial.plain, entries, corpus)
    return Row(
        arm=trial.arm,
        treatment=trial.treatment,
        plain=trial.plain.name,
        severity="–" if math.isnan(severity) else f"{severity:.2f} × that of the {threshold}",
        damage=f"{_amount(main.metric, main.plain)} → {_amount(main.metric, main.treated)}",
        recovery=_written(main.recovery),
        control=_written(main.control) if main.has_control else "no control in this run",
        not_neutral=main.not_neutral,
        verdict=main.verdict,
        others="; ".join(f"{_measure(each.metric)}: {_written(each.recovery)}" for each in outcomes[1:]),
    )


def relative_severity(variant: Variant, entries: Sequence[CurveEntry], corpus: str) -> tuple[float, str]:
    """Return the distance of a variant from the undamaged model over that of its curve's threshold, and which one.

    1 is at the threshold, above 1 beyond it: the knee, else the doubling point of the perplexity; NaN and the reason
    where the curve has neither.
    """
    for entry in entries:
        curve = (entry.sweep, entry.identity, entry.on, entry.corpus)
        if curve != (variant.sweep, variant.identity, variant.on, corpus):
            continue
        for definition, name in (("knee", "knee"), ("two_fold", "doubling point")):
            threshold = entry.thresholds[definition]
            if threshold.is_located and threshold.estimate != entry.base:
                sign = -1.0 if variant.axis in FEWER_IS_WORSE else 1.0
                full, distance = (sign * (x - entry.base) for x in (threshold.estimate, position(variant)))
                return distance / full, name
    return math.nan, NO_THRESHOLD


def _outcomes(trial: TrialSummary, corpus: str) -> list[Outcome]:
    """Return the outcomes on a corpus and on tasks, in the table's order."""
    chosen = [outcome for outcome in trial.outcomes if outcome.dataset == corpus or outcome.metric == "flips"]
    if all(outcome.metric == "flips" for outcome in chosen):
        return []
    return sorted(chosen, key=lambda outcome: SHOWN.index(outcome.metric))


def _measure(metric: str) -> str:
    name = MEASURES[metric.removeprefix("generation_")]
    return f"{name} of generated texts" if metric.startswith("generation_") else name


def _amount(metric: str, damage: float) -> str:
    if metric == "ln_perplexity_ratio":
        return factor(damage)
    unit = " nats" if "kl" in metric else ""
    return f"{damage:.3g}{unit}"


def _written(recovery: Recovery | None) -> str:
    if recovery is None:
        return "no damage"
    value, low, high = (f"{100 * number:.0f}" for number in recovery)
    return f"{value}\u00a0% ({low} to {high})"


def calibration_rows(rows: pd.DataFrame, inputs: Inputs, numbers: Numbers) -> list[CalibrationRow]:
    """Return the table of corrections of decoding, a row per variant and correction."""
    table = []
    for name, output in inputs.corrections.items():
        if output.failure is not None:
            continue
        metrics = rows.loc[rows["variant"] == name, "metric"]
        labels = metrics.str.extract(r"^calibration_error\{correction=([^,}]+)\}", expand=False).dropna()
        corpus = output.manifest["corpus"]
        table += [_calibration_row(numbers, name, corpus, correction) for correction in labels.unique()]
    return table


def _calibration_row(numbers: Numbers, variant: str, corpus: str, correction: str) -> CalibrationRow:
    def number(metric: str, digits: int, times: float = 1.0) -> str:
        return _number(numbers.get(variant, f"{metric}{{correction={correction}}}", corpus), digits, times)

    return CalibrationRow(
        variant=variant,
        correction=CORRECTIONS.get(correction, correction),
        kl=number("kl_mean", 3),
        distance=number("distance", 3),
        error=number("calibration_error", 1, 100),
        greedy=number("greedy_accuracy", 1, 100),
        generation_kl=number("generation_kl", 3),
        generation_nll=number("generation_base_nll", 2),
    )


def _number(estimate: Estimate | None, digits: int, times: float) -> str:
    if estimate is None:
        return "–"
    value, low, high = (f"{times * number:.{digits}f}" for number in estimate[:3])
    return f"{value} ({low} to {high})"


def proposals(trials: Sequence[TrialSummary]) -> list[Proposal]:
    """Propose sweeps for arms that were not tried, and controls for mitigations that were tried without one."""
    tried = {trial.arm for trial in trials}
    proposed = [
        Proposal(f"{arm}: not tried", example_lines(example)) for arm, example in EXAMPLES.items() if arm not in tried
    ]
    if DECODING not in tried:
        proposed.append(Proposal(f"{DECODING}: not tried", ["mitigate: {variants: [<a variant>]}"]))
    controls = dict.fromkeys(
        _control_line(trial.treated)
        for trial in trials
        # What has no information to shuffle, such as scales per token, has no control.
        if trial.control is None and trial.treated.manifest.get("can_be_shuffled") and trial.arm != DECODING
    )
    return proposed + ([Proposal("Tried without a control", list(controls))] if controls else [])


def example_lines(example: Example) -> list[str]:
    """Return the lines of params.yaml of a method, its control, and the plain method."""
    altered = f"on: [{example.on}], " if example.on else ""
    settings = ", ".join(f"{key}: {value}" for key, value in example.settings.items())
    lines = [
        f"{example.method}: {{method: {example.method}, {altered}{settings}}}",
        f"{example.method}_shuffled: {{method: {example.method}, {altered}{settings}, shuffled: true}}",
    ]
    plain = f"with {example.plain}: {{method: {example.plain}, {settings}}}"
    return [*lines, plain] if example.plain else lines


def _control_line(variant: Variant) -> str:
    """Return the line of params.yaml that makes the control of a variant.

    JSON's scalars are YAML's. A list is left out: it would make variants of a tuple.
    """
    altered = {} if variant.on == BASE else {"on": variant.on}
    content = {"method": variant.method, **altered, **variant.settings, "shuffled": True}
    items = ", ".join(f"{key}: {json.dumps(value)}" for key, value in content.items() if not isinstance(value, list))
    return f"{variant.name.replace('-', '_').replace('.', '_')}_shuffled: {{{items}}}"


def recovery_chart(trials: Sequence[TrialSummary], entries: Sequence[CurveEntry], corpus: str, axis: str) -> Figure:
    """Draw recovery against the relative severity or the damage of the plain method; controls are open symbols."""
    groups: dict[tuple[str, bool], list[Point]] = {}
    for trial in trials:
        outcomes = _outcomes(trial, corpus)
        if not outcomes:
            continue
        x = outcomes[0].plain if axis == "damage" else relative_severity(trial.plain, entries, corpus)[0]
        for control, recovery in ((False, outcomes[0].recovery), (True, outcomes[0].control)):
            if recovery is not None and not math.isnan(x):
                name = f"{trial.treatment}, control" if control else trial.treatment
                measure = _measure(outcomes[0].metric)
                text = f"<b>{name}</b><br>on {trial.plain.name}: recovers {_written(recovery)} of {measure}"
                groups.setdefault((trial.arm, control), []).append(Point(x, recovery, text))
    return recoveries(groups, X_TITLES[axis], knee=axis == "severity")
