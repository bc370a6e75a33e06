"""Mitigations: a table, recovery against the relative severity, and which sweeps to add."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd
from scipy import stats

from hemorrhage.analyze.axes import FEWER_IS_WORSE, position
from hemorrhage.analyze.curves.entries import CurveEntry
from hemorrhage.analyze.inputs import BASE, Inputs, Variant
from hemorrhage.analyze.report.charts.plotly import Figure
from hemorrhage.analyze.report.charts.recovery import Point, recoveries
from hemorrhage.analyze.report.charts.scales import factor
from hemorrhage.analyze.rows.corrections import DECODING, UNCORRECTED
from hemorrhage.analyze.rows.mitigations import (
    AS_ITS_CONTROL,
    CANNOT_TELL,
    HARMS,
    LIKE_ITS_CONTROL,
    NEUTRAL,
    NOT_WORTH_IT,
    RECOVERS,
    Outcome,
    Recovery,
    TrialSummary,
)
from hemorrhage.analyze.rows.tables import Estimate, Numbers
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.study import Study
from hemorrhage.compress.info import GRADIENTS, SCALES, TRAINING

AXES = {
    "severity": "Severity relative to the knee",
    "budget": "KL relative to the budget",
    "damage": "Damage of the plain method",
}
"""Key of an x axis of the chart of recoveries -> what people call it."""

X_TITLES = {
    "severity": "severity of the plain method relative to the knee (1: at the knee)",
    "budget": "KL of the plain method relative to the budget (1: at the limit)",
    "damage": "damage of the plain method",
}

STUDY_ARMS = (GRADIENTS, SCALES, DECODING)
"""The mitigations that the study proposes."""

CHANCE = 0.95
"""Probability with which no more comparisons than so many come out as recoveries by chance where nothing helps."""

MEASURES = {"kl_mean": "KL", "ln_perplexity_ratio": "perplexity", "distance": "distance", "flips": "flips", "kl": "KL"}
SHOWN = ("kl_mean", "distance", "ln_perplexity_ratio", "flips", "generation_kl", "generation_distance")
"""Metrics whose recovery the table shows, the first of them first; what is written has a table of its own."""

WRITTEN = {"wrong_answers": ("accuracy", 100.0, 0), "divergence": ("agreement_tokens", 1.0, 1),
           "loops": ("loop_rate", 100.0, 0), "surprise": ("base_nll", 1.0, 2)}  # fmt: skip
"""Damage of texts -> the metric that the table of texts shows, what it is multiplied with, and its digits."""

CORRECTIONS = {
    "none": "uncorrected",
    "top_p": "plain nucleus",
    "base": "the base model",
    "base top_p": "the base model's nucleus",
}
"""Correction of decoding -> what the table calls it, where that differs."""

BASES = ("base", "base top_p")
BEFORE = (*BASES, "none", "top_p")
"""What stands before the corrections in the table of texts."""

NO_CONTROL = "no control in this run"

ELSEWHERE = "the study of mitigations tries it: hemorrhage params studies/mitigation"
"""Where the default study, whose time is short, leaves the answer."""

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
    needed: str = ""
    others: str = ""


@dataclass(frozen=True)
class CalibrationRow:
    """A correction of decoding and what it leaves of a corpus, in absolute numbers; ``cost``: seconds a token."""

    variant: str
    correction: str
    corpus: str
    kl: str
    distance: str
    error: str
    greedy: str
    generation_kl: str
    generation_nll: str
    cost: str


class Cell(NamedTuple):
    """A mean over texts, and the verdict on it."""

    value: str
    verdict: str = ""


@dataclass(frozen=True)
class TextRow:
    """What a variant writes under a correction: a cell for each of WRITTEN, empty where it is not measured."""

    variant: str
    dataset: str
    search: str
    correction: str
    cells: list[Cell]


class Statement(NamedTuple):
    """What the run says of one of the study's mitigations: a verdict, and the numbers that it rests on."""

    arm: str
    verdict: str
    reason: str


@dataclass(frozen=True)
class Proposal:
    """Lines of params.yaml that would answer an open question."""

    reason: str
    lines: list[str]


@dataclass(frozen=True)
class Mitigations:
    """The section: ``statements`` on the study's mitigations; corpus -> rows; ``axes``: what the chart can be drawn
    against; ``smallest``: the smallest recovery that matters, ``neutral``: within which a control is neutral, percent.
    """

    statements: list[Statement]
    rows: dict[str, list[Row]]
    axes: dict[str, str]
    calibration: list[CalibrationRow]
    texts: list[TextRow]
    smallest: str
    neutral: str
    proposals: list[Proposal]
    figures: dict[str, Figure] = field(repr=False)


