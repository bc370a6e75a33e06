"""Check whether a variant stays inside a budget of damage.

A budget says how much of each kind of damage is tolerable. A variant is inside when an upper bound of every kind, on
every corpus and every suite of tasks, lies below its limit. That is an intersection-union test (Berger 1982,
Technometrics 24:295): each bound may be wrong with the whole error rate, however many limits there are. Over the
variants it is different: among many, the luckiest looks best, so the bounds hold for all judged variants together
(Bonferroni). Of one variant, the bound is the upper end of its interval.

Where a corpus has categories, each is checked like a corpus, so that the worst decides; one with fewer than FEW_WINDOWS
windows is not checked.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd
from scipy import stats

from hemorrhage.analyze.inputs import BASE
from hemorrhage.analyze.protocol import category_of, strip_protocol
from hemorrhage.runtime.command import CANNOT_TELL, NO, NOT_MEASURED, YES

INSIDE = "inside"
OUTSIDE = "outside"
UNRESOLVED = "not resolved"
UNMEASURED = "not measured"

FEW_WINDOWS = 8
"""Fewer windows of a category say nothing: of simulated ones on the limit, 23 to 26 % are called inside by 3 windows,
9 to 12 % by 8, 7 to 9 % by 16."""


@dataclass(frozen=True)
class DamageKind:
    """A kind of damage: the metric it is read from, what people call it, and what it rests on (windows or items)."""

    metric: str
    name: str
    unit: str


DAMAGE_KINDS = {
    "kl": DamageKind("kl_mean", "KL, nats per token", "windows"),
    "flips": DamageKind("mean_flips", "share of answers that flip", "items"),
    "accuracy_loss_points": DamageKind("accuracy_loss_points", "accuracy lost, points", "items"),
    "perplexity": DamageKind("ln_perplexity_ratio", "perplexity, times the base's", "windows"),
}
"""Key of ``analyze.budget`` -> what it limits."""


@dataclass(frozen=True)
class Check:
    """One limit against one number. ``bound`` is the upper one that is compared; ``needed``: about so many windows or
    items would tell, if the estimate stayed; all numbers in the budget's own unit (perplexity as a ratio)."""

    kind: str
    metric: str
    dataset: str
    limit: float
    answer: str
    reason: str
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    bound: float | None = None
    n: int = 0
    needed: int | None = None
    failed: bool = False

    @property
    def used(self) -> float:
        """Share of the limit that the bound uses up; infinite where nothing was measured."""
        if self.bound is None:
            return math.inf
        if self.kind == "perplexity":
            return math.log(self.bound) / math.log(self.limit)
        return self.bound / self.limit

    def as_json(self) -> dict[str, str | float | int]:
        """Return plain content, with six significant digits."""
        return {
            key: float(f"{value:.6g}") if isinstance(value, float) else value
            for key, value in asdict(self).items()
            if value is not None and key != "failed"
        }

    def __str__(self) -> str:
        """``kl_mean[...] on prose: 0.12 (0.1 to 0.14; upper bound 0.15) against at most 0.1: outside``."""
        numbers = "no number"
        if self.estimate is not None:
            numbers = (
                f"{self.estimate:.4g} ({_shown(self.low)} to {_shown(self.high)}; upper bound {_shown(self.bound)})"
            )
        # The ratio is shown, not its logarithm.
        metric = self.metric.removeprefix("ln_") if self.kind == "perplexity" else self.metric
        return f"{metric} on {self.dataset}: {numbers}, limit {self.limit:g}: {self.answer}{self._why()}"

    def _why(self) -> str:
        return f", {self.reason}" if self.reason else ""


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


def measured_variants(rows: pd.DataFrame) -> list[str]:
    """Return the variants that damage was measured of, in their order."""
    metrics = {kind.metric for kind in DAMAGE_KINDS.values()}
    measured = rows[(rows["variant"] != BASE) & (rows["status"] == "ok") & (rows["family"] != "decode")]
    return list(dict.fromkeys(measured[measured["metric"].map(strip_protocol).isin(metrics)]["variant"]))


def judge(
    rows: pd.DataFrame, variants: Sequence[str], budget: Mapping[str, float], confidence: float, together: int
) -> dict[str, list[Check]]:
    """Check each variant against a budget, in the order of DAMAGE_KINDS and of the rows.

    ``budget``: key of DAMAGE_KINDS -> limit. ``together``: the number of variants for which the bounds hold together.
    """
    kinds = {DAMAGE_KINDS[key].metric: key for key in DAMAGE_KINDS if key in budget}
    metrics = rows["metric"].map(_whole)
    limited = rows[rows["variant"].isin(list(variants)) & metrics.isin(kinds) & (rows["family"] != "decode")]
    checks: dict[str, list[Check]] = {variant: [] for variant in variants}
    for row in limited.to_dict("records"):
        key, category = kinds[_whole(row["metric"])], category_of(row["metric"])
        if category is None or row["n"] >= FEW_WINDOWS:
            named = row if category is None else {**row, "dataset": f"{row['dataset']} ({category[1]})"}
            checks[row["variant"]].append(check(key, named, budget[key], confidence, together))
    return {variant: _complete(of_variant, budget) for variant, of_variant in checks.items()}


FROM_BEST = (YES, CANNOT_TELL, NOT_MEASURED, NO)
"""Exit codes from the best to the worst: of variants that must all be inside the worst is the answer, where one is
enough the best."""


