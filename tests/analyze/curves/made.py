"""Entries of thresholds.json with chosen thresholds."""

from __future__ import annotations

from typing import Any

from hemorrhage.analyze.curves.definitions import NAMES
from hemorrhage.analyze.curves.entries import LOCATED, NO_CLIFF, CurveEntry, Threshold
from hemorrhage.analyze.inputs import BASE

SMOOTH = Threshold(NO_CLIFF, "a smooth exponential describes the points as well")


def located(estimate: float, low: float | None = None, high: float | None = None, **more: Any) -> Threshold:
    return Threshold(LOCATED, estimate=estimate, low=low, high=high, **more)


def gap(low: float, high: float) -> Threshold:
    """A threshold between two measured points."""
    return Threshold(LOCATED, estimate=(low + high) / 2, between=(low, high))


def entry(thresholds: dict[str, Threshold] | None = None, **fields: Any) -> CurveEntry:
    """A curve without a cliff but for ``thresholds``; the other ``fields`` as they are given."""
    plain: dict[str, Any] = {
        "sweep": "rtn",
        "curve": "",
        "identity": "",
        "name": "rtn",
        "family": "weight_quantization",
        "method": "rtn",
        "corpus": "prose",
        "axis": "bits",
        "unit": "effective bits per parameter",
        "on": BASE,
        "base": 16.0,
        "points": 5,
        "missing": {},
        "thresholds": {**dict.fromkeys(NAMES, SMOOTH), **(thresholds or {})},
        "fits": {},
        "next": None,
        "defects": [],
    }
    return CurveEntry(**{**plain, **fields})