def section(study: Study) -> Mitigations:
    """Return the section of a study, with ``recovery|<axis>|<corpus>`` drawn."""
    charts = {
        (axis, corpus): recovery_chart(study.trials, study.thresholds, corpus, axis, _limit(study.spec))
        for axis in AXES
        for corpus in study.corpora
    }
    drawn = {axis for (axis, _), chart in charts.items() if chart["data"]}
    return Mitigations(
        statements=[each for arm in STUDY_ARMS for each in statements(arm, study.trials, study.thresholds, study.spec)],
        rows={corpus: rows(study.trials, study.thresholds, corpus, _limit(study.spec)) for corpus in study.corpora},
        axes={axis: name for axis, name in AXES.items() if axis in drawn or axis == "damage"},
        calibration=calibration_rows(study.rows, study.inputs, study.numbers),
        texts=text_rows(study.rows, study.inputs, study.numbers, study.trials),
        smallest=f"{100 * study.spec.smallest_effect:g}",
        neutral=f"{100 * NEUTRAL:g}",
        proposals=proposals(study.trials),
        figures={f"recovery|{axis}|{corpus}": chart for (axis, corpus), chart in charts.items()},
    )


def _limit(spec: Spec) -> float:
    """Return the budget's limit of the KL; NaN without one."""
    return spec.budget.get("kl", math.nan)


# What the run says of the study's three mitigations.


class Comparison(NamedTuple):
    """An outcome of a trial that counts in a statement, and where its plain method is: 1 at the knee or the limit."""

    trial: TrialSummary
    outcome: Outcome
    place: float


def statements(
    arm: str, trials: Sequence[TrialSummary], entries: Sequence[CurveEntry], spec: Spec
) -> Iterator[Statement]:
    """Judge an arm by all of its comparisons: on the tokens of texts, and where it was tried on what is written."""
    compared = [
        Comparison(trial, outcome, _place(trial.plain, outcome, entries, _limit(spec)))
        for trial in trials
        if trial.arm == arm
        for outcome in trial.outcomes
    ]
    on_tokens = [each for each in compared if each.outcome.metric in ("kl_mean", "distance")]
    written = [each for each in compared if each.outcome.metric.partition("_")[2] in WRITTEN]
    yield _statement(arm, on_tokens, spec)
    if written:
        yield _statement(f"{arm}, on what is written", written, spec)


def _statement(arm: str, compared: Sequence[Comparison], spec: Spec) -> Statement:
    with_damage = [each for each in compared if each.outcome.recovery is not None]
    if not compared:
        return Statement(arm, "Not tried", f"no pair of a mitigation and its plain method is in this run; {ELSEWHERE}")
    if not with_damage:
        return Statement(arm, "No damage to recover", f"in {len(compared)} comparisons")
    helped = [each for each in with_damage if each.outcome.verdict.startswith(RECOVERS)]
    settled = [each for each in with_damage if each.outcome.verdict in (HARMS, NOT_WORTH_IT, AS_ITS_CONTROL)]
    by_chance = int(stats.binom.ppf(CHANCE, len(with_damage), (1 - spec.confidence) / 2))
    beyond = [each for each in helped if each.outcome.has_control and not each.outcome.not_neutral]
    counted = f"{len(helped)} of {len(with_damage)} comparisons recover, {len(beyond)} of them beyond a neutral control"
    if len(helped) > by_chance:
        return Statement(arm, "Recovers", f"{counted}: {_best(helped)}. {_places(with_damage)}".strip())
    if len(settled) + len(helped) == len(with_damage):
        least = (
            f"the others harm, recover less than {100 * spec.smallest_effect:g}\u00a0%, or no more than their control"
        )
        return Statement(arm, "Not worth it", f"{counted}, as many as chance explains; {least}")
    open_ones = [each.outcome for each in with_damage if each not in settled and each not in helped]
    needed = [outcome.needed for outcome in open_ones if outcome.needed > outcome.blocks]
    size = f"; the median of them takes {sorted(needed)[len(needed) // 2]} windows or items" if needed else ""
    return Statement(arm, "Cannot tell at this size", f"{counted}, {len(open_ones)} are open{size}")


