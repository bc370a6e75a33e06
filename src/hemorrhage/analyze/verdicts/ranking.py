"""The variants in the order of their damage, and which of them the texts that were measured can't order.

All pairs are compared on each corpus, by the logarithm of the ratio of their mean KL, as a window that is hard for one
is hard for the other. It is weighed with its spread in the resamples, which are the same windows for both, and with how
far other calibration draws would move either side (hemorrhage.analyze.rows.draws), by Student's t of windows - 1
degrees of freedom, or with draws of Welch and Satterthwaite's (Biometrics 1946 2:110), and Holm's correction
(Scandinavian Journal of Statistics 1979 6:65). So the chance that any two variants of equal damage are called different
is at most 1 - ``confidence``, and the ranks that a variant may have hold for all of them at once (Mogstad et al.,
Review of Economic Studies 2024, doi 10.1093/restud/rdad006).
Variants that share a letter are not different (Piepho, Journal of Computational and Graphical Statistics 2004, doi
10.1198/1061860043515).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from hemorrhage.analyze.inputs import BASE, Inputs
from hemorrhage.analyze.rows.draws import NONE, Spread, measure, seed_of
from hemorrhage.analyze.rows.language import ROUNDING
from hemorrhage.analyze.rows.results import Results
from hemorrhage.analyze.rows.tables import Numbers
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bootstrap
from hemorrhage.analyze.stats.bootstrap import Floats

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rank:
    """A variant's place: ``kl`` and its interval, the ranks from ``first`` to ``last`` that it may have, its letters.

    ``times``: its KL over that of the one before it, with the interval of this pair alone; ``p`` of that after Holm's
    correction. None of the first.
    """

    variant: str
    kl: float
    low: float
    high: float
    first: int
    last: int
    letters: str
    times: float | None = None
    times_low: float | None = None
    times_high: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class Measured:
    """The mean KL of a variant, and in each resample: float64 ``[resamples]``; ``draw``: its spread over draws."""

    kl: float
    replicates: Floats
    draw: Spread = NONE

    def log_ratio(self, other: Measured) -> tuple[float, Floats]:
        """Return the logarithm of its KL over that of ``other``, and the same in each resample.

        What rounding leaves in doubt counts as that much.
        """
        kl, replicates = (np.log(np.maximum(value, ROUNDING)) for value in (self.kl, self.replicates))
        before, replicates_before = (np.log(np.maximum(value, ROUNDING)) for value in (other.kl, other.replicates))
        return float(kl - before), replicates - replicates_before


def rank(inputs: Inputs, results: Results, numbers: Numbers, spec: Spec) -> dict[str, list[Rank]]:
    """Rank the altered models on each corpus, the least damaged first. Those with an infinite KL have no rank."""
    ranked: dict[str, list[Rank]] = {}
    draws = measure(inputs, numbers)
    for corpus, blocks in results.blocks.items():
        measured: dict[str, Measured] = {}
        for name in inputs.variants:
            kl, replicates = numbers.get(name, "kl_mean", corpus), results.divergences.get((name, corpus))
            if name != BASE and kl is not None and replicates is not None and np.isfinite(replicates).all():
                measured[name] = Measured(kl.value, replicates, draws.of(inputs.variants[name]))
        ranked[corpus] = order(measured, blocks, spec.confidence, spec.seed)
    return ranked


def order(measured: Mapping[str, Measured], blocks: int, confidence: float, seed: int = 0) -> list[Rank]:
    """Rank variants that were ``measured`` on so many ``blocks``.

    The interval of a KL is that of the checkpoint, which one draw made; that of a ratio holds both sides' draws.
    """
    names = sorted(measured, key=lambda name: (measured[name].kl, name))
    p = holm(pair_tests([measured[name] for name in names], blocks))
    different = p < 1 - confidence
    letters = letter_groups(different)
    ranks = []
    for place, name in enumerate(names):
        kl, replicates = measured[name].kl, measured[name].replicates
        low, high = bootstrap.interval(replicates, confidence, blocks)
        fields: dict[str, float] = {}
        if place:
            ratio, ratios = measured[name].log_ratio(measured[names[place - 1]])
            moved = [
                measured[each].draw.noise((len(ratios), 1), seed_of(each, seed))[:, 0]
                for each in names[place - 1 : place + 1]
            ]
            ends = bootstrap.interval(ratios + moved[1] - moved[0], confidence, blocks)
            fields = {"times": math.exp(ratio), "times_low": math.exp(ends[0]), "times_high": math.exp(ends[1])}
            fields["p"] = float(p[place, place - 1])
        first, last = 1 + int(different[place, :place].sum()), len(names) - int(different[place, place + 1 :].sum())
        ranks.append(Rank(name, kl, low, high, first, last, letters[place], **fields))
    return ranks


def pair_tests(measured: list[Measured], blocks: int) -> Floats:
    """Return the p-values of all pairs: float64 ``[variants, variants]``, 1 where two differ by rounding alone."""
    count = len(measured)
    p = np.ones((count, count))
    if blocks < 3:
        return p
    for i, first in enumerate(measured):
        for j, second in enumerate(measured[:i]):
            if abs(first.kl - second.kl) > 2 * ROUNDING:
                ratio, ratios = first.log_ratio(second)
                # Resampled means spread too little by this factor.
                of_windows = float(ratios.var()) * blocks / (blocks - 1)
                variances = [
                    (of_windows, blocks - 1),
                    *((each.share**2, each.freedom) for each in _apart(first, second)),
                ]
                p[i, j] = p[j, i] = _p_of(ratio, variances)
    return p


def _apart(first: Measured, second: Measured) -> list[Spread]:
    """Return what both sides move by over draws; where one spread was measured for both, it is known once."""
    if first.draw == second.draw:
        return [Spread(math.sqrt(2) * first.draw.share, first.draw.freedom)]
    return [first.draw, second.draw]


def _p_of(value: float, variances: Sequence[tuple[float, float]]) -> float:
    """Return the two-sided p-value of a value of expectation 0, whose variance is a sum of ``(variance, freedom)``."""
    total = sum(variance for variance, _ in variances)
    if total == 0:
        return 0.0
    # What is known for certain has no end of freedom.
    uncertain = sum(variance**2 / freedom for variance, freedom in variances)
    freedom = total**2 / uncertain if uncertain else math.inf
    return float(2 * stats.t.sf(abs(value) / math.sqrt(total), freedom))


def holm(p: Floats) -> Floats:
    """Return the p-values of all pairs ``[variants, variants]`` after Holm's correction."""
    pairs = np.tril_indices(len(p), -1)
    ordered = np.argsort(p[pairs], kind="stable")
    left = np.arange(len(ordered), 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(p[pairs][ordered] * left), 1.0) if len(ordered) else p[pairs]
    corrected = np.ones_like(p)
    corrected[pairs[0][ordered], pairs[1][ordered]] = adjusted
    return np.minimum(corrected, corrected.T)


def letter_groups(different: Flags) -> list[str]:
    """Return letters for variants in order, of which two share one where they are not ``different`` (insert, absorb).

    The groups are as few as that allows; the first letter is that of the first variant.
    """
    groups: list[frozenset[int]] = [frozenset(range(len(different)))]
    for i, j in zip(*np.nonzero(np.tril(different, -1)), strict=True):
        split = [group - {int(one)} for group in groups if {i, j} <= group for one in (i, j)]
        kept = [group for group in groups if not {i, j} <= group]
        groups = _absorbed([*kept, *split])
    groups.sort(key=sorted)
    return [
        "".join(_letter(index) for index, group in enumerate(groups) if one in group) for one in range(len(different))
    ]


def _absorbed(groups: Iterable[frozenset[int]]) -> list[frozenset[int]]:
    unique = list(dict.fromkeys(groups))
    return [group for group in unique if not any(group < other for other in unique)]


def _letter(index: int) -> str:
    """Return a to z, then A to Z, then numbers in brackets."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return letters[index] if index < len(letters) else f"[{index + 1}]"
