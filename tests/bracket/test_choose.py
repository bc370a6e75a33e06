"""Which points are added: those nearest to where a curve crosses the budget, and smaller than what is inside."""

from __future__ import annotations

import math

from hemorrhage.bracket.choose import bracket
from hemorrhage.bracket.content import INSIDE, OUTSIDE, UNDECIDED, Bracket, Screened
from hemorrhage.bracket.spec import Curve, Free, Spec


def bits(name: str, listed: list[int]) -> Curve:
    free = {f"{name}-{value}": Free(name, {"bits": value}, value) for value in range(2, 9) if value not in listed}
    return Curve(name, "bits", {f"{name}-{value}": float(value) for value in listed}, free)


def screened(variant: str, used: float, size: float, hindrance: str = "") -> Screened:
    """A variant whose bounds are a factor of 1.5 around what it uses."""
    low, high = used / 1.5, used * 1.5
    said = OUTSIDE if low >= 1 else INSIDE if high < 1 else UNDECIDED
    return Screened(variant, used, low, high, size, said, hindrance)


def rtn(name: str, listed: list[int], at_limit: float = 5.0, hindrance: str = "") -> list[Screened]:
    """Rounding, whose damage grows fourfold by a bit and reaches the limit at a width."""
    return [screened(f"{name}-{value}", 4.0 ** (at_limit - value), 0.1 + value / 16, hindrance) for value in listed]


def made(points: list[Screened], *curves: Curve, allowance: int = 4) -> Bracket:
    return bracket(points, Spec({"kl": 0.1}, 4, allowance, curves), {})


def test_the_width_at_the_crossing_is_added_first() -> None:
    one = made(rtn("rtn", [8, 4, 3]), bits("rtn", [8, 4, 3]), allowance=1)
    assert [each.variant for each in one.added] == ["rtn-5"]
    assert one.added[0].values == {"bits": 5}
    (curve,) = one.curves
    assert (curve.inside, curve.outside, curve.added, curve.reason) == ("rtn-8", "rtn-4", ("rtn-5",), "")
    assert [each.variant for each in made(rtn("rtn", [8, 4]), bits("rtn", [8, 4])).added] == ["rtn-5", "rtn-6", "rtn-7"]


def test_nothing_is_added_where_there_is_no_step_between() -> None:
    points = rtn("rtn", [8, 6, 5, 4], at_limit=4.9)
    (curve,) = made(points, bits("rtn", [8, 6, 5, 4])).curves
    assert (curve.inside, curve.undecided, curve.outside) == ("rtn-6", ("rtn-5",), "rtn-4")
    assert (curve.added, curve.reason) == ((), "there is no step between")


def test_a_curve_that_could_not_be_smaller_than_what_is_inside_gets_nothing() -> None:
    small = screened("other", 0.1, 0.2)
    result = made([*rtn("rtn", [8, 4]), small], bits("rtn", [8, 4]))
    assert result.added == ()
    assert result.curves[0].reason == "what lies between would be no smaller than other"
    assert result.confirmed == ("other",)


def test_what_no_engine_loads_gets_nothing_and_is_not_confirmed() -> None:
    result = made(rtn("rtn", [8, 4], hindrance="no program reads it"), bits("rtn", [8, 4]))
    assert (result.added, result.confirmed) == ((), ())
    assert result.curves[0].reason == "nothing of it could ship: no program reads it"


def test_curves_take_turns_and_the_allowance_is_kept() -> None:
    points = [*rtn("rtn", [8, 4]), *rtn("gptq", [8, 4], at_limit=4.9)]
    result = made(points, bits("rtn", [8, 4]), bits("gptq", [8, 4]), allowance=2)
    assert sorted(each.variant for each in result.added) == ["gptq-5", "rtn-5"]
    result = made(points, bits("rtn", [8, 4]), bits("gptq", [8, 4]), allowance=1)
    assert {curve.reason for curve in result.curves} == {"", "the allowance was spent on other curves"}
    assert made(points, bits("rtn", [8, 4]), allowance=0).added == ()


def test_a_curve_of_one_point_that_is_outside_begins_at_the_unaltered_model() -> None:
    result = made(rtn("awq", [3], at_limit=3.8), bits("awq", [3]), allowance=1)
    assert result.curves[0].inside is None
    assert [each.variant for each in result.added] == ["awq-4"]
    shares = Curve("depth", "removed", {"depth-0.2": 0.2}, {"depth-0.1": Free("depth", {"removed": 0.1}, 0.1)})
    result = made([screened("depth-0.2", 4.0, 0.8)], shares)
    assert [each.variant for each in result.added] == ["depth-0.1"]


def test_what_would_be_far_outside_is_not_made() -> None:
    result = made([screened("awq-3", 4.0**12, 0.3)], bits("awq", [3]))
    assert result.added == ()
    assert result.curves[0].reason == "what lies between would be outside, too"


def test_a_curve_that_never_leaves_the_budget_gets_nothing() -> None:
    (curve,) = made(rtn("rtn", [8, 7]), bits("rtn", [8, 7])).curves
    assert (curve.inside, curve.outside, curve.reason) == ("rtn-7", None, "no point is outside")
    (curve,) = made([], bits("rtn", [8])).curves
    assert curve.reason == "none of its points was screened"


def test_what_may_be_inside_and_is_no_larger_than_what_is_has_to_be_confirmed() -> None:
    points = [screened("big", 0.01, 0.9), screened("inside", 0.2, 0.6), screened("maybe", 1.2, 0.5)]
    result = made([*points, screened("out", 9.0, 0.3), screened("mask", 0.5, 0.4, "zeros are stored")])
    assert result.confirmed == ("maybe", "inside")
    assert math.isclose(result.screened[0].used, 0.01)