def _best(helped: Sequence[Comparison]) -> str:
    best = max(helped, key=lambda each: each.outcome.recovery.low if each.outcome.recovery else -math.inf)
    measure = _measure(best.outcome.metric)
    return (
        f"{best.trial.treatment} {_written(best.outcome.recovery)} of the {measure} of {best.trial.plain.name} on "
        f"{best.outcome.dataset}"
    )


def _places(compared: Sequence[Comparison]) -> str:
    """Say how many recover up to the knee, the doubling point or the budget's limit, and how many beyond."""
    parts = []
    for where, chosen in (
        ("up to the knee or limit", [each for each in compared if each.place <= 1]),
        ("beyond", [each for each in compared if each.place > 1]),
    ):
        if chosen:
            helped = sum(each.outcome.verdict.startswith(RECOVERS) for each in chosen)
            parts.append(f"{where} {helped} of {len(chosen)}")
    return f"{', '.join(parts).capitalize()}." if parts else ""


# The table of mitigations.


def rows(
    trials: Sequence[TrialSummary], entries: Sequence[CurveEntry], corpus: str, limit: float = math.nan
) -> list[Row]:
    """Return the table of mitigations on one corpus: a row per mitigation and plain method.

    ``limit``: the budget's, of the KL in nats.
    """
    table = []
    for trial in trials:
        outcomes = _outcomes(trial, corpus)
        if outcomes:
            table.append(_row(trial, outcomes, entries, corpus, limit))
        elif trial.missing:
            table.append(Row(trial.arm, trial.treatment, trial.plain.name, missing=trial.missing))
    return table


def _row(
    trial: TrialSummary, outcomes: Sequence[Outcome], entries: Sequence[CurveEntry], corpus: str, limit: float
) -> Row:
    main = outcomes[0]
    return Row(
        arm=trial.arm,
        treatment=trial.treatment,
        plain=trial.plain.name,
        severity=_severity(trial.plain, main, entries, corpus, limit),
        damage=f"{_amount(main.metric, main.plain)} → {_amount(main.metric, main.treated)}",
        recovery=_written(main.recovery),
        control=_written(main.control) if main.has_control else NO_CONTROL,
        not_neutral=main.not_neutral,
        verdict=main.verdict,
        needed=_needed(main),
        others="; ".join(f"{_measure(each.metric)}: {_written(each.recovery)}" for each in outcomes[1:]),
    )


def _needed(outcome: Outcome) -> str:
    """Say how many blocks would tell, where these did not."""
    if outcome.verdict not in (CANNOT_TELL, LIKE_ITS_CONTROL):
        return ""
    if outcome.needed == 0 < outcome.blocks:
        return "other calibration draws move it by more: no number of windows or items would tell"
    if outcome.needed <= outcome.blocks:
        return ""
    return f"{outcome.needed} windows or items would, here are {outcome.blocks}"


def _severity(plain: Variant, outcome: Outcome, entries: Sequence[CurveEntry], corpus: str, limit: float) -> str:
    severity, threshold = relative_severity(plain, entries, corpus)
    if not math.isnan(severity):
        return f"{severity:.2f} × that of the {threshold}"
    over = _over_budget(outcome, limit)
    return "–" if math.isnan(over) else f"{over:.3g} × the budget's KL"


def _over_budget(outcome: Outcome, limit: float) -> float:
    """Return the plain method's KL over the budget's limit; NaN of another damage, and without a limit."""
    return outcome.plain / limit if outcome.metric == "kl_mean" else math.nan


def _place(plain: Variant, outcome: Outcome, entries: Sequence[CurveEntry], limit: float) -> float:
    """Return the severity relative to the threshold, else to the budget: 1 is at it, NaN where neither is known."""
    severity, _ = relative_severity(plain, entries, outcome.dataset)
    return _over_budget(outcome, limit) if math.isnan(severity) else severity


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
    """Return the outcomes on a corpus and on tasks, in the table's order, without those of written texts."""
    chosen = [
        outcome
        for outcome in trial.outcomes
        if outcome.metric in SHOWN and (outcome.dataset == corpus or outcome.metric == "flips")
    ]
    if all(outcome.metric == "flips" for outcome in chosen):
        return []
    return sorted(chosen, key=lambda outcome: SHOWN.index(outcome.metric))


