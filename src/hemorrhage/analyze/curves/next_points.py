"""Which points of a sweep to run next, as a change of params.yaml.

    hemorrhage params reports/next.yaml

adds them to the sweeps that were run; what was measured stays where it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from hemorrhage.analyze.axes import FEWER_IS_WORSE, Sweep, position
from hemorrhage.analyze.curves.thresholds import FOUND, KNEE_POINTS, NO_CLIFF, TOO_FEW
from hemorrhage.analyze.inputs import BASE, Variant

MOST = 2
"""Points that are asked for at once, where a curve is not too short."""


def propose(entry: dict[str, Any], sweep: Sweep) -> dict[str, Any]:
    """Values to run next for one curve, and why: an entry of thresholds.json as it stands, and the curve.

    ``values`` is empty where nothing is to gain, or where params.yaml could not take it.
    """
    if sweep.on != BASE:
        return _none("a curve on another variant; its points depend on those of the sweep below")
    everything = [*sweep.variants, *sweep.failed]
    if any(variant.is_shuffled for variant in everything):
        return _none("a control")
    method, setting = everything[0].info, str(everything[0].manifest.get("severity_field", ""))
    values = method.values
    if values is None:
        return _none(f"no setting moves along {sweep.axis} in steps worth running")
    points = {_value(variant, setting): variant for variant in sweep.variants if _value(variant, setting) is not None}
    if len(points) < len({variant.severity for variant in sweep.variants}) or not points:
        return _none(f"{setting} of its variants is no number that could be moved")
    if any(not _listed(variant, setting) for variant in everything):
        return _none(f"{setting} is one value in params.yaml, not a list")
    tried = {_value(variant, setting) for variant in everything}
    # Where blocks are spared, what the others can lose depends on the model: no more is asked than was run.
    most = max(points) if method.spares_blocks else values.high
    free = [value for value in values.values() if value not in tried and value <= most]
    if method.by_blocks:
        free = [value for value in free if _differs(value, points)]
    chosen, why = _chosen(entry, sweep, points, free)
    if not chosen:
        return _none(why)
    return {"setting": setting, "values": sorted(chosen), "reason": why}


def _none(reason: str) -> dict[str, Any]:
    return {"values": [], "reason": reason}


def _value(variant: Variant, setting: str) -> Any:
    value = variant.settings.get(setting)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _listed(variant: Variant, setting: str) -> bool:
    """Whether params.yaml gives a list: only values of lists stand in a variant's name."""
    return str(variant.settings.get(setting)) in variant.name.split("-")[1:]


def _differs(value: float, points: dict[Any, Variant]) -> bool:
    """Whether a share removes or adds another number of blocks than those that were run."""
    blocks = {number for number in map(_blocks, points.values()) if number}
    if len(blocks) != 1:
        return True
    number = next(iter(blocks))
    counts = {int(other * number + 0.5) for other in points}
    return int(value * number + 0.5) not in counts | {0}


def _blocks(variant: Variant) -> int | None:
    """Blocks of the model that was altered, from what is left or was added."""
    layers = variant.manifest.get("layers")
    if not layers:
        return None
    grown = 1 + variant.severity if variant.axis == "added" else 1 - variant.severity
    return round(layers / grown)


def _chosen(
    entry: dict[str, Any], sweep: Sweep, points: dict[Any, Variant], free: list[float | int]
) -> tuple[list[float | int], str]:
    if not free:
        return [], "every value was run"
    if len(points) < KNEE_POINTS:
        return _spread(points, free, sweep, KNEE_POINTS - len(points)), f"a knee needs {KNEE_POINTS} points"
    if entry["two_fold"]["answer"] == NO_CLIFF:
        harder = [value for value in free if all(_harder(value, other, sweep) for other in points)]
        nearest = sorted(harder, key=lambda value: abs(value - min(points, key=lambda one: abs(one - value))))[:1]
        if nearest:
            return nearest, "the perplexity never doubles in the range measured"
    found: list[float | int] = []
    for name in ("knee", "two_fold", "phase_point", "ten_percent"):
        around = entry[name].get("between")
        if around and entry[name]["answer"] in (FOUND, TOO_FEW):
            found += _within(around, entry["base"], points, [value for value in free if value not in found])
    if found:
        return found[:MOST], "narrows the gap that a threshold lies in"
    if entry["knee"]["answer"] == TOO_FEW:
        return _spread(points, free, sweep, MOST), "a curve with and one without a knee fit the points as well"
    return [], "the gaps that the thresholds lie in are as narrow as the values allow"


