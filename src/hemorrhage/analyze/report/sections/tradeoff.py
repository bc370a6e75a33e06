"""Size against damage: the Pareto front with its uncertainty; and speed against damage, where an engine was timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hemorrhage.analyze.report.charts.plotly import Figure
from hemorrhage.analyze.report.charts.speed import speed
from hemorrhage.analyze.report.charts.tradeoff import tradeoff
from hemorrhage.analyze.report.sections.families import family_name
from hemorrhage.analyze.study import Study
from hemorrhage.analyze.verdicts.shipping import FrontPoint

SHOWN_FROM = 0.05
"""Share of the resamples from which on a variant is in the table of the front."""


@dataclass(frozen=True)
class Row:
    """A variant that may be on the front, its numbers as text."""

    variant: str
    family: str
    megabytes: str
    size: str
    kl: str
    interval: str
    probability: str
    no_engine_because: str


@dataclass(frozen=True)
class Tradeoff:
    """The section: corpus -> rows of the front. ``timed``: the corpora with a chart of speed."""

    rows: dict[str, list[Row]]
    timed: list[str]
    figures: dict[str, Figure] = field(repr=False)


def section(study: Study) -> Tradeoff:
    """Return the section of a study, with ``tradeoff|<corpus>`` drawn, and ``speed|<corpus>`` where timed."""
    fronts = study.recommended.front
    drawn = {corpus: speed(study.inputs, study.numbers, corpus, study.spec.budget) for corpus in study.corpora}
    timed = {corpus: figure for corpus, figure in drawn.items() if figure}
    return Tradeoff(
        rows={corpus: front_rows(points) for corpus, points in fronts.items()},
        timed=list(timed),
        figures={
            f"tradeoff|{corpus}": tradeoff(
                study.inputs, study.numbers, corpus, fronts.get(corpus, []), study.spec.budget
            )
            for corpus in study.corpora
        }
        | {f"speed|{corpus}": figure for corpus, figure in timed.items()},
    )


def front_rows(points: Sequence[FrontPoint]) -> list[Row]:
    """Return the rows of variants smaller than the base that are on the front often enough."""
    return [
        Row(
            variant=point.variant,
            family=family_name(point.family),
            megabytes=f"{point.bytes / 1e6:.1f}",
            size=f"{100 * point.size:.1f}",
            kl=f"{point.kl:.2g}",
            interval="" if point.low is None else f"{point.low:.2g} to {point.high:.2g}",
            probability=f"{100 * point.probability:.0f}",
            no_engine_because=point.no_engine_because,
        )
        for point in points
        if point.probability >= SHOWN_FROM and point.size < 1
    ]
