"""What the page says of mitigations: a table, recovery against the way to the knee, and which sweeps to add."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from hemorrhage.analyze.axes import FEWER_IS_WORSE, position
from hemorrhage.analyze.curves.entries import CurveEntry
from hemorrhage.analyze.inputs import BASE, Inputs, Variant
from hemorrhage.analyze.report.figures import Figure, factor, recoveries
from hemorrhage.analyze.rows import corrections
from hemorrhage.analyze.rows.mitigations import Outcome, Recovery, TrialSummary
from hemorrhage.analyze.rows.tables import Estimate, Numbers
from hemorrhage.compress.info import GRADIENTS, SCALES, TRAINING

AGAINST = {"way": "Way to the knee", "damage": "Damage of the plain method"}
"""What the chart of recoveries can be drawn against."""

MEASURES = {"kl_mean": "KL", "ln_perplexity_ratio": "perplexity", "distance": "distance", "flips": "flips"}
SHOWN = ("kl_mean", "distance", "ln_perplexity_ratio", "flips", "generation_kl", "generation_distance")
"""Metrics whose recovery stands in the table, the first of them first."""

MISSING = {
    GRADIENTS: (
        "wanda_plus: {method: wanda_plus, sparsity: [0.5]}",
        "wanda_plus_shuffled: {method: wanda_plus, sparsity: [0.5], shuffled: true}",
        "with wanda: {method: wanda, sparsity: [0.5]}",
    ),
    SCALES: (
        "awq: {method: awq, bits: [3], group_size: 64}",
        "awq_shuffled: {method: awq, bits: [3], group_size: 64, shuffled: true}",
        "with rtn: {method: rtn, bits: [3], group_size: 64}",
    ),
    TRAINING: (
        "recovery: {method: recovery, on: [<a pruned variant>], steps: [50]}",
        "recovery_shuffled: {method: recovery, on: [<the same>], steps: [50], shuffled: true}",
    ),
    corrections.DECODING: ("mitigate: {variants: [<a variant>]}",),
}
"""Arm -> lines of params.yaml that would try it."""


def rows(
    trials: Sequence[TrialSummary], inputs: Inputs, thresholds: Sequence[CurveEntry], corpus: str
) -> list[dict[str, Any]]:
    """The table of mitigations on one corpus: a row per mitigation and plain method."""
    found = []
    for trial in trials:
        outcomes = _on(trial, corpus)
        about = {"arm": trial.arm, "treatment": trial.treatment, "plain": trial.plain.name}
        if not outcomes:
            if trial.missing:
                found.append({**about, "missing": trial.missing})
            continue
        main = outcomes[0]
        place, threshold = way(trial.plain, inputs, thresholds, corpus)
        found.append(
            {
                **about,
                "missing": "",
                "place": "–" if math.isnan(place) else f"{place:.2f} × the way to the {threshold}",
                "damage": f"{_amount(main.metric, main.plain)} → {_amount(main.metric, main.treated)}",
                "recovery": _written(main.recovery),
                "control": _written(main.control) if main.has_control else "no control in this run",
                "verdict": main.verdict,
                "others": "; ".join(f"{_measure(one.metric)}: {_written(one.recovery)}" for one in outcomes[1:]),
            }
        )
    return found


def way(variant: Variant, inputs: Inputs, thresholds: Sequence[CurveEntry], corpus: str) -> tuple[float, str]:
    """How far a variant stands on the way from the undamaged model to the threshold of its curve, and which one.

    1 is at the threshold, above 1 beyond it: the knee, else where the perplexity doubles; NaN and why where the curve
    has neither.
    """
    for entry in thresholds:
        if (entry.sweep, entry.identity, entry.on, entry.corpus) != (
            variant.sweep,
            variant.identity,
            variant.on,
            corpus,
        ):
            continue
        for definition, name in (("knee", "knee"), ("two_fold", "doubling point")):
            threshold = entry.thresholds[definition]
            if threshold.is_located and threshold.estimate != entry.base:
                sign = -1.0 if variant.axis in FEWER_IS_WORSE else 1.0
                whole, gone = (sign * (x - entry.base) for x in (threshold.estimate, position(variant)))
                return gone / whole, name
    return math.nan, "no knee and no doubling point among the measured points"


def _on(trial: TrialSummary, corpus: str) -> list[Outcome]:
    """What came of it on a corpus, and on tasks, in the table's order."""
    chosen = [one for one in trial.outcomes if one.dataset == corpus or one.metric == "flips"]
    if all(one.metric == "flips" for one in chosen):
        return []
    return sorted(chosen, key=lambda one: SHOWN.index(one.metric))


def _measure(metric: str) -> str:
    kind, own = metric.removeprefix("generation_"), metric.startswith("generation_")
    name = {"kl": "KL", **MEASURES}[kind]
    return f"{name} of own texts" if own else name


def _amount(metric: str, damage: float) -> str:
    if metric == "ln_perplexity_ratio":
        return factor(damage)
    unit = " nats" if "kl" in metric else ""
    return f"{damage:.3g}{unit}"


