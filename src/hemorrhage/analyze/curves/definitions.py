"""The named definitions of a threshold, applied to every curve of the study."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from hemorrhage.analyze.axes import AXES, FEWER_IS_WORSE, Sweep, failure, position, sweeps, undamaged_position
from hemorrhage.analyze.curves import defects, next_points, steps, thresholds
from hemorrhage.analyze.curves.entries import NO_CLIFF, TOO_FEW, CurveEntry, Fit, LabelBits, Threshold
from hemorrhage.analyze.curves.thresholds import ANCHORED, PHASES, TWO_SEGMENTS, Curve, FittedCurve, few
from hemorrhage.analyze.inputs import BASE, Inputs, Variant
from hemorrhage.analyze.rows import draws
from hemorrhage.analyze.rows.results import Results
from hemorrhage.analyze.rows.tasks import ALL_TASKS
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats.bootstrap import Floats

METRICS = ("ln_perplexity_ratio", "kl_mean", "accuracy_loss_share")
"""Damages that curves are made of, all 0 at the base; ``accuracy_loss_share``: the share of the base's
mean accuracy that is lost."""

DOUBLED = math.log(2)
TENTH = math.log(1.1)
RISE = 1.5
"""Points of perplexity: near lossless up to here, says the study's follow-up."""
TASK_LOSS = 0.05

