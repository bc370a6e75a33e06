"""The doctor's section: causes of damage, and predicted against observed damage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from hemorrhage.analyze.doctor.diagnose import Diagnosis
from hemorrhage.analyze.doctor.doctor import BY_METHOD, BY_MODEL, Doctor
from hemorrhage.analyze.report.charts.plotly import Figure
from hemorrhage.analyze.report.charts.predictions import TARGET, Prediction, predicted_against_observed, predictions
from hemorrhage.analyze.study import Study

LAWS = {
    "published": "quantization law of 2411.17691, as published",
    "quantization": "the same law, refitted",
    "precision": "precision law of 2411.04330, refitted",
    "quadratic": "quadratic law of 2504.04342, refitted",
    "together": "the refitted laws, and medians where none applies",
}


@dataclass
class PredictionRow:
    """A variant on a corpus: its observed KL, and its predictions by each stage."""

    variant: str
    corpus: str
    observed: str
    by_model: Prediction | None = None
    by_method: Prediction | None = None


@dataclass(frozen=True)
class ErrorRow:
    """Errors of the predictions against those of a law."""

    rows_of: str
    left_out: str
    law: str
    rows: str
    error: str
    law_error: str
    factor: str
    law_factor: str
    coverage: str


@dataclass(frozen=True)
class DoctorSection:
    """The section; ``reason``: why nothing was predicted, or empty."""

    diagnoses: list[Diagnosis]
    learned_from: list[str]
    reason: str
    predictions: list[PredictionRow]
    errors: list[ErrorRow]
    figures: dict[str, Figure] = field(repr=False)


def section(study: Study) -> DoctorSection:
    """Return the section of a study, with ``doctor|<corpus>`` drawn where something was predicted."""
    doctor = study.examined
    return DoctorSection(
        diagnoses=doctor.diagnoses,
        learned_from=doctor.known,
        reason="" if doctor.left_out else doctor.reason or "no earlier run of another model is known",
        predictions=prediction_rows(doctor),
        errors=error_rows(doctor),
        figures=figures(doctor, study.corpora),
    )


def figures(doctor: Doctor, corpora: Sequence[str]) -> dict[str, Figure]:
    """Draw the predictions on each corpus."""
    if not doctor.left_out:
        return {}
    return {f"doctor|{corpus}": predicted_against_observed(doctor, corpus) for corpus in corpora}


def error_rows(doctor: Doctor) -> list[ErrorRow]:
    """Return the errors of the log-perplexity ratio, compared with each law."""
    return [
        ErrorRow(
            rows_of=score.of,
            left_out=(f"every {score.left_out} in turn" if score.of == "all models" else f"its {score.left_out}"),
            law=LAWS[score.law],
            rows=str(score.rows),
            error=f"{score.error:.3f}",
            law_error=f"{score.law_error:.3f}",
            factor=f"{math.exp(score.ln_error):.1f}",
            law_factor=f"{math.exp(score.law_ln_error):.1f}",
            coverage=f"{100 * score.coverage:.0f}",
        )
        for score in doctor.scores
        if score.target == "ln_perplexity_ratio"
    ]


def prediction_rows(doctor: Doctor) -> list[PredictionRow]:
    """Return a row per variant and corpus, with the predictions of both stages."""
    rows: dict[tuple[str, str], PredictionRow] = {}
    for left_out in doctor.left_out.get(TARGET, []):
        for prediction in predictions(left_out.rows):
            variant, corpus = prediction.variant, prediction.corpus
            row = rows.setdefault(
                (variant, corpus), PredictionRow(variant, corpus, observed=f"{prediction.observed:.3g}")
            )
            if left_out.by == BY_MODEL:
                row.by_model = prediction
            elif left_out.by == BY_METHOD:
                row.by_method = prediction
    return list(rows.values())
