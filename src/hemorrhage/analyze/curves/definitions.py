"""The named definitions of a threshold, found on every curve of the study: the content of thresholds.json."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hemorrhage.analyze.axes import AXES, FEWER_IS_WORSE, Sweep, failure, position, sweeps, undamaged
from hemorrhage.analyze.curves import defects, next_points, thresholds
from hemorrhage.analyze.curves.thresholds import ANCHORED, NO_CLIFF, PHASES, TOO_FEW, TWO_SEGMENTS, Judged, few
from hemorrhage.analyze.inputs import BASE, Inputs, Variant
from hemorrhage.analyze.rows.results import Results
from hemorrhage.analyze.rows.tables import Numbers
from hemorrhage.analyze.rows.tasks import ALL_TASKS
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats.bootstrap import Floats

METRICS = ("ln_perplexity_ratio", "kl_mean", "task_loss")
"""Damages that curves are made of, all 0 at the base; ``task_loss``: the share of the base's mean accuracy lost."""

DOUBLED = math.log(2)
TENTH = math.log(1.1)
RISE = 1.5
"""Points of perplexity: near lossless up to here, says the study's follow-up."""
TASK_LOSS = 0.05

DEFINITIONS = {
    "ten_percent": "where the perplexity, straight between points on a logarithmic scale, first reaches 1.1 times the "
    "base's",
    "two_fold": "where the perplexity, straight between points on a logarithmic scale, first reaches twice the base's",
    "plus_1_5": "where the perplexity, straight between points on a logarithmic scale, first lies 1.5 above the base's",
    "task_5": "where the mean accuracy over tasks, straight between points, has first lost 5 % of the base's",
    "knee": "where two joined lines through the base bend that describe the log-perplexity ratio better than no "
    "damage, a line, a parabola and an exponential: by Schwarz's criterion, and by more than a curve without a knee "
    "gains by chance (p_smooth)",
    "kl_knee": "the same on the mean KL",
    "phase_point": "where a power law of the distance turns into an exponential, by the same rule, on the "
    "log-perplexity ratio: the form of the study's follow-up, with and without its square; the interval is over both",
    "anchored_point": "the same form made to start at the base, where the published one has no perplexity at all",
    "low, high": "interval over resampled text windows, the same for every variant; that of a knee also over how far "
    "points lie from any such shape; none: open, beyond the points that were measured",
    "between": "the measured points around a threshold",
    "fits": "every shape's criterion (smaller is better) and the best shape's curve",
    "next": "values of the sweep's setting that would tell more; reports/next.yaml holds them for params.yaml",
    "defects": "what looks wrong with the points of a curve",
}
"""What the keys of an entry mean."""

NAMES = {
    "ten_percent": "+10 % perplexity",
    "two_fold": "2× perplexity",
    "plus_1_5": "+1.5 perplexity",
    "task_5": "5 % task loss",
    "knee": "Knee",
    "kl_knee": "KL knee",
    "phase_point": "Phase point",
    "anchored_point": "Phase point from the base",
}
"""Definitions as a table names them, in its order."""


@dataclass(frozen=True)
class Damages:
    """One metric on the points of one curve: ``values`` ``[points]``, ``replicates`` ``[resamples, points]``."""

    variants: list[Variant]
    values: Floats
    replicates: Floats
    blocks: int


def find_thresholds(inputs: Inputs, results: Results, spec: Spec) -> list[dict[str, Any]]:
    """An entry per curve and corpus."""
    study = _Study(inputs, results, spec)
    return [study.entry(sweep, corpus) for sweep in sweeps(inputs) for corpus in results.blocks]


