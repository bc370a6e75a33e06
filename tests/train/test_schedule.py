"""Learning rates beside the papers' formulas, written out."""

from __future__ import annotations

import math

import pytest

from hemorrhage.train.schedule import Schedule, rate


def made(**changes: object) -> Schedule:
    return {"shape": "cosine", "warmup": 0.1, "decay": 0.2, "final": 0.1, **changes}  # type: ignore[typeddict-item]


def test_the_rise_is_a_line() -> None:
    assert [rate(step, 100, 2.0, made()) for step in range(10)] == pytest.approx(
        [0.2 * (step + 1) for step in range(10)]
    )


def test_cosine_falls_to_its_last_share() -> None:
    # eta_min + (eta_max - eta_min) / 2 * (1 + cos(pi * T_cur / T_max)), arXiv 1608.03983, equation 5.
    for step in (10, 37, 54, 99):
        expected = 0.2 + (2.0 - 0.2) / 2 * (1 + math.cos(math.pi * (step - 10) / 89))
        assert rate(step, 100, 2.0, made()) == pytest.approx(expected)
    assert rate(99, 100, 2.0, made()) == pytest.approx(0.2)


def test_wsd_is_stable_and_then_falls_in_a_line() -> None:
    rates = [rate(step, 100, 1.0, made(shape="wsd", final=0.0)) for step in range(100)]
    assert rates[10:80] == [1.0] * 70
    assert rates[79:] == pytest.approx([left / 20 for left in range(20, -1, -1)])


def test_constant_stays() -> None:
    assert {rate(step, 100, 1.0, made(shape="constant")) for step in range(10, 100)} == {1.0}


def test_a_single_step_has_the_peak() -> None:
    assert rate(0, 1, 1.0, made(warmup=0.0)) == 1.0
    assert rate(0, 1, 1.0, made()) == 1.0
