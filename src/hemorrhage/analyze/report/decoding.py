"""The report's section on decoding: what its template is given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hemorrhage.analyze.inputs import Inputs
from hemorrhage.analyze.report import decoding_figures
from hemorrhage.analyze.rows import stability
from hemorrhage.analyze.rows.decoding import ALL_STRATEGIES, INTERACTIONS, SPREAD_CHANGE, SURVIVAL
from hemorrhage.analyze.rows.survival import GRID
from hemorrhage.analyze.rows.tables import Estimate, Numbers
from hemorrhage.analyze.verdicts import choice, published, signatures
from hemorrhage.analyze.verdicts.decoding import Findings

NAMES = {
    "accuracy": "Accuracy",
    "rep_4": "Repetition",
    "loop_rate": "Loops",
    "base_nll": "Surprise",
    "mauve": "MAUVE",
    "distinct_2": "Distinct-2",
    "distinct_3": "Distinct-3",
    "entropy": "Entropy",
    "length": "Length",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
}
"""What people call a metric."""


def figures(numbers: Numbers, found: Findings) -> dict[str, Any]:
    """The section's charts by their keys."""
    drawn: dict[str, Any] = {}
    for metric, dataset in _shown(numbers):
        drawn[f"decoding|{metric}|{dataset}"] = decoding_figures.decoding(numbers, metric, dataset)
        drawn[f"decoding-map|{metric}|{dataset}"] = decoding_figures.grid(numbers, metric, dataset)
    for metric in INTERACTIONS:
        for dataset in numbers.datasets(f"{metric}_interaction", strategy=True):
            drawn[f"interaction|{metric}|{dataset}"] = decoding_figures.interactions(numbers, metric, dataset)
    for dataset, curves in found.survival.items():
        drawn[f"survival|{dataset}"] = decoding_figures.survival(curves)
    return drawn


def _shown(numbers: Numbers) -> list[tuple[str, str]]:
    return [
        (metric, dataset)
        for metric in NAMES
        if numbers.strategies(metric)
        for dataset in numbers.datasets(metric, strategy=True)
    ]


def section(inputs: Inputs, numbers: Numbers, found: Findings) -> dict[str, Any]:
    """What the template shows."""
    shown = _shown(numbers)
    several = {metric for metric, _ in shown if sum(one == metric for one, _ in shown) > 1}
    strategies = list(dict.fromkeys(name for metric, _ in shown for name in numbers.strategies(metric)))
    return {
        "decoding": bool(numbers.decoded_variants()),
        "decoding_names": [
            (f"{metric}|{dataset}", f"{NAMES[metric]}, {dataset}" if metric in several else NAMES[metric])
            for metric, dataset in shown
        ],
        "decoding_height": 110 + 15 * len(numbers.decoded_variants()) * max(len(strategies), 1),
        "decoding_map_height": 90 + 20 * max(len(strategies), 1),
        "strategies": len(strategies),
        "spread": spread_rows(numbers),
        "interaction_names": [
            (f"{metric}|{dataset}", f"{NAMES[metric]}, {dataset}")
            for metric in INTERACTIONS
            for dataset in numbers.datasets(f"{metric}_interaction", strategy=True)
        ],
        "interaction_rows": interaction_rows(numbers),
        "survival_names": [(dataset, dataset) for dataset in found.survival],
        "survival_rows": survival_rows(numbers, found),
        "signature_groups": signature_groups(found.signatures),
        "sibling": _sibling(inputs),
        "stability_rows": [(dataset, one, answer(one)) for dataset, one in (found.stability or {}).items()],
        "published_stability": published.said()["stability"],
        "choices": found.choices,
        "choice_line": choice.line(found.choices),
    }


def _sibling(inputs: Inputs) -> str:
    """What the second model is, or the reason why there is none."""
    if inputs.sibling is None:
        return ""
    if inputs.sibling.decoded.failure:
        return f"could not be decoded: {inputs.sibling.decoded.failure}"
    model = inputs.sibling.variant.manifest.get("model", {})
    name = model.get("name") or model.get("id") or model.get("path", "the other model")
    return f"{name}, which is {'aligned' if inputs.sibling.is_aligned else 'the base model of the family'}"


def answer(one: stability.Stability) -> str:
    """Is the aligned model more stable? As a sentence."""
    change = (
        f"its coefficient of variation over {one.strategies} strategies is {100 * one.second:.1f} % against "
        f"{100 * one.first:.1f} %, {100 * one.difference:+.1f} points ({100 * one.low:+.1f} to {100 * one.high:+.1f})"
    )
    if one.high < 0:
        return f"Yes: {change}."
    if one.low > 0:
        return f"No, the reverse: {change}."
    return f"Not told apart: {change}."


