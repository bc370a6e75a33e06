"""Check whether variants stay inside a budget of damage.

A budget says how much of each kind of damage is tolerable. A variant is inside when an upper bound of every kind, on
every corpus and every suite of tasks, lies below its limit. That is an intersection-union test (Berger 1982,
Technometrics 24:295): each bound may be wrong with the whole error rate, however many limits there are. Over the
variants it is different: among many, the luckiest looks best. So the bounds hold together for all variants that could
be picked instead of each other, a group; a variant in no group, such as a control, takes no share of the error.

Within a group of m, a tenth of the error finds the variants that are outside beyond doubt: a lower bound at that tenth
over m lies above a limit (Romano, Shaikh and Wolf 2014, Econometrica 82:1979). The rest of the error is shared by the
others, step by step: those that are inside at their share leave theirs to the ones that remain (Holm 1979). This needs
no assumption about how variants vary together. ``python -m benchmarks.gate`` measures how often the answers are wrong.

Where a corpus has categories, each is checked like a corpus, so that the worst decides; one with fewer than FEW_WINDOWS
windows is not checked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
from scipy import stats

from hemorrhage.analyze.inputs import BASE
from hemorrhage.analyze.protocol import CONFIRMATION, category_of, strip_protocol, without_stage
from hemorrhage.analyze.stats import bounds
from hemorrhage.runtime.command import CANNOT_TELL, NO, NOT_MEASURED, YES

INSIDE = "inside"
OUTSIDE = "outside"
UNRESOLVED = "not resolved"
UNMEASURED = "not measured"

FEW_WINDOWS = 8
"""Fewer windows of a category are not checked: their bounds are so wide that they decide little but outliers."""

SCREENED = 0.1
"""Share of the error that finds the variants that are outside beyond doubt."""

CONFIRMED = 1.5
"""A confirmation is sized for a variant whose damage is the limit divided by this."""


@dataclass(frozen=True)
class DamageKind:
    """A kind of damage: the metric it is read from, what people call it, and what it rests on (windows or items)."""

    metric: str
    name: str
    unit: str


DAMAGE_KINDS = {
    "kl": DamageKind("kl_mean", "KL, nats per token", "windows"),
    "kl_p99": DamageKind("kl_p99", "99th percentile of KL, nats", "windows"),
    "kl_worst_window": DamageKind("kl_worst_window", "KL of the worst window, nats per token", "windows"),
    "flips": DamageKind("mean_flips", "share of answers that flip", "items"),
    "accuracy_loss_points": DamageKind("accuracy_loss_points", "accuracy lost, points", "items"),
    "perplexity": DamageKind("ln_perplexity_ratio", "perplexity, times the base's", "windows"),
}
"""Key of ``analyze.budget`` -> what it limits."""

OBSERVED = ("kl_worst_window",)
"""Kinds of which the number itself is compared: a maximum has no bound, whatever is measured."""


@dataclass(frozen=True)
class Check:
    """One limit against one number. ``bound`` is the upper one that is compared, wrong with probability ``level``;
    ``needed``: about so many fresh windows or items decide in four of five cases; all numbers in the budget's own unit
    (perplexity as a ratio)."""

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
    level: float | None = None

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
            interval = f"({_shown(self.low)} to {_shown(self.high)}; upper bound {_shown(self.bound)})"
            numbers = f"{self.estimate:.4g}" if self.kind in OBSERVED else f"{self.estimate:.4g} {interval}"
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


@dataclass(frozen=True)
class _Limited:
    """A number and its limit, in the units of the row (perplexity as a logarithm)."""

    kind: str
    row: Mapping[str, Any]
    limit: float
    confidence: float

    @property
    def most(self) -> float:
        return math.log(self.limit) if self.kind == "perplexity" else self.limit

    @property
    def n(self) -> int:
        return int(self.row["n"])

    @property
    def estimate(self) -> float:
        return float(self.row["estimate"])

    @property
    def problem(self) -> str:
        """Why there is nothing to compare; empty where there is."""
        if self.row["status"] != "ok":
            return str(self.row["reason"])
        if self.kind not in OBSERVED and not math.isfinite(float(self.row["low"]) + float(self.row["high"])):
            return "it has no interval"
        return ""

    @property
    def trials(self) -> float:
        """Independent items; of rows of earlier versions, all items."""
        trials = float(self.row.get("trials", math.nan))
        return trials if math.isfinite(trials) else float(self.n)

    @property
    def error(self) -> float:
        """Standard error; where the row has none, as for a percentile, from the longer half of its interval."""
        error = float(self.row.get("error", math.nan))
        if math.isfinite(error):
            return error
        half = max(self.estimate - float(self.row["low"]), float(self.row["high"]) - self.estimate)
        return half / float(stats.t.isf((1 - self.confidence) / 2, max(self.n - 1, 1)))

    def shares(self) -> tuple[float, float]:
        """Return the shares of items that were lost and won, from their difference and its standard error."""
        loss, error = self.estimate / 100, self.error / 100
        changed = min(max(error**2 * self.trials + loss**2, abs(loss)), 1.0)
        return (changed + loss) / 2, (changed - loss) / 2

    def bounds(self, level: float) -> tuple[float, float]:
        """Return a lower and an upper bound, each wrong with probability ``level``."""
        if self.kind in OBSERVED:
            return self.estimate, self.estimate
        if self.kind == "flips":
            return bounds.share_bounds(self.estimate, self.trials, level)
        if self.kind == "accuracy_loss_points":
            low, high = bounds.difference_bounds(*self.shares(), self.trials, level)
            return 100 * low, 100 * high
        if self.n < 2:
            return -math.inf, math.inf
        return bounds.mean_bounds(self.estimate, self.error, self.n, level)

    def is_outside(self, level: float) -> bool:
        return not self.problem and self.bounds(level)[0] >= self.most

    def is_inside(self, level: float) -> bool:
        return not self.problem and self.bounds(level)[1] < self.most

    def needed(self, level: float) -> int | None:
        """Return how many fresh windows or items decide; None: no number does."""
        if self.kind in OBSERVED:
            return None
        if DAMAGE_KINDS[self.kind].unit == "windows":
            return bounds.windows_needed(self.estimate, self.error, self.n, self.most, level) if self.n > 1 else None
        # Items of a group are worth less than independent ones.
        worth = self.n / self.trials
        if self.kind == "flips":
            items = bounds.items_needed(self.estimate, self.trials, self.most, level)
        else:
            # Of no change at all, as of one item, something is still unknown.
            error = max(self.error, 100 / self.trials)
            items = bounds.windows_needed(self.estimate, error, max(round(self.trials), 2), self.most, level)
        return None if items is None else math.ceil(items * worth)

    def confirming(self, level: float) -> int | None:
        """Return how many fresh windows or items call a variant inside whose damage is the limit over CONFIRMED."""
        wanted = self.most / CONFIRMED
        if self.kind in OBSERVED:
            return None
        if DAMAGE_KINDS[self.kind].unit == "windows":
            # The spread over windows grows with damage: next to none says nothing about it.
            if self.estimate < wanted / 4:
                return None
            spread = self.error * math.sqrt(self.n) * wanted / self.estimate
            return bounds.windows_to_confirm(wanted, spread, self.most, level)
        worth = self.n / self.trials
        if self.kind == "flips":
            items = bounds.items_to_confirm(wanted, self.most, level)
        else:
            spread = max(self.error * math.sqrt(self.trials), math.sqrt(100 * wanted))
            items = bounds.windows_to_confirm(wanted, spread, self.most, level)
        return None if items is None else math.ceil(items * worth)

    def check(self, level: float, level_outside: float) -> Check:
        """Compare; an upper bound at ``level``, a lower one at ``level_outside``."""
        common = (self.kind, str(self.row["metric"]), str(self.row["dataset"]), self.limit)
        if self.problem:
            is_ok = self.row["status"] == "ok"
            return Check(
                *common,
                UNMEASURED,
                self.problem,
                estimate=self._in_unit(self.estimate) if is_ok else None,
                n=self.n if is_ok else 0,
                failed=self.row["status"] == "failed",
            )
        is_observed = self.kind in OBSERVED
        answer, reason, needed = INSIDE, "", None
        if self.is_outside(level_outside):
            answer = OUTSIDE
        elif not self.is_inside(level):
            unit, needed = DAMAGE_KINDS[self.kind].unit, self.needed(level)
            answer = UNRESOLVED
            reason = (
                f"about {needed:,} fresh {unit} would tell, {self.n} measured" if needed else "no number would tell"
            )
        return Check(
            *common,
            answer,
            reason,
            estimate=self._in_unit(self.estimate),
            low=None if is_observed else self._in_unit(float(self.row["low"])),
            high=None if is_observed else self._in_unit(float(self.row["high"])),
            bound=self._in_unit(self.bounds(level)[1]),
            n=self.n,
            needed=needed,
            level=None if is_observed else level,
        )

    def _in_unit(self, value: float) -> float:
        """Return a number in the budget's unit."""
        return math.exp(min(value, 700.0)) if self.kind == "perplexity" else float(value)


