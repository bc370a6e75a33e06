"""The points of a sweep to run next, as a change of params.yaml.

    hemorrhage params reports/next.yaml

adds them to the sweeps that were run; what was measured stays where it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from hemorrhage.analyze.axes import FEWER_IS_WORSE, Sweep, position
from hemorrhage.analyze.curves.entries import LOCATED, NO_CLIFF, TOO_FEW, CurveEntry, NextPoints, Threshold
from hemorrhage.analyze.curves.steps import count_blocks
from hemorrhage.analyze.curves.thresholds import KNEE_POINTS
from hemorrhage.analyze.inputs import BASE, Variant
from hemorrhage.compress.info import MethodInfo

Number: TypeAlias = float | int
Points: TypeAlias = Mapping[Number, Variant]
"""Value of the sweep's setting -> the variant that was run with it."""

MOST = 2
"""Points that are proposed at once, where a curve is not too short."""


def propose(sweep: Sweep, base: float, thresholds: Mapping[str, Threshold]) -> NextPoints:
    """Propose values to run next for one curve, and say why; none where nothing is to gain, or params.yaml has no list.

    ``base``: where the model that is altered stands on the axis; ``thresholds`` of the curve, by definition.
    """
    variants = [*sweep.variants, *sweep.failed]
    method, setting = variants[0].info, str(variants[0].manifest.get("severity_field", ""))
    points = _points(sweep, setting)
    if (hindrance := _hindrance(sweep, variants, method, setting, points)) is not None:
        return NextPoints((), hindrance)
    chosen, why = _chosen(sweep, base, thresholds, points, _free(variants, method, setting, points))
    return NextPoints(tuple(sorted(chosen)), why, setting if chosen else "")


def _hindrance(
    sweep: Sweep, variants: Sequence[Variant], method: MethodInfo, setting: str, points: Points
) -> str | None:
    """Say why no value could be proposed for a curve; None where one could."""
    if sweep.on != BASE:
        return "a curve on another variant; its points depend on those of the sweep below"
    if any(variant.is_shuffled for variant in variants):
        return "a control"
    if method.values is None:
        return f"no setting moves along {sweep.axis} in steps worth running"
    if len(points) < len({variant.severity for variant in sweep.variants}) or not points:
        return f"{setting} of its variants is no number that could be moved"
    if any(not _is_listed(variant, setting) for variant in variants):
        return f"{setting} is one value in params.yaml, not a list"
    return None


def _points(sweep: Sweep, setting: str) -> dict[Number, Variant]:
    values = [(_value(variant, setting), variant) for variant in sweep.variants]
    return {value: variant for value, variant in values if value is not None}


def _free(variants: Sequence[Variant], method: MethodInfo, setting: str, points: Points) -> list[Number]:
    """List the values of the setting that were not run and would make another model."""
    assert method.values is not None
    tried = {_value(variant, setting) for variant in variants}
    # Where blocks are spared, what the others can lose depends on the model: no more is proposed than was run.
    most = max(points) if method.spares_blocks else method.values.high
    free = [value for value in method.values.values() if value not in tried and value <= most]
    return [value for value in free if _differs(value, points)] if method.by_blocks else free


def _value(variant: Variant, setting: str) -> Number | None:
    value = variant.settings.get(setting)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _is_listed(variant: Variant, setting: str) -> bool:
    """Tell whether params.yaml gives a list: only values of lists are in a variant's name."""
    return str(variant.settings.get(setting)) in variant.name.split("-")[1:]


def _differs(value: float, points: Points) -> bool:
    """Tell whether a share removes or adds another number of blocks than those that were run."""
    blocks = {number for number in map(count_blocks, points.values()) if number}
    if len(blocks) != 1:
        return True
    number = next(iter(blocks))
    counts = {int(other * number + 0.5) for other in points}
    return int(value * number + 0.5) not in counts | {0}


def _chosen(
    sweep: Sweep, base: float, thresholds: Mapping[str, Threshold], points: Points, free: list[Number]
) -> tuple[list[Number], str]:
    if not free:
        return [], "every value was run"
    if len(points) < KNEE_POINTS:
        return _spread(points, free, sweep, KNEE_POINTS - len(points)), f"a knee needs {KNEE_POINTS} points"
    if thresholds["two_fold"].answer == NO_CLIFF:
        harder = [value for value in free if all(_harder(value, other, sweep) for other in points)]
        nearest = sorted(harder, key=lambda value: abs(value - _nearest(value, points)))[:1]
        if nearest:
            return nearest, "the perplexity never doubles in the range measured"
    chosen: list[Number] = []
    for name in ("knee", "two_fold", "phase_point", "ten_percent"):
        gap = thresholds[name].between
        if gap and thresholds[name].answer in (LOCATED, TOO_FEW):
            chosen += _within(gap, base, points, [value for value in free if value not in chosen])
    if chosen:
        return chosen[:MOST], "narrows the gap that a threshold lies in"
    if thresholds["knee"].answer == TOO_FEW:
        return _spread(points, free, sweep, MOST), "a curve with and one without a knee fit the points as well"
    return [], "the gaps that the thresholds lie in are as narrow as the values allow"


