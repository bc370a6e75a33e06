"""The rows of a study for notebooks and scripts: ``hemorrhage.load``."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from ruamel.yaml import YAML

from hemorrhage.analyze.rows.names import parse
from hemorrhage.analyze.rows.schema import OK

ROWS, PROVENANCE, PARAMS = "hemorrhage.parquet", "provenance.json", "params.yaml"

LONG = ("inputs", "environments")
"""What provenance.json lists by the hundred; pandas copies what is attached to a table with every step."""

SIZES = {"bits": "effective_bits", "size": "size_ratio"}


def load(reports: Path) -> pd.DataFrame:
    """Read the rows of a folder of reports, with the parts of a metric's name as columns.

    ``docs/formats.md`` has the columns. In ``attrs``: ``params``, the params.yaml beside the folder as it is now, empty
    where there is none; ``provenance``; ``confidence`` of the intervals. Raises FileNotFoundError where the study has
    no rows.
    """
    file = reports / ROWS
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; run the study, or `dvc pull {file}`")
    rows = pd.read_parquet(file)
    tidy = _with_sizes(_with_names(rows))
    tidy.attrs = {**rows.attrs, "params": _params(reports.resolve()), "provenance": _provenance(reports)}
    return tidy


def _with_names(rows: pd.DataFrame) -> pd.DataFrame:
    """Take the metrics' names apart; the whole name is the last column."""
    distinct = rows["metric"].unique()
    names = pd.DataFrame([parse(name) for name in distinct], index=distinct)
    names = names.astype({"layer": "Int64", "head": "Int64"})
    columns: dict[str, pd.Series] = {}
    for column in rows:
        if column == "metric":
            columns |= {part: rows["metric"].map(names[part]) for part in names}
        else:
            columns[str(column)] = rows[column]
    return pd.DataFrame({**columns, "name": rows["metric"]})


def _with_sizes(rows: pd.DataFrame) -> pd.DataFrame:
    """Add each variant's stored bits per parameter and its share of the base's bits, after its severity."""
    keys = [name for name in ("model", "variant") if name in rows]
    counted = rows[(rows["status"] == OK) & rows["metric"].isin(SIZES.values())]
    for place, (column, metric) in enumerate(SIZES.items(), start=1):
        of_variants = counted.loc[counted["metric"] == metric, [*keys, "estimate"]].rename(columns={"estimate": column})
        values = rows[keys].merge(of_variants, on=keys, how="left")[column]
        rows.insert(rows.columns.get_loc("severity") + place, column, values.to_numpy())
    return rows


def _params(reports: Path) -> dict[str, object]:
    """Read the params.yaml beside the reports, of one of several models that beside the study's."""
    for folder in reports.parents[:2]:
        if (folder / PARAMS).is_file():
            content = YAML(typ="safe").load((folder / PARAMS).read_text(encoding="utf-8"))
            return content if isinstance(content, dict) else {}
    return {}


def _provenance(reports: Path) -> dict[str, object]:
    file = reports / PROVENANCE
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {key: value for key, value in content.items() if key not in LONG}
