"""Charts of several models: a line for each group, a dot for each model."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from hemorrhage.analyze.family.outcomes import DRIFT
from hemorrhage.analyze.family.page import charts
from hemorrhage.analyze.family.results import Results


def test_a_damage_chart_has_every_model_of_every_group(results: Results) -> None:
    figure = charts.figures(results)["damage|rtn"]
    lines = [trace for trace in figure["data"] if trace["mode"] == "lines+markers"]
    dots = [trace for trace in figure["data"] if trace["mode"] == "markers"]
    assert [trace["name"] for trace in lines] == ["a", "b"]
    assert all(len(trace["x"]) == 3 * len(line["x"]) for trace, line in zip(dots, lines, strict=True))
    (effect,) = (each for each in results.effects if each.outcome.name == "rtn-4")
    values = [effect.outcome.values[f"b-{seed}"] for seed in range(3)]
    place = lines[1]["x"].index(4.0)
    assert lines[1]["y"][place] == pytest.approx(float(pytest.importorskip("numpy").exp(sum(values) / 3)))


def test_a_sweep_with_a_dash_in_its_setting_is_one_chart(results: Results) -> None:
    keys = [key for key in charts.figures(results) if key.startswith("damage|")]
    sweeps = {each.outcome.name.partition("-")[0] for each in results.effects if each.outcome.kind == "damage"}
    assert {key.partition("|")[2] for key in keys} == sweeps


def test_variants_of_one_severity_stand_side_by_side(results: Results) -> None:
    (first, *_) = (each for each in results.effects if each.outcome.name == "rtn-4")
    thirds = [
        replace(first, outcome=replace(first.outcome, name=f"noise-0.3-{third}", severity=0.3))
        for third in ("first", "middle", "last")
    ]
    figure = charts.damage(results, "noise", thirds)
    assert figure["data"][0]["x"] == [0.0, 1.0, 2.0]
    assert figure["layout"]["xaxis"]["ticktext"] == [each.outcome.name for each in thirds]


def test_a_drift_is_drawn_as_the_ratio_that_it_is(results: Results) -> None:
    (first, *_) = (each for each in results.effects if each.outcome.name == "rtn-4")
    drift = replace(first, outcome=replace(first.outcome, kind=DRIFT, measure="KL at twice the position over KL"))
    figure = charts.figures(replace(results, effects=[drift]))["drift|KL at twice the position over KL"]
    (a, b) = figure["data"]
    assert a["x"] == [pytest.approx(math.exp(drift.levels[0].mean))]
    assert b["error_x"]["array"] == [pytest.approx(math.exp(drift.levels[1].high) - math.exp(drift.levels[1].mean))]
