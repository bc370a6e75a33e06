"""Charts by layer."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from hemorrhage.analyze.report.charts.layers import LAYER_MAPS, layer_maps, profiles, with_interval
from tests.analyze.report.examples import estimate, row

ROWS = pd.DataFrame(
    [
        row("a", "local_error{layer=0}", 0.04, 0.03, 0.05),
        row("a", "local_error{layer=1}", 0.25, 0.2, 0.3),
        row("a", "attention_entropy{layer=0,head=0}", 0.5),
        row("a", "attention_entropy{layer=0,head=1}", 0.7),
        row("base", "attention_entropy{layer=0,head=0}", 0.9),
        row("failed", "local_error{layer=0}", 9.0, status="failed"),
    ]
)


def test_errors_are_coloured_by_their_square_root() -> None:
    maps = layer_maps(ROWS, ["a", "b"])
    assert set(maps) == {"layers|local_error", "layers|attention_entropy"}
    (trace,) = maps["layers|local_error"]["data"]
    assert (trace["y"], trace["x"]) == (["a"], ["0", "1"])
    assert trace["z"] == [[0.2, 0.5]]
    assert trace["hovertext"][0][0] == "<b>a</b>, 0<br>local error, by layer: 0.04 (0.03 to 0.05)"
    assert LAYER_MAPS["local_error"].level(-4.0) == -1.0


def test_heads_are_averaged() -> None:
    (trace,) = layer_maps(ROWS, ["a"])["layers|attention_entropy"]["data"]
    assert trace["z"] == [[pytest.approx(0.6)]]


def test_a_profile_has_bands_where_intervals_are_known_and_the_base_dashed() -> None:
    drawn = profiles(ROWS, ["a", "b"])
    assert set(drawn) == {"cascade|a", "attention|a"}
    band, line = drawn["cascade|a"]["data"]
    assert band["y"] == [0.05, 0.3, 0.2, 0.03]
    assert line["y"] == [0.04, 0.25]
    altered, base = drawn["attention|a"]["data"]
    assert (altered["line"]["dash"], base["line"]["dash"]) == ("solid", "dot")
    assert base["name"] == f"{altered['name']}, base"


def test_a_number_without_an_interval_stands_alone() -> None:
    assert with_interval(estimate(0.123, math.nan, math.nan)) == "0.12"
    assert with_interval(estimate(0.123, 0.1, 0.2)) == "0.12 (0.1 to 0.2)"
