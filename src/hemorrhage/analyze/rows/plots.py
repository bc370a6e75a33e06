"""Tables behind DVC's plots, beside those of ``tables.py``: the Pareto front, layers."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

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
    """A row per variant, metric and layer (int): ``estimate``, ``low``, ``high``; of heads their mean, no interval."""
    pattern = r"^(?P<name>\w+)\{layer=(?P<layer>\d+)(?P<head>,head=\d+)?\}$"
    inside = rows[(rows["status"] == "ok") & rows["metric"].str.contains("{layer=", regex=False)]
    parts = inside["metric"].str.extract(pattern)
    kept = parts["name"].isin(list(metrics))
    found = inside.loc[kept, ["variant", "estimate", "low", "high"]].assign(
        metric=parts.loc[kept, "name"], layer=parts.loc[kept, "layer"].astype(int), head=parts.loc[kept, "head"]
    )
    heads = found["head"].notna()
    means = found[heads].groupby(["variant", "metric", "layer"], sort=False)["estimate"].mean().reset_index()
    columns = ["variant", "metric", "layer", "estimate", "low", "high"]
    return pd.concat([found[~heads], means], ignore_index=True).reindex(columns=columns)


def layer_points(rows: pd.DataFrame) -> pd.DataFrame:
    """The content of layers.csv: a row per variant and layer, a column per metric."""
    table = layer_table(rows).pivot(index=["variant", "layer"], columns="metric", values="estimate")
    order = [name for name in dict.fromkeys(rows["variant"]) if name in table.index.get_level_values(0)]
    whole = table.loc[order].reset_index() if order else table.reset_index()
    whole = whole.reindex(columns=["variant", "layer", *LAYERWISE])
    numbers = list(LAYERWISE)
    whole[numbers] = whole[numbers].map(lambda value: value if pd.isna(value) else round_digits(value))
    return whole
