"""What is concluded from the models of a study, as it is stored in reports/study.json for the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hemorrhage.analyze.family import effects, law, outcomes
from hemorrhage.analyze.family.effects import Effect
from hemorrhage.analyze.family.law import Exponent
from hemorrhage.analyze.family.models import Model
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stored import Json, decode, encode
from hemorrhage.analyze.study import REST


@dataclass(frozen=True)
class Row:
    """A model in the list of models: its group and what is known of it before anything is done to it."""

    model: str
    group: str
    facts: dict[str, float]


@dataclass(frozen=True)
class Results:
    """Everything that the page of several models shows."""

    models: list[Row]
    effects: list[Effect]
    confidence: float
    law: list[Exponent] = field(default_factory=list)


def conclude(models: Sequence[Model], spec: Spec) -> Results:
    """Compare the models of a study in every outcome."""
    rows = [Row(model.name, model.group, model.facts) for model in models]
    compared = effects.effects(outcomes.outcomes(models), models, spec.confidence)
    return Results(rows, compared, spec.confidence, law.exponents(models, spec.confidence))


def as_json(results: Results) -> Json:
    """Return the content of study.json."""
    content: Json = encode(results)
    return content


def read(reports: Path) -> Results:
    """Read what was concluded in a folder of reports."""
    results: Results = decode(Results, json.loads((reports / REST).read_text(encoding="utf-8")))
    return results
