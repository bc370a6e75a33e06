"""Tables and JSON of several models as one."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from hemorrhage.analyze.family import merge
from hemorrhage.analyze.family.models import Model


def test_a_table_has_the_rows_of_all_models(reports: Path, models: list[Model]) -> None:
    table = merge.table(reports, models, "curves.csv")
    parts = [pd.read_csv(reports / model.name / "curves.csv") for model in models]
    assert len(table) == sum(map(len, parts))
    assert list(table.columns) == ["model", "group", *parts[0].columns]
    assert list(dict.fromkeys(table["model"])) == [model.name for model in models]


def test_json_is_by_model(reports: Path, models: list[Model]) -> None:
    content = merge.by_model(reports, models, "metrics.json")
    assert content["b-2"] == json.loads((reports / "b-2" / "metrics.json").read_text())