def _harder(value: float, other: float, sweep: Sweep) -> bool:
    return value < other if sweep.axis in FEWER_IS_WORSE else value > other


def _nearest(value: float, points: Iterable[Number]) -> Number:
    return min(points, key=lambda point: abs(point - value))


def _within(gap: tuple[float, float], base: float, points: Points, free: list[Number]) -> list[Number]:
    """Choose the value in the middle of the gap between two measured points, given by their positions on the axis."""
    ends = [value for value, variant in points.items() if any(abs(position(variant) - end) < 1e-6 for end in gap)]
    if any(abs(end - base) < 1e-9 for end in gap) and ends:
        # Between the base and the first point: from no change on.
        inside = [value for value in free if all(not _is_between(other, value, ends[0]) for other in points)]
        inside = [value for value in inside if _is_outermost(ends[0], value, points)]
        return inside[len(inside) // 2 :][:1]
    if len(ends) < 2:
        return []
    low, high = min(ends), max(ends)
    inside = [value for value in free if low < value < high]
    middle = (low + high) / 2
    return sorted(inside, key=lambda value: (abs(value - middle), value))[:1]


def _is_between(other: float, value: float, end: float) -> bool:
    return min(value, end) < other < max(value, end)


def _is_outermost(end: float, value: float, points: Points) -> bool:
    """Tell whether ``value`` lies on the side of ``end`` on which no point does."""
    others = [other for other in points if other != end]
    return not others or all((value - end) * (other - end) < 0 for other in others)


def _spread(points: Iterable[Number], free: list[Number], sweep: Sweep, number: int) -> list[Number]:
    """Choose the values furthest from all that is known, one after another; a share of 0 is the base, and known."""
    known = [float(point) for point in points] + ([] if sweep.axis in FEWER_IS_WORSE else [0.0])
    chosen: list[Number] = []
    for _ in range(min(number, len(free))):
        value = max(
            (value for value in free if value not in chosen),
            key=lambda value: (round(min(abs(value - taken) for taken in [*known, *chosen]), 6), -value),
        )
        chosen.append(value)
    return chosen


Values: TypeAlias = dict[str, dict[str, list[Number]]]
"""Sweep -> setting -> the values of its list."""


def patch(entries: Sequence[CurveEntry], sweeps: Sequence[Sweep]) -> Values:
    """Return the merge patch of params.yaml's ``compress``: the values that a sweep has, then those proposed."""
    patched: Values = {}
    for entry in entries:
        if entry.next is None or not entry.next.values:
            continue
        setting = entry.next.setting
        have = patched.get(entry.sweep, {}).get(setting) or _values(entry.sweep, setting, sweeps)
        patched[entry.sweep] = {setting: [*have, *(value for value in entry.next.values if value not in have)]}
    return patched


def _values(name: str, setting: str, sweeps: Sequence[Sweep]) -> list[Number]:
    """Return what a sweep's list holds today, in its order."""
    members = [variant for sweep in sweeps if sweep.sweep == name for variant in [*sweep.variants, *sweep.failed]]
    values = [variant.settings.get(setting) for variant in members]
    return list(dict.fromkeys(value for value in values if value is not None))


def as_yaml(entries: Sequence[CurveEntry], sweeps: Sequence[Sweep]) -> str:
    """Return the content of next.yaml."""
    lines = ["# What to run next, and why: hemorrhage params reports/next.yaml writes it into params.yaml."]
    patched = patch(entries, sweeps)
    if not patched:
        return "\n".join([*lines, "# Nothing: no curve would gain from a value that its setting allows.", "{}", ""])
    lines.append("compress:")
    for sweep, settings in patched.items():
        proposals = [entry.next for entry in entries if entry.sweep == sweep and entry.next]
        reasons = [proposal.reason for proposal in proposals if proposal.values]
        lines.append(f"  {sweep}: {_flow(settings)} # {'; '.join(dict.fromkeys(reasons))}")
    return "\n".join([*lines, ""])


def _flow(settings: Mapping[str, list[Number]]) -> str:
    """Write YAML on one line; JSON's lists are YAML, too."""
    return "{" + ", ".join(f"{key}: {json.dumps(values)}" for key, values in settings.items()) + "}"
