"""Decoding: strategies by variants, their spread, survival of greedy texts, tested rules."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pandas as pd

from hemorrhage.analyze.inputs import BASE, Inputs
from hemorrhage.analyze.report.charts.decoding import (
    METRICS,
    answer_costs,
    dots,
    interactions,
    strategy_map,
    survival_curves,
)
from hemorrhage.analyze.report.charts.plotly import Figure
from hemorrhage.analyze.rows.decoding import CEILING, INTERACTIONS, MAUVE, SPREAD, SPREAD_CHANGE, SURVIVAL
from hemorrhage.analyze.rows.findings import ALL_STRATEGIES, CHANGE, RATIO, SPREAD_SD
from hemorrhage.analyze.rows.schema import OK
from hemorrhage.analyze.rows.stability import Stability
from hemorrhage.analyze.rows.survival import GRID
from hemorrhage.analyze.rows.tables import Estimate, Numbers
from hemorrhage.analyze.study import Study
from hemorrhage.analyze.verdicts import choice, published, signatures
from hemorrhage.analyze.verdicts.beside import Beside
from hemorrhage.analyze.verdicts.decoding import Findings, LeftOut
from hemorrhage.analyze.verdicts.words import RaisedWord

SIGNIFICANT = 0.05
"""The p-value, corrected for all that is said of decoding, up to which a strategy is named."""

SHOWN_TOKENS = (1, 4, 16, 64, 256)
"""Numbers of tokens at which the table says how many texts agree."""


@dataclass(frozen=True)
class SpreadRow:
    """How far apart the strategies of a variant are on a task, without the noise of the items."""

    variant: str
    dataset: str
    best: str
    worst: str
    spread: str
    deviation: str
    p: str
    change: str


@dataclass(frozen=True)
class AnswerRow:
    """What a variant's texts of a data set cost, beside the base's, and how they end under the first strategy."""

    variant: str
    dataset: str
    ratio: str
    right: str
    wrong: str
    of_bytes: str
    of_seconds: str
    loops: str
    cut: str
    uncommitted: str


@dataclass(frozen=True)
class NearnessRow:
    """How near texts are to people's: their own score, the strategies' range; or why neither is known."""

    variant: str
    dataset: str
    ceiling: str
    strategies: str


@dataclass(frozen=True)
class InteractionRow:
    """How much compression changes the differences between strategies."""

    variant: str
    metric: str
    size: str
    p: str
    significant: str


@dataclass(frozen=True)
class SurvivalRow:
    """How long greedy texts of a variant agree with the base's."""

    variant: str
    dataset: str
    texts: str
    mean: str
    shares: str


@dataclass(frozen=True)
class RuleGroup:
    """The tests of one rule, and what printed tables say of it."""

    title: str
    count: str
    published: str
    rows: list[signatures.RuleTest]


@dataclass(frozen=True)
class StabilityRow:
    """Whether the aligned model is more stable on a task."""

    dataset: str
    answer: str
    stability: Stability


@dataclass(frozen=True)
class Decoding:
    """The section; keys and names of choices, heights of charts in pixels, and rows of tables."""

    strategies: int
    metric_options: list[tuple[str, str]]
    interaction_options: list[tuple[str, str]]
    survival_options: list[tuple[str, str]]
    cost_options: list[tuple[str, str]]
    height: int
    map_height: int
    spread: list[SpreadRow]
    left_out: list[LeftOut]
    answers: list[AnswerRow]
    first_strategy: str
    raised: list[RaisedWord]
    nearness: list[NearnessRow]
    beside: list[Beside]
    interactions: list[InteractionRow]
    survival: list[SurvivalRow]
    rules: list[RuleGroup]
    sibling: str
    stability: list[StabilityRow]
    published_stability: str
    choices: list[choice.Choice]
    choice_line: str
    figures: dict[str, Figure] = field(repr=False)