def _harder(value: float, other: float, sweep: Sweep) -> bool:
    return value < other if sweep.axis in FEWER_IS_WORSE else value > other


def _within(
    around: Sequence[float], base: float, points: dict[Any, Variant], free: list[float | int]
) -> list[float | int]:
    """The value in the middle of the gap between two measured points, given by their places on the axis."""
    ends = [value for value, variant in points.items() if any(abs(position(variant) - one) < 1e-6 for one in around)]
    if any(abs(one - base) < 1e-9 for one in around) and ends:
        # Between the base and the first point: from no change on.
        inside = [value for value in free if all(not _between(other, value, ends[0], points) for other in points)]
        inside = [value for value in inside if _outermost(ends[0], value, points)]
        return inside[len(inside) // 2 :][:1]
    if len(ends) < 2:
        return []
    low, high = min(ends), max(ends)
    inside = [value for value in free if low < value < high]
    middle = (low + high) / 2
    return sorted(inside, key=lambda value: (abs(value - middle), value))[:1]


def _between(other: float, value: float, end: float, points: dict[Any, Variant]) -> bool:
    return min(value, end) < other < max(value, end)


def _outermost(end: float, value: float, points: dict[Any, Variant]) -> bool:
    """Whether ``value`` lies on the side of ``end`` on which no point does."""
    others = [other for other in points if other != end]
    return not others or all((value - end) * (other - end) < 0 for other in others)


def _spread(points: Iterable[Any], free: list[float | int], sweep: Sweep, number: int) -> list[float | int]:
    """The values furthest from all that is known, one after another; a share of nothing is the base, and known."""
    known = [float(point) for point in points] + ([] if sweep.axis in FEWER_IS_WORSE else [0.0])
    chosen: list[float | int] = []
    for _ in range(min(number, len(free))):
        value = max(
            (value for value in free if value not in chosen),
            key=lambda value: (round(min(abs(value - one) for one in [*known, *chosen]), 6), -value),
        )
        chosen.append(value)
    return chosen


def patch(thresholds: Sequence[dict[str, Any]], sweeps: Sequence[Sweep]) -> dict[str, Any]:
    """The merge patch of params.yaml: for each sweep the values that it has, then those that are proposed."""
    found: dict[str, Any] = {}
    for entry in thresholds:
        new = (entry["next"] or {}).get("values")
        if not new:
            continue
        setting = entry["next"]["setting"]
        have = found.get(entry["sweep"], {}).get(setting) or _values(entry["sweep"], setting, sweeps)
        found[entry["sweep"]] = {setting: [*have, *(value for value in new if value not in have)]}
    return {"compress": found} if found else {}


def _values(sweep: str, setting: str, sweeps: Sequence[Sweep]) -> list[Any]:
    """What a sweep's list holds today, in its order."""
    members = [variant for one in sweeps if one.sweep == sweep for variant in [*one.variants, *one.failed]]
    values = [variant.settings.get(setting) for variant in members]
    return list(dict.fromkeys(value for value in values if value is not None))


def as_yaml(thresholds: Sequence[dict[str, Any]], sweeps: Sequence[Sweep]) -> str:
    """The content of next.yaml."""
    lines = ["# What to run next, and why: hemorrhage params reports/next.yaml writes it into params.yaml."]
    found = patch(thresholds, sweeps).get("compress", {})
    if not found:
        return "\n".join([*lines, "# Nothing: no curve would gain from a value that its setting allows.", "{}", ""])
    lines.append("compress:")
    for sweep, settings in found.items():
        reasons = [
            entry["next"]["reason"] for entry in thresholds if entry["sweep"] == sweep and entry["next"]["values"]
        ]
        lines.append(f"  {sweep}: {_flow(settings)} # {'; '.join(dict.fromkeys(reasons))}")
    return "\n".join([*lines, ""])


def _flow(settings: dict[str, list[Any]]) -> str:
    """YAML on one line; JSON's lists are YAML, too."""
    return "{" + ", ".join(f"{key}: {json.dumps(values)}" for key, values in settings.items()) + "}"