def _measure(metric: str) -> str:
    search, _, measure = metric.partition("_")
    if measure in WRITTEN:
        return f"{measure.replace('_', ' ')} ({search})"
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
    """Return the table of corrections of decoding, a row per variant, corpus and correction."""
    table = []
    for name, output in inputs.corrections.items():
        if output.failure is not None:
            continue
        of_variant = rows[rows["variant"] == name]
        labels = of_variant["metric"].str.extract(r"^calibration_error\{correction=([^,}]+)\}", expand=False).dropna()
        seconds = output.manifest.get("seconds_per_token") or {}
        for corpus in of_variant.loc[labels.index, "dataset"].unique():
            table += [_calibration_row(numbers, name, corpus, each, seconds) for each in labels.unique()]
    return table


def _calibration_row(
    numbers: Numbers, variant: str, corpus: str, correction: str, seconds: Mapping[str, float]
) -> CalibrationRow:
    def number(metric: str, digits: int, times: float = 1.0) -> str:
        return _number(numbers.get(variant, f"{metric}{{correction={correction}}}", corpus), digits, times)

    return CalibrationRow(
        variant=variant,
        correction=CORRECTIONS.get(correction, correction),
        corpus=corpus,
        kl=number("kl_mean", 3),
        distance=number("distance", 3),
        error=number("calibration_error", 1, 100),
        greedy=number("greedy_accuracy", 1, 100),
        generation_kl=number("generation_kl", 3),
        generation_nll=number("generation_base_nll", 2),
        cost=_cost(correction, seconds),
    )


def _cost(correction: str, seconds: Mapping[str, float]) -> str:
    """Write the milliseconds a token, and for a correction how many percent more than without it."""
    if correction not in seconds:
        return "–"
    each = f"{1000 * seconds[correction]:.1f}"
    if correction == UNCORRECTED:
        return each
    return f"{each} ({100 * (seconds[correction] / seconds[UNCORRECTED] - 1):+.0f}\u00a0%)"


def _place_of(correction: str) -> int:
    return BEFORE.index(correction) if correction in BEFORE else len(BEFORE)


def text_rows(rows: pd.DataFrame, inputs: Inputs, numbers: Numbers, trials: Sequence[TrialSummary]) -> list[TextRow]:
    """Return the table of what corrected models write: the base and the variant as it is before its corrections."""
    verdicts = {
        (trial.plain.name, trial.treatment, outcome.metric, outcome.dataset): outcome.verdict
        for trial in trials
        if trial.arm == DECODING
        for outcome in trial.outcomes
    }
    pattern = r"^(?:accuracy|loop_rate)\{correction=([^,}]+),search=([^,}]+)\}"
    table = []
    for name in inputs.corrections:
        of_variant = rows[rows["variant"] == name]
        labels = of_variant["metric"].str.extract(pattern).dropna()
        labels["dataset"] = of_variant.loc[labels.index, "dataset"]
        labels["place"] = labels[0].map(_place_of)
        for correction, search, dataset, _ in labels.sort_values(["dataset", 1, "place"], kind="stable").itertuples(
            index=False
        ):
            cells = []
            for measure, (metric, times, digits) in WRITTEN.items():
                estimate = numbers.get(name, f"{metric}{{correction={correction},search={search}}}", dataset)
                own = measure == "divergence" and correction in BASES
                verdict = verdicts.get((name, f"{name}, {correction}", f"{search}_{measure}", dataset), "")
                cells.append(Cell("" if estimate is None or own else _number(estimate, digits, times), verdict))
            table.append(TextRow(name, dataset, search, CORRECTIONS.get(correction, correction), cells))
    return table


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


def recovery_chart(
    trials: Sequence[TrialSummary], entries: Sequence[CurveEntry], corpus: str, axis: str, limit: float = math.nan
) -> Figure:
    """Draw recovery against the plain method's relative severity, its KL over the budget's ``limit``, or its damage.

    Controls are open symbols.
    """
    groups: dict[tuple[str, bool], list[Point]] = {}
    for trial in trials:
        outcomes = _outcomes(trial, corpus)
        if not outcomes:
            continue
        x = {
            "severity": relative_severity(trial.plain, entries, corpus)[0],
            "budget": _over_budget(outcomes[0], limit),
            "damage": outcomes[0].plain,
        }[axis]
        for control, recovery in ((False, outcomes[0].recovery), (True, outcomes[0].control)):
            if recovery is not None and not math.isnan(x):
                name = f"{trial.treatment}, control" if control else trial.treatment
                measure = _measure(outcomes[0].metric)
                text = f"<b>{name}</b><br>on {trial.plain.name}: recovers {_written(recovery)} of {measure}"
                groups.setdefault((trial.arm, control), []).append(Point(x, recovery, text))
    return recoveries(groups, X_TITLES[axis], is_relative=axis != "damage", is_logarithmic=axis != "severity")