def needed(kind: str, row: Mapping[str, Any], limit: float, level: float, confidence: float = 0.95) -> int | None:
    """Return how many fresh windows or items decide about a limit in four of five cases; None: no number does.

    ``kind``: key of DAMAGE_KINDS, ``row``: of hemorrhage.parquet, what was measured so far; ``level``: at which the
    fresh bound will be computed, such as ``Check.level``; ``confidence`` of the row's interval.
    """
    return _Limited(kind, row, limit, confidence).needed(level)


def confirming(kind: str, row: Mapping[str, Any], limit: float, level: float, confidence: float = 0.95) -> int | None:
    """Return how many fresh windows or items call a variant inside, in four of five cases, whose damage is the limit
    over CONFIRMED; None: too many, or the variant is hardly damaged.

    ``row``: of a variant that was measured, for how much windows differ; the rest as for ``needed``.
    """
    return _Limited(kind, row, limit, confidence).confirming(level)


def least_items(kind: str, limit: float, level: float) -> int | None:
    """Return how many items do that at least, before anything is measured: independent ones, and none that is won."""
    wanted = limit / CONFIRMED
    if kind == "flips":
        return bounds.items_to_confirm(wanted, limit, level)
    return bounds.windows_to_confirm(wanted, math.sqrt(100 * wanted), limit, level)


