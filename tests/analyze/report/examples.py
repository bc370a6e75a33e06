"""Small studies for tests of charts and sections: estimates, variants, curves."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from hemorrhage.analyze.axes import Sweep
from hemorrhage.analyze.curves.definitions import NAMES
from hemorrhage.analyze.curves.entries import TOO_FEW, CurveEntry, Threshold
from hemorrhage.analyze.inputs import BASE, Inputs, Output, Variant
from hemorrhage.analyze.report.charts.plotly import Json
from hemorrhage.analyze.rows.tables import Estimate, Numbers
from tests.analyze.curves import made
from tests.analyze.curves.made import located

__all__ = ["entry", "estimate", "inputs", "located", "numbers", "row", "sweep", "variant"]


def estimate(value: float, low: float = math.nan, high: float = math.nan, **fields: Any) -> Estimate:
    """Return an estimate of no metric in particular."""
    known = {"n": 16, "p": math.nan, "q": math.nan, "mde": math.nan, "metric": "m", "protocol": "", **fields}
    return Estimate(value, low, high, **known)


def row(variant: str, metric: str, value: float, low: float = math.nan, high: float = math.nan, **fields: Any) -> Json:
    """Return a row of a metric that was measured."""
    unknown = {"dataset": "", "family": "", "method": "", "status": "ok", "protocol": "", "data": "", "n": 16}
    tests = {"p": math.nan, "q": math.nan, "mde": math.nan}
    return {
        "variant": variant,
        "metric": metric,
        "estimate": value,
        "low": low,
        "high": high,
        **unknown,
        **tests,
        **fields,
    }


def numbers(*rows: Json) -> Numbers:
    """Return the lookup of some rows."""
    return Numbers(pd.DataFrame(rows))


def variant(name: str, axis: str = "bits", severity: float = 4.0, **manifest: Any) -> Variant:
    """Return an alteration of the base in the sweep that its name begins with."""
    sweep = name.partition("-")[0]
    content: Any = {"effective_bits": severity, "size_ratio": severity / 16, "identity": sweep, **manifest}
    family, on = content.get("family", "weight_quantization"), content.get("on", BASE)
    return Variant(name, sweep, family, "rtn", "", f"label of {name}", axis, severity, 0, on, content)


def inputs(*variants: Variant, evaluated: bool = True, **fields: Any) -> Inputs:
    """Return the inputs of a base and some variants, all of them evaluated."""
    base: Any = {"effective_bits": 16.0, "disk_bytes": 1000, "parameters": 2_500_000}
    known = {BASE: Variant(BASE, BASE, BASE, BASE, "", "base model", "", math.nan, None, BASE, base)}
    known |= {each.name: each for each in variants}
    evaluations = {name: Output({}, {}) for name in known} if evaluated else {}
    content: dict[str, Any] = {"decodes": {}, "harness": {}, "code_tasks": {}, "directories": {}, **fields}
    return Inputs(base=base, variants=known, evaluations=evaluations, **content)


def sweep(*variants: Variant, name: str = "") -> Sweep:
    """Return the curve of some variants."""
    first = variants[0]
    return Sweep(
        first.sweep,
        "",
        first.identity,
        name or first.sweep,
        name or first.sweep,
        first.family,
        first.method,
        first.axis,
        first.on,
        list(variants),
        [],
    )


def entry(name: str = "rtn", axis: str = "bits", base: float = 16.0, **fields: Any) -> CurveEntry:
    """Return the entry of a curve on prose; thresholds that are not given are unknown."""
    thresholds = dict.fromkeys(NAMES, Threshold(TOO_FEW, "a knee needs 4 points")) | fields.pop("thresholds", {})
    known = {"sweep": name, "identity": name, "name": name, "axis": axis, "base": base, "points": 3}
    return made.entry(thresholds, **{**known, **fields})