def section(study: Study) -> Decoding | None:
    """Return the section of a study; None where nothing was decoded."""
    numbers, findings = study.numbers, study.decoded
    variants = numbers.decoded_variants()
    if not variants:
        return None
    measured = _measured(numbers)
    strategies = dict.fromkeys(name for metric, _ in measured for name in numbers.strategies(metric))
    rows = max(len(strategies), 1)
    return Decoding(
        strategies=len(strategies),
        metric_options=_metric_options(measured),
        interaction_options=[
            (f"{metric}|{dataset}", f"{METRICS[metric].name}, {dataset}") for metric, dataset in _interactions(numbers)
        ],
        survival_options=[(dataset, dataset) for dataset in findings.survival],
        cost_options=[(dataset, f"{dataset}, {METRICS[metric].name}") for metric, dataset, _ in _costed(numbers)],
        height=110 + 15 * len(variants) * rows,
        map_height=90 + 20 * rows,
        spread=spread_rows(numbers),
        left_out=findings.left_out,
        answers=answer_rows(study.rows, numbers),
        first_strategy=next(iter(strategies), ""),
        raised=findings.raised,
        nearness=nearness_rows(study.rows, numbers),
        beside=findings.beside,
        interactions=interaction_rows(numbers),
        survival=survival_rows(numbers, findings),
        rules=rule_groups(findings.signatures),
        sibling=sibling_model(study.inputs),
        stability=[StabilityRow(name, answer(each), each) for name, each in (findings.stability or {}).items()],
        published_stability=published.statements()["stability"],
        choices=findings.choices,
        choice_line=choice.line(findings.choices),
        figures=figures(numbers, findings),
    )


def figures(numbers: Numbers, findings: Findings) -> dict[str, Figure]:
    """Draw the section's charts."""
    drawn: dict[str, Figure] = {}
    for metric, dataset in _measured(numbers):
        drawn[f"decoding|{metric}|{dataset}"] = dots(numbers, metric, dataset)
        drawn[f"decoding-map|{metric}|{dataset}"] = strategy_map(numbers, metric, dataset)
    for metric, dataset, strategy in _costed(numbers):
        drawn[f"answercost|{dataset}"] = answer_costs(numbers, metric, dataset, strategy)
    for metric, dataset in _interactions(numbers):
        drawn[f"interaction|{metric}|{dataset}"] = interactions(numbers, metric, dataset)
    for dataset, curves in findings.survival.items():
        drawn[f"survival|{dataset}"] = survival_curves(curves)
    return drawn


def _measured(numbers: Numbers) -> list[tuple[str, str]]:
    """List the metrics of texts that were measured, each with its data sets."""
    return [
        (metric, dataset)
        for metric in METRICS
        if numbers.strategies(metric)
        for dataset in numbers.datasets(metric, strategy=True)
    ]


def _costed(numbers: Numbers) -> Iterator[tuple[str, str, str]]:
    """Yield the data sets whose answers' cost is known, each with a metric of quality and the first strategy of it."""
    for dataset in numbers.datasets("bytes_ratio", strategy=True):
        for metric in ("accuracy", "base_nll"):
            if dataset in numbers.datasets(metric, strategy=True):
                yield metric, dataset, numbers.strategies(metric)[0]


def _interactions(numbers: Numbers) -> list[tuple[str, str]]:
    return [
        (metric, dataset)
        for metric in INTERACTIONS
        for dataset in numbers.datasets(f"{metric}_interaction", strategy=True)
    ]