def judge(
    rows: pd.DataFrame,
    variants: Sequence[str],
    budget: Mapping[str, float],
    confidence: float,
    groups: Sequence[Sequence[str]],
) -> dict[str, list[Check]]:
    """Check each variant against a budget, in the order of DAMAGE_KINDS and of the rows.

    ``budget``: key of DAMAGE_KINDS -> limit. ``groups``: variants that could be picked instead of each other, for which
    the bounds hold together; of one in no group they hold for it alone.
    """
    limited = _limited(deciding(rows), variants, budget, confidence)
    levels = dict.fromkeys(variants, (1 - confidence, 1 - confidence))
    for group in groups:
        members = {variant: limited[variant] for variant in group if variant in limited}
        levels |= _levels(members, 1 - confidence)
    return {
        variant: _complete([each.check(*levels[variant]) for each in of_variant], budget)
        for variant, of_variant in limited.items()
    }


def _limited(
    rows: pd.DataFrame, variants: Sequence[str], budget: Mapping[str, float], confidence: float
) -> dict[str, list[_Limited]]:
    """Collect the numbers that a budget limits, by variant."""
    kinds = {DAMAGE_KINDS[key].metric: key for key in DAMAGE_KINDS if key in budget}
    metrics = rows["metric"].map(_whole)
    chosen = rows[rows["variant"].isin(list(variants)) & metrics.isin(kinds) & (rows["family"] != "decode")]
    limited: dict[str, list[_Limited]] = {variant: [] for variant in variants}
    for row in chosen.to_dict("records"):
        key, category = kinds[_whole(row["metric"])], category_of(row["metric"])
        if category is None or row["n"] >= FEW_WINDOWS:
            dataset = row["dataset"] if category is None else f"{row['dataset']} ({category[1]})"
            named = {str(column): value for column, value in row.items()} | {"dataset": dataset}
            limited[row["variant"]].append(_Limited(key, named, budget[key], confidence))
    return limited


