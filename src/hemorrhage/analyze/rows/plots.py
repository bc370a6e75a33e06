"""Tables behind DVC's plots, next to those of ``tables.py``: the Pareto front, layers."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from hemorrhage.analyze.rows.schema import OK
from hemorrhage.analyze.rows.tables import round_digits

LAYERWISE = (
    "local_error",
    "inherited_error",
    "relative_error",
    "attention_js",
    "attention_entropy",
    "attention_sink",
    "lens_kl",
    "cka",
)
"""What the diagnostics say of every layer; what they say of heads is averaged over them."""


def layer_table(rows: pd.DataFrame, metrics: Sequence[str] = LAYERWISE) -> pd.DataFrame:
    """Make a row per variant, metric and layer (int): ``estimate``, ``low``, ``high``; of heads their mean alone."""
    pattern = r"^(?P<name>\w+)\{layer=(?P<layer>\d+)(?P<head>,head=\d+)?\}$"
    of_layers = rows[(rows["status"] == OK) & rows["metric"].str.contains("{layer=", regex=False)]
    names = of_layers["metric"].str.extract(pattern)
    kept = names["name"].isin(list(metrics))
    table = of_layers.loc[kept, ["variant", "estimate", "low", "high"]].assign(
        metric=names.loc[kept, "name"], layer=names.loc[kept, "layer"].astype(int), head=names.loc[kept, "head"]
    )
    heads = table["head"].notna()
    means = table[heads].groupby(["variant", "metric", "layer"], sort=False)["estimate"].mean().reset_index()
    columns = ["variant", "metric", "layer", "estimate", "low", "high"]
    return pd.concat([table[~heads], means], ignore_index=True).reindex(columns=columns)


def layer_points(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the content of layers.csv: a row per variant and layer, a column per metric."""
    table = layer_table(rows).pivot(index=["variant", "layer"], columns="metric", values="estimate")
    order = [name for name in dict.fromkeys(rows["variant"]) if name in table.index.get_level_values(0)]
    whole = table.loc[order].reset_index() if order else table.reset_index()
    whole = whole.reindex(columns=["variant", "layer", *LAYERWISE])
    numbers = list(LAYERWISE)
    whole[numbers] = whole[numbers].map(lambda value: value if pd.isna(value) else round_digits(value))
    return whole
