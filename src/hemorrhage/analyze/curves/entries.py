"""The thresholds of a damage curve on a corpus, and what goes with them: an entry of thresholds.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from hemorrhage.analyze.curves.defects import Defect
from hemorrhage.analyze.rows.tables import round_digits
from hemorrhage.analyze.stored import Json

LOCATED = "found"
NO_CLIFF = "no cliff in range"
TOO_FEW = "too few points"


@dataclass(frozen=True)
class LabelBits:
    """A threshold in the bits of the setting, where its axis has the measured ones; None: an open end."""

    estimate: float
    low: float | None
    high: float | None

    def as_json(self) -> dict[str, Json]:
        """Plain content."""
        return {"estimate": self.estimate, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Threshold:
    """Where a curve reaches a level or bends, by one definition, or the reason why no such point is known.

    ``estimate`` is NaN unless the threshold is located; ``low`` and ``high`` are None where the interval is open.
    ``between``: the measured points around it. ``most``: the largest damage of a curve that reaches no level;
    ``resamples_reaching``: share of the resamples that reach it. Of a knee, ``shape`` is the one that bends, ``gain``
    how much better it is than every shape without a knee, ``p_smooth`` how often such a gain is chance. ``label_bits``:
    the same in the bits of the setting, on the axis of measured bits.
    """

    answer: str
    reason: str = ""
    estimate: float = math.nan
    low: float | None = None
    high: float | None = None
    between: tuple[float, float] | None = None
    resamples_reaching: float | None = None
    most: float | None = None
    shape: str = ""
    gain: float | None = None
    p_smooth: float | None = None
    label_bits: LabelBits | None = None

    @property
    def is_located(self) -> bool:
        """Whether there is an estimate."""
        return self.answer == LOCATED

    def on_axis(self, start: float, sign: float) -> Threshold:
        """Turn distances from the base into positions on the axis; with a negative sign low and high change sides."""
        low, high = (None if end is None else start + sign * end for end in (self.low, self.high))
        if sign < 0:
            low, high = high, low
        between = self.between
        if between is not None:
            first, last = sorted(start + sign * distance for distance in between)
            between = (first, last)
        return replace(self, estimate=start + sign * self.estimate, low=low, high=high, between=between)

    def as_json(self) -> dict[str, Json]:
        """Plain content: of an open interval's end null, of anything else that is not known nothing."""
        content: dict[str, Json] = {"answer": self.answer}
        if self.is_located:
            content |= {"estimate": self.estimate, "low": self.low, "high": self.high}
        optional: dict[str, Json] = {
            "reason": self.reason or None,
            "between": self.between and list(self.between),
            "resamples_reaching": self.resamples_reaching,
            "most": self.most,
            "shape": self.shape or None,
            "gain": self.gain,
            "p_smooth": self.p_smooth,
            "label_bits": None if self.label_bits is None else self.label_bits.as_json(),
        }
        return content | {key: value for key, value in optional.items() if value is not None}


@dataclass(frozen=True)
class Fit:
    """The best shape of a curve and its points ``x``, ``y``; ``bic``: shape -> its criterion, smaller is better."""

    shape: str
    bic: dict[str, float]
    x: list[float]
    y: list[float]

    def on_axis(self, start: float, sign: float) -> Fit:
        """Turn distances from the base into positions on the axis."""
        return replace(self, x=[start + sign * distance for distance in self.x])

    def as_json(self) -> dict[str, Json]:
        """Plain content."""
        return {"shape": self.shape, "bic": self.bic, "x": self.x, "y": self.y}


@dataclass(frozen=True)
class NextPoints:
    """``values`` of a sweep's ``setting`` to run next, and why; without values, why there are none."""

    values: tuple[float | int, ...]
    reason: str
    setting: str = ""

    def as_json(self) -> dict[str, Json]:
        """Plain content; a setting only next to values."""
        content: dict[str, Json] = {"values": list(self.values), "reason": self.reason}
        return {**content, "setting": self.setting} if self.values else content


@dataclass(frozen=True)
class CurveEntry:
    """One curve on one corpus.

    ``base``: where the model that is altered stands on the axis; ``points``: the number of measured ones; ``missing``:
    variant -> why it is no point; ``thresholds``: definition -> its threshold; ``fits``: metric -> the best shape;
    ``next`` is None where no variant was measured.
    """

    sweep: str
    curve: str
    identity: str
    name: str
    family: str
    method: str
    corpus: str
    axis: str
    unit: str
    on: str
    base: float
    points: int
    missing: dict[str, str]
    thresholds: dict[str, Threshold]
    fits: dict[str, Fit]
    next: NextPoints | None
    defects: list[Defect]

    def as_json(self) -> dict[str, Json]:
        """Plain content: the thresholds next to the curve's own keys."""
        return {
            "sweep": self.sweep,
            "curve": self.curve,
            "identity": self.identity,
            "name": self.name,
            "family": self.family,
            "method": self.method,
            "corpus": self.corpus,
            "axis": self.axis,
            "unit": self.unit,
            "on": self.on,
            "base": self.base,
            "points": self.points,
            "missing": self.missing,
            **{definition: threshold.as_json() for definition, threshold in self.thresholds.items()},
            "fits": {metric: fit.as_json() for metric, fit in self.fits.items()},
            "next": None if self.next is None else self.next.as_json(),
            "defects": [defect.as_json() for defect in self.defects],
        }


def as_json(entries: Sequence[CurveEntry], definitions: Mapping[str, str]) -> dict[str, Json]:
    """Return the content of thresholds.json."""
    return {"definitions": definitions, "curves": [entry.as_json() for entry in entries]}


def threshold_points(entries: Sequence[CurveEntry]) -> pd.DataFrame:
    """Return the content of thresholds.csv: a row per curve, corpus and definition whose threshold is located."""
    columns = ["curve", "corpus", "axis", "definition", "estimate", "low", "high"]
    rows = [
        (
            entry.name,
            entry.corpus,
            entry.axis,
            definition,
            *(
                None if value is None else round_digits(value)
                for value in (located.estimate, located.low, located.high)
            ),
        )
        for entry in entries
        for definition, located in entry.thresholds.items()
        if located.is_located
    ]
    return pd.DataFrame(rows, columns=columns)


def curves_of(entries: Sequence[CurveEntry], corpus: str) -> list[CurveEntry]:
    """Select the entries of one corpus whose curves have, or were to have, more than one point."""
    return [entry for entry in entries if entry.corpus == corpus and entry.points + len(entry.missing) > 1]
