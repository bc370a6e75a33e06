"""Models that the pipeline trained: what each was given, what came out, and its curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hemorrhage.analyze.inputs import Training
from hemorrhage.analyze.report.charts.learning import learning_curves
from hemorrhage.analyze.report.charts.plotly import Figure
from hemorrhage.analyze.study import Study

KINDS = {"text": "text", "sft": "answers (SFT)", "dpo": "pairs of answers (DPO)"}
"""Kind of a training -> what was learned from."""

UNITS = {"text": "nats a token", "sft": "nats a token", "dpo": "nats a pair"}


class Row(NamedTuple):
    """A training as the table has it; ``operations`` in 10¹²."""

    name: str
    model_type: str
    learned_from: str
    weights: str
    tokens: str
    tokens_per_weight: str
    operations: str
    train_loss: str
    heldout_loss: str
    per_second: str
    seed: int


@dataclass(frozen=True)
class Trained:
    """The section; ``charts``: key and title of each curve."""

    rows: list[Row]
    charts: list[tuple[str, str]]
    figures: dict[str, Figure] = field(repr=False)


def section(study: Study) -> Trained | None:
    """Return the section of a study; None where nothing was trained."""
    trainings = study.inputs.trainings
    if not trainings:
        return None
    kinds = [kind for kind in KINDS if any(training.kind == kind for training in trainings)]
    charts = [(f"training|{kind}", f"Loss on {KINDS[kind]}, {UNITS[kind]}") for kind in kinds]
    figures = {
        key: learning_curves([training for training in trainings if training.kind == kind], UNITS[kind])
        for kind, (key, _) in zip(kinds, charts, strict=True)
    }
    return Trained(table(trainings), charts, figures)


def table(trainings: Sequence[Training]) -> list[Row]:
    """Return the rows of the table."""
    return [
        Row(
            training.name,
            training.model_type,
            KINDS[training.kind],
            f"{training.weights:,}",
            f"{training.tokens:,}",
            f"{training.tokens / training.weights:.2g}",
            f"{1e-12 * training.operations:.3g}",
            f"{training.train_loss:.3f}",
            f"{training.heldout_loss:.3f}",
            f"{training.tokens_per_second:,.0f}",
            training.seed,
        )
        for training in trainings
    ]
