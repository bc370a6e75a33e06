"""Predicted against observed damage."""

from __future__ import annotations

import pandas as pd

from hemorrhage.analyze.doctor.doctor import BY_METHOD, BY_MODEL, Doctor
from hemorrhage.analyze.doctor.predictor import LeftOut
from hemorrhage.analyze.report.charts.predictions import Prediction, predicted_against_observed, predictions

POINTS = [Prediction("rtn-4", "prose", 0.1, 0.2, 0.05, 0.5), Prediction("rtn-4", "code", 1.0, 0.2, 0.05, 0.5)]
DOCTOR = Doctor(
    "m",
    {"kl_mean": [LeftOut(BY_MODEL, pd.DataFrame(POINTS)), LeftOut(BY_METHOD, pd.DataFrame())]},
    [],
    [],
)


def test_an_observed_damage_outside_the_interval_is_missed() -> None:
    assert [point.is_missed for point in POINTS] == [False, True]
    assert POINTS[0].interval == "0.05 to 0.5"


def test_rows_are_read_as_predictions() -> None:
    assert list(predictions(pd.DataFrame(POINTS))) == POINTS
    assert list(predictions(pd.DataFrame())) == []


def test_a_stage_is_a_series_with_its_intervals() -> None:
    diagonal, by_model, by_method = predicted_against_observed(DOCTOR, "prose")["data"]
    assert diagonal["x"] == diagonal["y"]
    assert (by_model["x"], by_model["y"]) == ([0.1], [0.2])
    assert by_model["text"] == ["<b>rtn-4</b><br>KL 0.1, predicted 0.2 (0.05 to 0.5)"]
    assert by_method["x"] == []
