"""What is concluded from the models of a study, as it is stored in reports/study.json for the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hemorrhage.analyze.family import claims, effects, law, outcomes, redundancy
from hemorrhage.analyze.family.claims import Assessment
from hemorrhage.analyze.family.effects import Effect
from hemorrhage.analyze.family.law import Exponent
from hemorrhage.analyze.family.models import Gap, Model
from hemorrhage.analyze.family.redundancy import Relation
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
    gaps: list[Gap] = field(default_factory=list)
    relations: list[Relation] = field(default_factory=list)
    claims: list[Assessment] = field(default_factory=list)


def conclude(models: Sequence[Model], spec: Spec, gaps: Sequence[Gap] = ()) -> Results:
    """Compare the models of a study in every outcome. ``gaps``: models that could not be made."""
    rows = [Row(model.name, model.group, model.facts) for model in models]
    listed = outcomes.outcomes(models)
    compared = effects.effects(listed, models, spec.confidence, gaps)
    relations = redundancy.relations(listed, models)
    return Results(
        models=rows,
        effects=compared,
        confidence=spec.confidence,
        law=law.exponents(models, spec.confidence),
        gaps=list(gaps),
        relations=relations,
        claims=claims.judge(claims.Evidence(models, compared, relations, spec.confidence)),
    )


def as_json(results: Results) -> Json:
    """Return the content of study.json."""
    content: Json = encode(results)
    return content


def read(reports: Path) -> Results:
    """Read what was concluded in a folder of reports."""
    results: Results = decode(Results, json.loads((reports / REST).read_text(encoding="utf-8")))
    return results