def _metric_options(measured: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Name each metric; where it was measured on several data sets, with the data set."""
    metrics = [metric for metric, _ in measured]
    return [
        (
            f"{metric}|{dataset}",
            f"{METRICS[metric].name}, {dataset}" if metrics.count(metric) > 1 else METRICS[metric].name,
        )
        for metric, dataset in measured
    ]


def sibling_model(inputs: Inputs) -> str:
    """Name the sibling model, or say why it was not decoded; empty where there is none."""
    if inputs.sibling is None:
        return ""
    if inputs.sibling.decoded.failure:
        return f"could not be decoded: {inputs.sibling.decoded.failure}"
    model = inputs.sibling.variant.manifest.get("model", {})
    name = model.get("name") or model.get("id") or model.get("path", "the sibling model")
    return f"{name}, which is {'aligned' if inputs.sibling.is_aligned else 'the base model of the family'}"


def answer(stability: Stability) -> str:
    """Say whether the aligned model is more stable."""
    change = (
        f"its coefficient of variation over {stability.strategies} strategies, without noise, is "
        f"{100 * stability.second:.1f} % against {100 * stability.first:.1f} %, "
        f"{100 * stability.difference:+.1f} points ({100 * stability.low:+.1f} to {100 * stability.high:+.1f})"
    )
    if stability.high < 0:
        return f"Yes: {change}."
    if stability.low > 0:
        return f"No, the reverse: {change}."
    if stability.verdict == "no power":
        seen = f"a difference of {100 * stability.mde:.0f} points would have been seen"
        return f"No power: {change}; {seen} on {stability.items} items."
    return f"Inconclusive: {change}."


def interaction_rows(numbers: Numbers) -> list[InteractionRow]:
    """Return how much compression changes the differences between strategies, and which are significant."""
    rows = []
    for metric, dataset in _interactions(numbers):
        for variant in numbers.decoded_variants():
            overall = numbers.get(variant, f"{metric}_interaction", dataset, ALL_STRATEGIES)
            if overall is None:
                continue
            rows.append(
                InteractionRow(
                    variant=variant,
                    metric=f"{METRICS[metric].name}, {dataset}",
                    size=f"{METRICS[metric].times * overall.value:.2g}",
                    p=f"{overall.p:.2g}",
                    significant="; ".join(_significant(numbers, variant, metric, dataset))
                    or _would_have_shown(numbers, variant, metric, dataset),
                )
            )
    return rows


def _significant(numbers: Numbers, variant: str, metric: str, dataset: str) -> list[str]:
    """Write the strategies whose change differs from the mean strategy's."""
    times, significant = METRICS[metric].times, []
    for strategy in numbers.strategies(f"{metric}_interaction"):
        estimate = numbers.get(variant, f"{metric}_interaction", dataset, strategy)
        if estimate and estimate.q <= SIGNIFICANT:
            value, low, high = (times * number for number in estimate[:3])
            significant.append(f"{strategy} {value:+.2g} ({low:+.2g} to {high:+.2g})")
    return significant


def _would_have_shown(numbers: Numbers, variant: str, metric: str, dataset: str) -> str:
    """Say that no strategy is set apart, and from what difference on the least sensitive of them would have been."""
    name = f"{metric}_interaction"
    known = [numbers.get(variant, name, dataset, strategy) for strategy in numbers.strategies(name)]
    seen = [METRICS[metric].times * estimate.mde for estimate in known if estimate and math.isfinite(estimate.mde)]
    return f"none; {max(seen):.2g} would have been seen" if seen else "none; no difference is known to show"


def answer_rows(rows: pd.DataFrame, numbers: Numbers) -> list[AnswerRow]:
    """Return what variants' texts cost beside the base's, by data set."""
    reasons = rows[rows["status"] != OK].set_index(["variant", "metric", "dataset"])["reason"].to_dict()
    compared = rows[rows["metric"] == RATIO][["variant", "dataset"]].drop_duplicates()
    return [_answer_row(numbers, reasons, *pair) for pair in compared.itertuples(index=False, name=None)]


def _answer_row(numbers: Numbers, reasons: dict[tuple[str, str, str], str], variant: str, dataset: str) -> AnswerRow:
    def written(metric: str, change: bool = False) -> str:
        estimate = numbers.get(variant, metric, dataset, ALL_STRATEGIES)
        if estimate is None:
            # The other columns are not known for the same reason.
            return reasons.get((variant, metric, dataset), "–") if metric in (RATIO, CHANGE) else "–"
        text = _points(estimate) if change else _times(estimate)
        if not math.isnan(estimate.q):
            text += f", p {estimate.q:.2g}"
            if estimate.q > SIGNIFICANT and math.isfinite(estimate.mde):
                text += f"; {100 * estimate.mde:.2g} {'points' if change else '%'} would have been seen"
        return text

    def ended(metric: str) -> str:
        strategy = next(iter(numbers.strategies(metric)), "")
        sides = [numbers.get(name, metric, dataset, strategy) for name in (variant, BASE)]
        known = [f"{100 * each.value:.0f}\u00a0%" for each in sides if each]
        return " against ".join(known) if len(known) == len(sides) else "–"

    before, after = (numbers.get(name, "decode_tokens_per_second") for name in (BASE, variant))
    ratio = numbers.get(variant, RATIO, dataset, ALL_STRATEGIES)
    seconds = f"{ratio.value * before.value / after.value:.2f}" if ratio and before and after else "–"
    return AnswerRow(
        variant=variant,
        dataset=dataset,
        ratio=written(RATIO),
        right=written(f"{RATIO}{{answer=right}}"),
        wrong=written(f"{RATIO}{{answer=wrong}}"),
        of_bytes=written("bytes_ratio"),
        of_seconds=seconds,
        loops=written(CHANGE, change=True),
        cut=ended("truncated"),
        uncommitted=ended("uncommitted"),
    )


def _times(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def nearness_rows(rows: pd.DataFrame, numbers: Numbers) -> list[NearnessRow]:
    """Return how near each variant's texts are to people's, or why that is not known."""
    scored = rows[rows["metric"] == MAUVE]
    nearest = []
    for (variant, dataset), group in scored.groupby(["variant", "dataset"], sort=False):
        ceiling = numbers.get(variant, CEILING, dataset, ALL_STRATEGIES)
        known = group[group["status"] == OK].sort_values("estimate")
        strategies = group["reason"].iloc[0]
        if len(known):
            low, high = known.iloc[0], known.iloc[-1]
            strategies = f"{low['method']} {low['estimate']:.2f} to {high['method']} {high['estimate']:.2f}"
        people = "unknown" if ceiling is None else _times(ceiling)
        nearest.append(NearnessRow(str(variant), str(dataset), people, strategies))
    return nearest


def survival_rows(numbers: Numbers, findings: Findings) -> list[SurvivalRow]:
    """Return per data set and variant the mean of agreeing tokens, and the share that agrees after some of them."""
    rows = []
    for dataset, curves in findings.survival.items():
        for variant, curve in curves.items():
            mean = numbers.get(variant, f"{SURVIVAL}_tokens", dataset, ALL_STRATEGIES)
            shares = []
            for tokens in GRID:
                share = numbers.get(variant, f"{SURVIVAL}{{token={tokens}}}", dataset, ALL_STRATEGIES)
                if share and tokens in SHOWN_TOKENS:
                    shares.append(f"{100 * share.value:.0f} % after {tokens}")
            rows.append(
                SurvivalRow(
                    variant=variant,
                    dataset=dataset,
                    texts=f"{curve.differing} of {curve.texts}",
                    mean=f"{mean.value:.1f} ({mean.low:.1f} to {mean.high:.1f})" if mean else "–",
                    shares=", ".join(shares),
                )
            )
    return rows


def rule_groups(verdicts: Sequence[signatures.RuleTest]) -> list[RuleGroup]:
    """Return the rules with their tests, what printed tables say, and how often each holds."""
    tables = published.statements()
    groups = []
    for rule, title in signatures.RULES.items():
        tests = [verdict for verdict in verdicts if verdict.rule == rule]
        counts = Counter(verdict.verdict for verdict in tests)
        told = counts[signatures.HOLDS] + counts[signatures.FAILS]
        weak = counts[signatures.NO_POWER]
        count = f"holds in {counts[signatures.HOLDS]} of the {told} tests here that tell" if told else "not told here"
        if weak:
            count += f"; {weak} without power"
        groups.append(RuleGroup(title, count, tables[rule], tests))
    return groups


def spread_rows(numbers: Numbers) -> list[SpreadRow]:
    """Return how much the choice of a decoding strategy moves the accuracy of each decoded variant."""
    rows = (
        _spread_row(numbers, variant, dataset)
        for dataset in numbers.datasets("accuracy", strategy=True)
        for variant in numbers.decoded_variants()
    )
    return [row for row in rows if row]


def _spread_row(numbers: Numbers, variant: str, dataset: str) -> SpreadRow | None:
    by_strategy = {name: numbers.get(variant, "accuracy", dataset, name) for name in numbers.strategies("accuracy")}
    accuracies = {name: estimate.value for name, estimate in by_strategy.items() if estimate}
    if not accuracies:
        return None

    def overall(metric: str) -> Estimate | None:
        return numbers.get(variant, metric, dataset, ALL_STRATEGIES)

    best, worst = max(accuracies, key=accuracies.__getitem__), min(accuracies, key=accuracies.__getitem__)
    change, deviation = overall(SPREAD_CHANGE), overall(SPREAD_SD)
    return SpreadRow(
        variant=variant,
        dataset=dataset,
        best=f"{best} {100 * accuracies[best]:.0f}\u00a0%",
        worst=f"{worst} {100 * accuracies[worst]:.0f}\u00a0%",
        spread=_with_interval(overall(SPREAD)),
        deviation=_with_interval(deviation),
        p="–" if deviation is None else f"{deviation.q:.2g}",
        change="–" if change is None else _points(change),
    )


def _with_interval(estimate: Estimate | None) -> str:
    """Write a share in per cent with its interval, or why it has none."""
    if estimate and math.isnan(estimate.low):
        return f"{_percent(estimate)} (too few right answers for an interval)"
    return _percent(estimate)


def _percent(estimate: Estimate | None) -> str:
    if estimate is None:
        return "undefined"
    if math.isnan(estimate.low):
        return f"{100 * estimate.value:.0f}\u00a0%"
    return f"{100 * estimate.value:.0f}\u00a0% ({100 * estimate.low:.0f} to {100 * estimate.high:.0f})"


def _points(estimate: Estimate) -> str:
    value, low, high = (100 * number for number in estimate[:3])
    return f"{value:+.0f} points ({low:+.0f} to {high:+.0f})"
