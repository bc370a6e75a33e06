"""Scales of damage: coordinates, texts, ticks."""

from __future__ import annotations

import itertools
import math

import pytest

from hemorrhage.analyze.report.charts import scales
from tests.analyze.report.examples import estimate


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (1.0, "×1.000"),
        (1.0504, "×1.050"),
        (1.234, "×1.23"),
        (12.34, "×12.3"),
        (1234.0, "×1,234"),
        (3.2e7, "×3.2·10⁷"),
    ],
)
def test_a_log_ratio_is_written_as_a_factor(ratio: float, text: str) -> None:
    assert scales.factor(math.log(ratio)) == text


def test_a_ratio_beyond_floats_is_written() -> None:
    assert scales.factor(1e6) == scales.factor(700.0)


def test_kl_is_linear_near_zero_and_logarithmic_far_from_it() -> None:
    assert scales.kl_coordinate(0.0) == 0.0
    assert scales.kl_coordinate(1e-6) == pytest.approx(1e-3, rel=1e-5)
    assert scales.kl_coordinate(10.0) - scales.kl_coordinate(1.0) == pytest.approx(math.log(10), abs=1e-5)


def test_coordinates() -> None:
    assert scales.coordinate("factor", 0.7) == 0.7
    assert scales.coordinate("kl", 0.5) == scales.kl_coordinate(0.5)
    assert scales.coordinate("top1", 0.25) == 25.0


def test_values_are_written_with_their_interval() -> None:
    assert scales.written("kl", estimate(0.123, 0.1, 0.0)) == "0.12 (0.1 to 0)"
    assert scales.written("accuracy", estimate(0.5, 0.4, 0.6)) == "50.0 (40.0 to 60.0)"
    assert scales.written("factor", estimate(0.0, 0.0, math.log(2))) == "×1.000 (×1.000 to ×2.00)"


def test_ticks_keep_a_distance_and_are_inside_the_axis() -> None:
    axis = scales.value_axis("factor", [0.0, math.log(1e8)], ticks=12)
    low, high = axis["range"]
    assert low < 0 < math.log(1e8) < high
    assert all(low <= tick <= high for tick in axis["tickvals"])
    ticks = sorted(axis["tickvals"])
    assert min(b - a for a, b in itertools.pairwise(ticks)) > (high - low) / 12
    assert {"×1", "×10<sup>8</sup>"} <= set(axis["ticktext"])
    assert "tickvals" not in scales.value_axis("top1", [0.0, 100.0], ticks=12)