def exit_code(checks: Sequence[Check]) -> int:
    """Return the exit code for a variant: a limit that is broken decides, whatever else is not known."""
    answers = {check.answer for check in checks}
    if OUTSIDE in answers:
        return NO
    if UNMEASURED in answers:
        return NOT_MEASURED
    return YES if answers <= {INSIDE} else CANNOT_TELL


def _whole(metric: str) -> str:
    """Return a metric without its protocol and category."""
    category = category_of(metric)
    return strip_protocol(metric) if category is None else category[0]


def few_windows(rows: pd.DataFrame) -> dict[str, int]:
    """Return the categories that are not checked for their few windows: ``corpus (category)`` -> number of windows."""
    few: dict[str, int] = {}
    for metric, dataset, n in rows[["metric", "dataset", "n"]].drop_duplicates().itertuples(index=False, name=None):
        category = category_of(metric)
        if category is not None and n < FEW_WINDOWS:
            few[f"{dataset} ({category[1]})"] = int(n)
    return few


def _complete(checks: Sequence[Check], budget: Mapping[str, float]) -> list[Check]:
    """Drop suites that say nothing where another of the kind does, and add the limits that nothing was measured for."""
    answered = {each.kind for each in checks if each.answer != UNMEASURED}
    # A suite on which the base guesses says nothing; another may.
    kept = [each for each in checks if not _says_nothing(each) or each.kind not in answered or each.failed]
    measured = {each.kind for each in kept}
    kept += [
        Check(key, kind.metric, "any data set", budget[key], UNMEASURED, "it was not measured")
        for key, kind in DAMAGE_KINDS.items()
        if key in budget and key not in measured
    ]
    return sorted(kept, key=lambda each: list(DAMAGE_KINDS).index(each.kind))


def _says_nothing(checked: Check) -> bool:
    return checked.answer == UNMEASURED and DAMAGE_KINDS[checked.kind].unit == "items"


def check(kind: str, row: Mapping[Any, Any], limit: float, confidence: float, together: int) -> Check:
    """Compare a limit with a row of hemorrhage.parquet."""
    common = (kind, str(row["metric"]), str(row["dataset"]), limit)
    if row["status"] != "ok":
        return Check(*common, UNMEASURED, str(row["reason"]), failed=row["status"] == "failed")
    is_ratio = kind == "perplexity"
    most = math.log(limit) if is_ratio else limit
    estimate, low, high, n = (row[name] for name in ("estimate", "low", "high", "n"))
    if not math.isfinite(low) or not math.isfinite(high):
        return Check(*common, UNMEASURED, "it has no interval", estimate=_in_unit(estimate, is_ratio), n=int(n))
    unit = DAMAGE_KINDS[kind].unit
    least, bound = _bounds(kind, estimate, low, high, widening(confidence, together, int(n), unit))
    inside = Check(
        *common,
        INSIDE,
        "",
        estimate=_in_unit(estimate, is_ratio),
        low=_in_unit(low, is_ratio),
        high=_in_unit(high, is_ratio),
        bound=_in_unit(bound, is_ratio),
        n=int(n),
    )
    if bound < most:
        return inside
    if least >= most:
        return replace(inside, answer=OUTSIDE)
    needed = _needed(int(n), estimate, least, bound, most)
    reason = f"about {needed:,} {unit} needed, {int(n)} measured" if needed else "it lies on the limit"
    return replace(inside, answer=UNRESOLVED, reason=reason, needed=needed)


def _in_unit(value: float, is_ratio: bool) -> float:
    """Return a number in the budget's unit."""
    return math.exp(min(value, 700.0)) if is_ratio else float(value)


def _needed(n: int, estimate: float, least: float, bound: float, limit: float) -> int | None:
    """Blocks at which the limit would fall out of the interval, whose width goes with one over their square root."""
    if estimate == limit:
        return None
    width, distance = (bound - estimate, limit - estimate) if estimate < limit else (estimate - least, estimate - limit)
    return max(math.ceil(n * (width / distance) ** 2), n + 1)


def _bounds(kind: str, estimate: float, low: float, high: float, wider: float) -> tuple[float, float]:
    """Move an interval's ends out by a factor; of KL, which is positive and skewed, on a logarithmic scale."""
    if kind == "kl" and 0 < low <= estimate <= high:
        return estimate * (low / estimate) ** wider, estimate * (high / estimate) ** wider
    return estimate - wider * (estimate - low), estimate + wider * (high - estimate)


@functools.cache
def widening(confidence: float, together: int, n: int, unit: str) -> float:
    """Factor on the half-width of a two-sided interval that makes its end a bound for ``together`` variants at once.

    One-sided (1 - confidence) / together instead of (1 - confidence) / 2, by Student's quantiles; never below 1. Damage
    is skewed over windows of text, so that far out a mean of n of them strays like one of half as many: with n - 1
    degrees of freedom 11 to 17 % of simulated studies with 16 to 24 windows called a variant on the limit inside where
    5 % may; with half of them 4 to 8 % do (tests/analyze/test_budget.py).
    """
    if together <= 2:
        return 1.0
    error = 1 - confidence
    freedom = max((n - 1) / 2 if unit == "windows" else n - 1, 1)
    return max(float(stats.t.isf(error / together, freedom) / stats.t.isf(error / 2, max(n - 1, 1))), 1.0)