def interaction_rows(numbers: Numbers) -> list[dict[str, str]]:
    """How far compression moves the strategies apart, and which strategies it sets apart (q below 0.05)."""
    rows = []
    for metric in INTERACTIONS:
        name, times = f"{metric}_interaction", decoding_figures.times(metric)
        for dataset in numbers.datasets(name, strategy=True):
            for variant in numbers.decoded_variants():
                whole = numbers.get(variant, name, dataset, ALL_STRATEGIES)
                if whole is None:
                    continue
                apart = []
                for strategy in numbers.strategies(name):
                    one = numbers.get(variant, name, dataset, strategy)
                    if one and one.q < 0.05:
                        apart.append(
                            f"{strategy} {times * one.value:+.2g} ({times * one.low:+.2g} to {times * one.high:+.2g})"
                        )
                rows.append(
                    {
                        "variant": variant,
                        "metric": f"{NAMES[metric]}, {dataset}",
                        "size": f"{times * whole.value:.2g}",
                        "p": f"{whole.p:.2g}",
                        "apart": "; ".join(apart) or "none",
                    }
                )
    return rows


def survival_rows(numbers: Numbers, found: Findings) -> list[dict[str, Any]]:
    """Per data set and variant: the mean of agreeing tokens, and the share that agrees at some of them."""
    rows = []
    for dataset, curves in found.survival.items():
        for variant, curve in curves.items():
            mean = numbers.get(variant, f"{SURVIVAL}_tokens", dataset, ALL_STRATEGIES)
            shares = []
            for tokens in GRID:
                share = numbers.get(variant, f"{SURVIVAL}{{token={tokens}}}", dataset, ALL_STRATEGIES)
                if share and tokens in (1, 4, 16, 64, 256):
                    shares.append(f"{100 * share.value:.0f} % after {tokens}")
            rows.append(
                {
                    "variant": variant,
                    "dataset": dataset,
                    "texts": f"{curve.differing} of {curve.texts}",
                    "mean": f"{mean.value:.1f} ({mean.low:.1f} to {mean.high:.1f})" if mean else "–",
                    "shares": ", ".join(shares),
                }
            )
    return rows


def signature_groups(verdicts: Sequence[signatures.Verdict]) -> list[dict[str, Any]]:
    """The rules with their tests, what tables say, and how often each verdict was given."""
    said = published.said()
    groups = []
    for rule, title in signatures.RULES.items():
        mine = [verdict for verdict in verdicts if verdict.rule == rule]
        tested = [verdict for verdict in mine if verdict.verdict != signatures.UNTESTED]
        holds = sum(verdict.verdict == signatures.HOLDS for verdict in tested)
        count = f"holds in {holds} of {len(tested)} tests here" if tested else "not tested here"
        groups.append({"title": title, "count": count, "said": said[rule], "rows": mine})
    return groups


def spread_rows(numbers: Numbers) -> list[dict[str, str]]:
    """How much the choice of a decoding strategy moves the accuracy of each decoded variant."""
    rows = []
    for dataset in numbers.datasets("accuracy", strategy=True):
        for variant in numbers.decoded_variants():
            by_strategy = {
                name: numbers.get(variant, "accuracy", dataset, name) for name in numbers.strategies("accuracy")
            }
            known = {name: found for name, found in by_strategy.items() if found}
            if not known:
                continue
            best, worst = (choose(known, key=lambda name: known[name].value) for choose in (max, min))
            row = {
                "variant": variant,
                "dataset": dataset,
                "best": _share(best, known[best]),
                "worst": _share(worst, known[worst]),
            }
            for metric in ("spread_over_max", "spread_over_min", "spread_cv", "spread_by_chance"):
                row[metric] = _percent(numbers.get(variant, metric, dataset, ALL_STRATEGIES))
                if metric != "spread_by_chance" and row[metric].endswith("%"):
                    row[metric] += " (too few right answers for an interval)"
            change = numbers.get(variant, SPREAD_CHANGE, dataset, ALL_STRATEGIES)
            row["change"] = "–" if change is None else _points(change)
            spread = numbers.get(variant, "spread_over_max", dataset, ALL_STRATEGIES)
            chance = numbers.get(variant, "spread_by_chance", dataset, ALL_STRATEGIES)
            row["beyond"] = "" if not spread or not chance else "yes" if spread.value > chance.value else "no"
            rows.append(row)
    return rows


def _share(name: str, found: Estimate) -> str:
    return f"{name} {100 * found.value:.0f}\u00a0%"


def _percent(found: Estimate | None) -> str:
    if found is None:
        return "undefined"
    if math.isnan(found.low):
        return f"{100 * found.value:.0f}\u00a0%"
    return f"{100 * found.value:.0f}\u00a0% ({100 * found.low:.0f} to {100 * found.high:.0f})"


def _points(found: Estimate) -> str:
    value, low, high = (100 * number for number in found[:3])
    return f"{value:+.0f} points ({low:+.0f} to {high:+.0f})"
