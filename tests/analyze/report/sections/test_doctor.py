"""The doctor's tables."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd

from hemorrhage.analyze.doctor.doctor import BY_METHOD, BY_MODEL, Doctor
from hemorrhage.analyze.doctor.predictor import LeftOut, Score
from hemorrhage.analyze.report.charts.predictions import Prediction
from hemorrhage.analyze.report.sections import doctor
from hemorrhage.analyze.study import Study

FIRST = Prediction("rtn-4", "prose", 0.1, 0.2, 0.05, 0.5)
SECOND = Prediction("rtn-4", "prose", 0.1, 0.12, 0.11, 0.2)
SCORE = Score("ln_perplexity_ratio", "m", "method", "published", 12, 0.1, 0.2, math.log(2), math.log(4), 0.95)
DOCTOR = Doctor(
    "m",
    {"kl_mean": [LeftOut(BY_MODEL, pd.DataFrame([FIRST])), LeftOut(BY_METHOD, pd.DataFrame([SECOND]))]},
    [SCORE, replace(SCORE, of="all models", left_out="model"), replace(SCORE, target="kl_mean")],
    [],
)


def test_both_stages_are_in_one_row() -> None:
    (row,) = doctor.prediction_rows(DOCTOR)
    assert (row.variant, row.corpus, row.observed) == ("rtn-4", "prose", "0.1")
    assert (row.by_model, row.by_method) == (FIRST, SECOND)


def test_errors_are_those_of_the_log_perplexity_ratio() -> None:
    first, second = doctor.error_rows(DOCTOR)
    assert (first.left_out, second.left_out) == ("its method", "every model in turn")
    assert (first.factor, first.law_factor, first.coverage) == ("2.0", "4.0", "95")


def test_nothing_predicted_draws_nothing() -> None:
    assert doctor.figures(Doctor("m", {}, [], []), ["prose"]) == {}
    assert set(doctor.figures(DOCTOR, ["prose", "code"])) == {"doctor|prose", "doctor|code"}


def test_the_section_of_a_study(study: Study) -> None:
    content = doctor.section(study)
    assert content.reason == ""
    assert content.learned_from == study.examined.known
    assert content.diagnoses == study.examined.diagnoses
    assert content.predictions
    assert content.errors