def _levels(members: Mapping[str, Sequence[_Limited]], error: float) -> dict[str, tuple[float, float]]:
    """Return the levels of the upper and of the lower bounds of each variant of a group."""
    if len(members) < 2:
        return dict.fromkeys(members, (error, error))
    certain = SCREENED * error / len(members)
    left = [name for name, numbers in members.items() if not any(each.is_outside(certain) for each in numbers)]
    shared = (1 - SCREENED) * error
    levels = dict.fromkeys(members, shared / max(len(left), 1))
    while left:
        level = shared / len(left)
        levels |= dict.fromkeys(left, level)
        remaining = [name for name in left if not all(each.problem or each.is_inside(level) for each in members[name])]
        if len(remaining) == len(left):
            break
        left = remaining
    return {name: (level, error / len(members)) for name, level in levels.items()}


@dataclass(frozen=True)
class Number:
    """What a limit is compared with, whatever the limit is: in the row's own unit, perplexity as a logarithm.

    ``trials``: independent items. ``is_measured``: whether there is something to compare.
    """

    kind: str
    dataset: str
    estimate: float
    error: float
    n: int
    trials: float
    is_measured: bool


def numbers(
    rows: pd.DataFrame, variants: Sequence[str], budget: Mapping[str, float], confidence: float
) -> dict[str, list[Number]]:
    """Return what ``judge`` compares of each variant, for a page that tries other limits of the same kinds."""
    limited = _limited(deciding(rows), variants, budget, confidence)
    compared = {}
    for variant, of_variant in limited.items():
        checks = [(each, each.check(1 - confidence, 1 - confidence)) for each in of_variant]
        kept = _complete([check for _, check in checks], budget)
        of_check = {id(check): _number(each) for each, check in checks}
        compared[variant] = [
            of_check.get(id(check)) or Number(check.kind, check.dataset, 0.0, 0.0, 0, 0.0, is_measured=False)
            for check in kept
        ]
    return compared


def _number(limited: _Limited) -> Number:
    if limited.problem:
        return Number(limited.kind, str(limited.row["dataset"]), 0.0, 0.0, 0, 0.0, is_measured=False)
    facts = (limited.estimate, limited.error, limited.n, limited.trials)
    return Number(limited.kind, str(limited.row["dataset"]), *facts, is_measured=True)


def standard_bounds(n: int, level: float) -> tuple[float, float]:
    """Return the bounds of a mean of ``n`` windows that is 0 with a standard error of 1; infinite for one window."""
    return bounds.mean_bounds(0.0, 1.0, n, level) if n > 1 else (-math.inf, math.inf)


def deciding(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that verdicts rest on: where a variant was confirmed, those of the confirmation.

    They have the metrics' own names then, and those of the evaluation, by which the variant was chosen, are left out.
    """
    plain = rows["metric"].map(lambda metric: without_stage(metric, CONFIRMATION))
    if plain.isna().all():
        return rows
    fresh = rows[plain.notna()].assign(metric=plain.dropna())
    confirmed = set(zip(fresh["variant"], fresh["dataset"], fresh["metric"].map(strip_protocol), strict=True))
    others = rows[plain.isna()]
    names = zip(others["variant"], others["dataset"], others["metric"].map(strip_protocol), strict=True)
    return pd.concat([others[[name not in confirmed for name in names]], fresh])


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