class _Study:
    def __init__(self, inputs: Inputs, results: Results, spec: Spec) -> None:
        self.inputs, self.results, self.spec = inputs, results, spec
        self.numbers = Numbers(results.rows)
        self._by_task: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {}

    def entry(self, sweep: Sweep, corpus: str) -> dict[str, Any]:
        failed = failure(self.inputs, self.inputs.variants[sweep.on]) is not None
        start = 0.0 if failed else undamaged(self.inputs, sweep.axis, sweep.on)
        ratios = None if failed else self._damages(sweep, "ln_perplexity_ratio", corpus)
        known = set() if ratios is None else {variant.name for variant in ratios.variants}
        missing = {variant.name: failure(self.inputs, variant) for variant in sweep.failed}
        missing |= {variant.name: "not a finite number" for variant in sweep.variants if variant.name not in known}
        found: dict[str, Any] = {
            "sweep": sweep.sweep,
            "curve": sweep.curve,
            "identity": sweep.identity,
            "name": sweep.name,
            "family": sweep.family,
            "method": sweep.method,
            "corpus": corpus,
            "axis": sweep.axis,
            "unit": AXES.get(sweep.axis, sweep.axis),
            "on": sweep.on,
            "base": start,
            "points": len(known),
            "missing": missing,
        }
        if ratios is None:
            none = {"answer": TOO_FEW, "reason": "no variant of this curve was measured"}
            return {**found, **dict.fromkeys(NAMES, none), "fits": {}, "next": None, "defects": []}
        found |= self._of_text(sweep, corpus, start, ratios)
        found["task_5"], fit = self._of_tasks(sweep, start)
        found["fits"] |= {"task_loss": fit} if fit else {}
        names, places = [variant.name for variant in ratios.variants], self._distances(sweep, start, ratios)
        found["defects"] = defects.of_curve(sweep.name, places, names, ratios.values, ratios.replicates)
        found["next"] = next_points.propose(found, sweep)
        return found

    def _of_text(self, sweep: Sweep, corpus: str, start: float, ratios: Damages) -> dict[str, Any]:
        confidence = self.spec.confidence
        curve = self._curve(sweep, start, ratios)
        base = self.numbers.get(BASE, "perplexity", corpus)
        levels = {"ten_percent": TENTH, "two_fold": DOUBLED}
        if base is not None:
            levels["plus_1_5"] = math.log1p(RISE / base.value)
        found: dict[str, Any] = {}
        for name, level in levels.items():
            found[name] = _explained(thresholds.level_point(curve, level, confidence), _times)
        found.setdefault("plus_1_5", {"answer": TOO_FEW, "reason": "the base's perplexity was not measured"})
        fits: dict[str, Any] = {}
        judged = self._judged(sweep, corpus, "ratio", curve)
        for name, among in (("knee", TWO_SEGMENTS), ("phase_point", PHASES), ("anchored_point", ANCHORED)):
            found[name] = judged.knee(among) if judged else few(curve, among)
        fits["ln_perplexity_ratio"] = judged.best() if judged else None
        found["kl_knee"] = {"answer": TOO_FEW, "reason": "no KL was measured"}
        kls = self._damages(sweep, "kl_mean", corpus)
        if kls is not None:
            curve = self._curve(sweep, start, kls)
            judged = self._judged(sweep, corpus, "kl", curve)
            found["kl_knee"] = judged.knee(TWO_SEGMENTS) if judged else few(curve, TWO_SEGMENTS)
            fits["kl_mean"] = judged.best() if judged else None
        found = {name: _on_axis(answer, start, _sign(sweep)) for name, answer in found.items()}
        return {**found, "fits": {name: _fit_on_axis(fit, start, _sign(sweep)) for name, fit in fits.items() if fit}}

    def _judged(self, sweep: Sweep, corpus: str, metric: str, curve: thresholds.Curve) -> Judged | None:
        """The curve with its shapes; nothing where it has a single point."""
        seed = zlib.crc32(f"{self.spec.seed} {sweep.name} {corpus} {metric}".encode())
        return Judged(curve, self.spec.confidence, seed) if len(curve.x) > 2 else None

    def _of_tasks(self, sweep: Sweep, start: float) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """The task threshold and the best shape: tasks have no corpus, so each curve is judged once."""
        if sweep.name not in self._by_task:
            losses = self._damages(sweep, "task_loss", ALL_TASKS)
            if losses is None:
                none = {"answer": TOO_FEW, "reason": "no task on which the base does better than guessing"}
                return none, None
            curve = self._curve(sweep, start, losses)
            found = _explained(thresholds.level_point(curve, TASK_LOSS, self.spec.confidence), _lost)
            judged, sign = self._judged(sweep, "", "tasks", curve), _sign(sweep)
            fit = judged.best() if judged else None
            self._by_task[sweep.name] = (_on_axis(found, start, sign), fit and _fit_on_axis(fit, start, sign))
        return self._by_task[sweep.name]

    def _curve(self, sweep: Sweep, start: float, damages: Damages) -> thresholds.Curve:
        distances = self._distances(sweep, start, damages)
        return thresholds.curve(distances, damages.values, damages.replicates, damages.blocks)

    def _distances(self, sweep: Sweep, start: float, damages: Damages) -> Floats:
        return np.array([_sign(sweep) * (position(variant) - start) for variant in damages.variants])

    def _damages(self, sweep: Sweep, metric: str, dataset: str) -> Damages | None:
        """What the variants of a curve add to the model they alter; None where there is no number.

        A variant without a finite number is left out.
        """
        before = self._measured(sweep.on, metric, dataset)
        if before is None:
            return None
        found = [(variant, self._measured(variant.name, metric, dataset)) for variant in sweep.variants]
        known = [(variant, measured) for variant, measured in found if measured is not None]
        if not known:
            return None
        values = np.array([measured[0] for _, measured in known])
        replicates = np.stack([measured[1] for _, measured in known], axis=1)
        return Damages(
            [variant for variant, _ in known], values - before[0], replicates - before[1][:, None], before[2]
        )

    def _measured(self, variant: str, metric: str, dataset: str) -> tuple[float, Floats, int] | None:
        """Damage of a variant, its resamples and their blocks; None where it was not measured or is not finite.

        The base has none by definition: what its own A/A run says is the noise floor, not a point of a curve.
        """
        if metric == "task_loss":
            found = self.results.task_losses.get(variant)
            if found is None:
                return None
            value, replicates, blocks = found
        else:
            estimate = self.numbers.get(variant, metric, dataset)
            source = self.results.replicates if metric == "ln_perplexity_ratio" else self.results.divergences
            if estimate is None or (variant, dataset) not in source:
                return None
            value, replicates = estimate.value, source[variant, dataset]
            blocks = self.results.blocks[dataset]
        if not math.isfinite(value) or not np.isfinite(replicates).all():
            return None
        return (0.0, np.zeros_like(replicates), blocks) if variant == BASE else (value, replicates, blocks)