def _written(found: Recovery | None) -> str:
    if found is None:
        return "no damage"
    value, low, high = (f"{100 * number:.0f}" for number in found)
    return f"{value}\u00a0% ({low} to {high})"


def against(charts: Mapping[str, Figure]) -> dict[str, str]:
    """What the charts can be drawn against: the way to the knee where any curve has one, and the damage."""
    found = {name for name in AGAINST for key, drawn in charts.items() if f"|{name}|" in key and drawn["data"]}
    return {name: title for name, title in AGAINST.items() if name in found or name == "damage"}


def calibration(rows: pd.DataFrame, inputs: Inputs, numbers: Numbers) -> list[dict[str, str]]:
    """The table of corrections of decoding: what each leaves, in absolute numbers."""
    found = []
    for name, output in inputs.corrections.items():
        if output.failure is not None:
            continue
        corpus = output.manifest["corpus"]
        metrics = rows.loc[rows["variant"] == name, "metric"]
        tried = metrics.str.extract(r"^calibration_error\{correction=([^,}]+)\}", expand=False).dropna()
        for correction in tried.unique():

            def get(metric: str, name: str = name, label: str = correction, corpus: str = corpus) -> Estimate | None:
                return numbers.get(name, f"{metric}{{correction={label}}}", corpus)

            found.append(
                {
                    "variant": name,
                    "correction": {"none": "as it is", "top_p": "plain nucleus"}.get(correction, correction),
                    "kl": _number(get("kl_mean"), 3),
                    "distance": _number(get("distance"), 3),
                    "error": _number(get("calibration_error"), 1, 100),
                    "greedy": _number(get("greedy_accuracy"), 1, 100),
                    "own": _number(get("generation_kl"), 3),
                    "surprise": _number(get("generation_base_nll"), 2),
                }
            )
    return found


def _number(found: Estimate | None, digits: int, times: float = 1.0) -> str:
    if found is None:
        return "–"
    value, low, high = (f"{times * number:.{digits}f}" for number in found[:3])
    return f"{value} ({low} to {high})"


def to_add(trials: Sequence[TrialSummary]) -> list[dict[str, Any]]:
    """Sweeps that would answer what this run doesn't: arms that were not tried, and controls of those that were."""
    tried = {trial.arm for trial in trials}
    found = [{"why": f"{arm}: not tried", "lines": list(lines)} for arm, lines in MISSING.items() if arm not in tried]
    controls = {}
    for trial in trials:
        variant, control = trial.treated, trial.control
        settings = variant.manifest.get("settings") or {}
        # What has no information to shuffle, as scales per token, has no control.
        if control is None and variant.manifest.get("can_be_shuffled") and trial.arm != corrections.DECODING:
            content: dict[str, Any] = {"method": variant.method, **({} if variant.on == BASE else {"on": variant.on})}
            content |= {**settings, "shuffled": True}
            controls[variant.name] = f"{variant.name.replace('-', '_').replace('.', '_')}_shuffled: {_flow(content)}"
    if controls:
        found.append({"why": "Tried without a control", "lines": list(controls.values())})
    return found


def _flow(content: Mapping[str, Any]) -> str:
    """A mapping as a line of YAML; JSON's scalars and lists are YAML's. A list would make variants of a tuple."""
    items = (f"{key}: {json.dumps(value)}" for key, value in content.items() if not isinstance(value, list))
    return "{" + ", ".join(items) + "}"


def chart(
    trials: Sequence[TrialSummary],
    inputs: Inputs,
    thresholds: Sequence[CurveEntry],
    corpus: str,
    against: str,
) -> Figure:
    """Recovery against the distance to the knee, or the damage of the plain method; controls are open symbols."""
    groups: dict[tuple[str, bool], list[tuple[float, Recovery, str]]] = {}
    for trial in trials:
        outcomes = _on(trial, corpus)
        for control in (False, True) if outcomes else ():
            point = _point(trial, outcomes[0], control, inputs, thresholds, corpus, against)
            if point:
                groups.setdefault((trial.arm, control), []).append(point)
    title = {"way": "way from the base to the knee (1: at the knee)", "damage": "damage of the plain method"}[against]
    return recoveries(groups, title, knee=against == "way")


def _point(
    trial: TrialSummary,
    one: Outcome,
    control: bool,
    inputs: Inputs,
    thresholds: Sequence[CurveEntry],
    corpus: str,
    against: str,
) -> tuple[float, Recovery, str] | None:
    found, x = one.control if control else one.recovery, one.plain
    if against == "way":
        x, _ = way(trial.plain, inputs, thresholds, corpus)
    if found is None or math.isnan(x):
        return None
    what = f"{trial.treatment}{', control' if control else ''}"
    text = f"<b>{what}</b><br>on {trial.plain.name}: recovers {_written(found)} of {_measure(one.metric)}"
    return x, found, text
