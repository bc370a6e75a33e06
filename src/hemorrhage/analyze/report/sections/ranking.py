"""The variants in the order of their damage, with what the texts can't order."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hemorrhage.analyze.study import Study
from hemorrhage.analyze.verdicts.ranking import Rank


@dataclass(frozen=True)
class RankRow:
    """A variant: the ranks it may have, its size, its KL, and how many times that of the one before it."""

    variant: str
    label: str
    ranks: str
    bits: str
    kl: str
    interval: str
    times: str
    times_interval: str
    letters: str


@dataclass(frozen=True)
class Ranking:
    """The section: corpus -> rows, the least damaged variant first."""

    tables: dict[str, list[RankRow]]


def section(study: Study) -> Ranking:
    """Return the section of a study; one variant alone has no rank."""
    return Ranking(
        {corpus: [_row(study, rank) for rank in ranks] for corpus, ranks in study.ranking.items() if len(ranks) > 1}
    )


def _row(study: Study, rank: Rank) -> RankRow:
    variant = study.inputs.variants[rank.variant]
    bits = variant.manifest.get("effective_bits")
    return RankRow(
        variant=rank.variant,
        label=variant.label,
        ranks=f"{rank.first}" if rank.first == rank.last else f"{rank.first} to {rank.last}",
        bits="" if bits is None else f"{bits:.2f}",
        kl=_number(rank.kl),
        interval=_interval(rank.low, rank.high),
        times="" if rank.times is None else f"{_number(rank.times)}\u00a0×",
        times_interval=_interval(rank.times_low, rank.times_high),
        letters=rank.letters,
    )


def _number(value: float) -> str:
    return f"{value:.3g}"


def _interval(low: float | None, high: float | None) -> str:
    if low is None or high is None or math.isnan(low):
        return ""
    return f"{_number(low)} to {_number(high)}"