def _sign(sweep: Sweep) -> float:
    return -1.0 if sweep.axis in FEWER_IS_WORSE else 1.0


def _explained(found: dict[str, Any], most: Callable[[float], str]) -> dict[str, Any]:
    """Say how far a curve went that reaches no level."""
    if found["answer"] != NO_CLIFF:
        return found
    return {**found, "reason": most(found["most"])}


def _times(ratio: float) -> str:
    return f"the worst variant has {math.exp(min(ratio, 700.0)):.3g} times the base's perplexity"


def _lost(share: float) -> str:
    return f"the worst variant lost {100 * share:.1f} % of the base's accuracy"


def _on_axis(found: dict[str, Any], start: float, sign: float) -> dict[str, Any]:
    """Turn distances from the base into places on the axis; on the bits axis low and high change sides."""
    turned = dict(found)
    for key in ("estimate", "low", "high"):
        if found.get(key) is not None:
            turned[key] = start + sign * found[key]
    if "between" in found:
        turned["between"] = sorted(start + sign * distance for distance in found["between"])
    if sign < 0 and "low" in turned:
        turned["low"], turned["high"] = turned["high"], turned["low"]
    return turned


def _fit_on_axis(fit: dict[str, Any], start: float, sign: float) -> dict[str, Any]:
    return {**fit, "x": [start + sign * distance for distance in fit["x"]]}


def curves_of(thresholds_found: Sequence[dict[str, Any]], corpus: str) -> list[dict[str, Any]]:
    """Entries of one corpus whose curves have, or were to have, more than one point."""
    return [
        entry for entry in thresholds_found if entry["corpus"] == corpus and entry["points"] + len(entry["missing"]) > 1
    ]