DEFINITIONS = {
    "ten_percent": "where the perplexity first reaches 1.1 times the base's, by a monotone cubic of its logarithm",
    "two_fold": "where the perplexity first reaches twice the base's, by the same",
    "plus_1_5": "where the perplexity first lies 1.5 above the base's, by the same",
    "task_5": "where the mean accuracy over tasks has first lost 5 % of the base's, by a monotone cubic",
    "knee": "where two joined lines through the base bend that describe the log-perplexity ratio better than no "
    "damage, a line, powers, exponentials and curves that saturate (logistic, Hill, Richards): by Schwarz's criterion, "
    "and by more than a curve without a knee gains by chance (p_smooth)",
    "kl_knee": "the same on the mean KL",
    "phase_point": "where a power law of the distance turns into an exponential, by the same rule, on the "
    "log-perplexity ratio: the form of the study's follow-up, with and without its square; the interval is over both",
    "anchored_point": "the same form made to start at the base, where the published one has no perplexity at all",
    "low, high": "interval over resampled text windows, the same for every variant, and over calibration draws where a "
    "method calibrates; that of a level also over all that "
    "a curve can do between its points, from one value of its setting to another (whole bits, whole blocks); "
    "that of a knee also over how far points lie from any such shape; none: open, beyond the points that were measured",
    "label_bits": "the same threshold in the bits of the setting, where the axis has the measured bits per parameter",
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


def find_thresholds(inputs: Inputs, results: Results, spec: Spec) -> list[CurveEntry]:
    """Make an entry per curve and corpus."""
    finder = _Finder(inputs, results, spec)
    return [finder.entry(sweep, corpus) for sweep in sweeps(inputs) for corpus in results.blocks]


class _Finder:
    def __init__(self, inputs: Inputs, results: Results, spec: Spec) -> None:
        self.inputs, self.results, self.spec = inputs, results, spec
        self.numbers = results.numbers
        self.draws = draws.measure(inputs, self.numbers)
        self._by_task: dict[str, tuple[Threshold, Fit | None]] = {}

    def entry(self, sweep: Sweep, corpus: str) -> CurveEntry:
        failed = failure(self.inputs, self.inputs.variants[sweep.on]) is not None
        start = 0.0 if failed else undamaged_position(self.inputs, sweep.axis, sweep.on)
        ratios = None if failed else self._damages(sweep, "ln_perplexity_ratio", corpus)
        known = set() if ratios is None else {variant.name for variant in ratios.variants}
        missing = {variant.name: failure(self.inputs, variant) or "" for variant in sweep.failed}
        missing |= {variant.name: "not a finite number" for variant in sweep.variants if variant.name not in known}
        none = Threshold(TOO_FEW, "no variant of this curve was measured")
        entry = CurveEntry(
            sweep=sweep.sweep,
            curve=sweep.curve,
            identity=sweep.identity,
            name=sweep.name,
            family=sweep.family,
            method=sweep.method,
            corpus=corpus,
            axis=sweep.axis,
            unit=AXES.get(sweep.axis, sweep.axis),
            on=sweep.on,
            base=start,
            points=len(known),
            missing=missing,
            thresholds=dict.fromkeys(NAMES, none),
            fits={},
            next=None,
            defects=[],
        )
        return entry if ratios is None else self._with_thresholds(entry, sweep, ratios)

    def _with_thresholds(self, entry: CurveEntry, sweep: Sweep, ratios: Damages) -> CurveEntry:
        """Complete the entry of a curve with points."""
        corpus, start = entry.corpus, entry.base
        located, fits = self._of_text(sweep, corpus, start, ratios)
        located["task_5"], fits["accuracy_loss_share"] = self._of_tasks(sweep, start)
        located = _with_labels(sweep, start, located)
        names, distances = [variant.name for variant in ratios.variants], self._distances(sweep, start, ratios)
        return replace(
            entry,
            thresholds=located,
            fits={metric: fit for metric, fit in fits.items() if fit is not None},
            next=next_points.propose(sweep, start, located),
            defects=defects.of_curve(sweep.name, distances, names, ratios.values, ratios.replicates),
        )

    def _of_text(
        self, sweep: Sweep, corpus: str, start: float, ratios: Damages
    ) -> tuple[dict[str, Threshold], dict[str, Fit | None]]:
        """Find the thresholds and the best shapes on one corpus, by definition and metric."""
        curve, values, whole = self._curve(sweep, start, ratios), _values(sweep, start), _is_whole(sweep)
        base = self.numbers.get(BASE, "perplexity", corpus)
        levels = {"ten_percent": TENTH, "two_fold": DOUBLED}
        if base is not None:
            levels["plus_1_5"] = math.log1p(RISE / base.value)
        located = {
            name: _explain(thresholds.level_point(curve, level, self.spec.confidence, values, whole), _times)
            for name, level in levels.items()
        }
        located.setdefault("plus_1_5", Threshold(TOO_FEW, "the base's perplexity was not measured"))
        fitted = self._fitted(sweep, corpus, "ratio", curve)
        for name, among in (("knee", TWO_SEGMENTS), ("phase_point", PHASES), ("anchored_point", ANCHORED)):
            located[name] = fitted.knee(among) if fitted else few(curve, among)
        fits = {"ln_perplexity_ratio": fitted.best() if fitted else None}
        kls = self._damages(sweep, "kl_mean", corpus)
        if kls is None:
            located["kl_knee"] = Threshold(TOO_FEW, "no KL was measured")
        else:
            curve = self._curve(sweep, start, kls)
            fitted = self._fitted(sweep, corpus, "kl", curve)
            located["kl_knee"] = fitted.knee(TWO_SEGMENTS) if fitted else few(curve, TWO_SEGMENTS)
            fits["kl_mean"] = fitted.best() if fitted else None
        sign = _sign(sweep)
        return (
            {name: threshold.on_axis(start, sign) for name, threshold in located.items()},
            {metric: fit and fit.on_axis(start, sign) for metric, fit in fits.items()},
        )

    def _fitted(self, sweep: Sweep, corpus: str, metric: str, curve: Curve) -> FittedCurve | None:
        """Fit the shapes to a curve; None where it has a single point."""
        seed = zlib.crc32(f"{self.spec.seed} {sweep.key} {corpus} {metric}".encode())
        return FittedCurve(curve, self.spec.confidence, seed) if len(curve.x) > 2 else None

    def _of_tasks(self, sweep: Sweep, start: float) -> tuple[Threshold, Fit | None]:
        """Find the task threshold and the best shape: tasks have no corpus, so each curve is fitted once."""
        if sweep.name not in self._by_task:
            losses = self._damages(sweep, "accuracy_loss_share", ALL_TASKS)
            if losses is None:
                return Threshold(TOO_FEW, "no task on which the base does better than guessing"), None
            curve = self._curve(sweep, start, losses)
            values, whole = _values(sweep, start), _is_whole(sweep)
            crossed = thresholds.level_point(curve, TASK_LOSS, self.spec.confidence, values, whole)
            threshold = _explain(crossed, _lost)
            fitted, sign = self._fitted(sweep, "", "tasks", curve), _sign(sweep)
            fit = fitted.best().on_axis(start, sign) if fitted else None
            self._by_task[sweep.name] = (threshold.on_axis(start, sign), fit)
        return self._by_task[sweep.name]

    def _curve(self, sweep: Sweep, start: float, damages: Damages) -> Curve:
        distances = self._distances(sweep, start, damages)
        seed, spread = draws.seed_of(sweep.key, self.spec.seed), self.draws.of_curve(sweep)
        replicates = draws.scatter(damages.replicates, damages.values, spread, seed)
        return thresholds.make_curve(distances, damages.values, replicates, damages.blocks)

    def _distances(self, sweep: Sweep, start: float, damages: Damages) -> Floats:
        return np.array([_sign(sweep) * (position(variant) - start) for variant in damages.variants])

    def _damages(self, sweep: Sweep, metric: str, dataset: str) -> Damages | None:
        """Measure what the variants of a curve add to the model they alter; None where there is no number.

        A variant without a finite number is left out.
        """
        before = self._measured(sweep.on, metric, dataset)
        if before is None:
            return None
        numbers = [(variant, self._measured(variant.name, metric, dataset)) for variant in sweep.variants]
        known = [(variant, measured) for variant, measured in numbers if measured is not None]
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
        if metric == "accuracy_loss_share":
            loss = self.results.task_losses.get(variant)
            if loss is None:
                return None
            value, replicates, blocks = loss
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


def _values(sweep: Sweep, start: float) -> Floats | None:
    """Return the distances from the start of all values that the setting of a curve can have; None: any."""
    possible = steps.positions(sweep, start)
    if possible is None:
        return None
    distances = _sign(sweep) * (possible - start)
    return distances[distances >= 0]


def _is_whole(sweep: Sweep) -> bool:
    """Tell whether there is nothing between two values of a curve's setting; group sizes lie between two widths."""
    return sweep.axis != "bits"


def _with_labels(sweep: Sweep, start: float, located: Mapping[str, Threshold]) -> dict[str, Threshold]:
    """Complete thresholds on the axis of measured bits with the bits of the setting; those of the start are its own."""
    widths = steps.line(sweep.variants) if sweep.axis == "bits" else None
    if widths is None:
        return dict(located)

    def label(position: float | None) -> float | None:
        return position if position is None or math.isclose(position, start) else widths.bits(position)

    return {
        name: replace(each, label_bits=LabelBits(widths.bits(each.estimate), label(each.low), label(each.high)))
        if each.is_located
        else each
        for name, each in located.items()
    }


def _explain(threshold: Threshold, largest: Callable[[float], str]) -> Threshold:
    """Say how far a curve went that reaches no level."""
    if threshold.answer != NO_CLIFF or threshold.most is None:
        return threshold
    return replace(threshold, reason=largest(threshold.most))


def _times(ratio: float) -> str:
    return f"the worst variant has {math.exp(min(ratio, 700.0)):.3g} times the base's perplexity"


def _lost(share: float) -> str:
    return f"the worst variant lost {100 * share:.1f} % of the base's accuracy"
