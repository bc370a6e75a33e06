"""The files of each model's reports as one: tables with the model in front, everything else by model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from hemorrhage.analyze.family.models import Model
from hemorrhage.analyze.rows.headline import of_models
from hemorrhage.analyze.stored import Json

TABLES = ("hemorrhage.parquet", "blocks.parquet")
CSVS = ("curves.csv", "front.csv", "layers.csv", "thresholds.csv", "decoding.csv")
HEADLINE = "headline.json"
BY_MODEL = (
    "metrics.json",
    "thresholds.json",
    "claims.json",
    "flags.json",
    "doctor.json",
    "recommendation.json",
    "decoding.json",
)


def table(reports: Path, models: Sequence[Model], name: str) -> pd.DataFrame:
    """Return a table of all models: the columns ``model`` and ``group`` come first."""
    read = pd.read_parquet if name.endswith(".parquet") else pd.read_csv
    parts = []
    for model in models:
        part = read(reports / model.name / name)
        part.insert(0, "group", model.group)
        part.insert(0, "model", model.name)
        parts.append(part)
    filled = [part for part in parts if len(part)]
    return pd.concat(filled or parts[:1], ignore_index=True)


def headline(reports: Path, models: Sequence[Model]) -> dict[str, Json]:
    """Return the content of headline.json of all models together."""
    contents = {
        model.name: json.loads((reports / model.name / HEADLINE).read_text(encoding="utf-8")) for model in models
    }
    return of_models(contents, {model.name: model.group for model in models})


def by_model(reports: Path, models: Sequence[Model], name: str) -> dict[str, Json]:
    """Return the content of a JSON file of each model, by model."""
    return {model.name: json.loads((reports / model.name / name).read_text(encoding="utf-8")) for model in models}
