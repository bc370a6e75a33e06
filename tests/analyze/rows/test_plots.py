"""Tables by layer: heads are averaged, and variants keep their order."""

from __future__ import annotations

import pandas as pd
import pytest

from hemorrhage.analyze.rows.plots import LAYERWISE, layer_points, layer_table


def row(variant: str, metric: str, estimate: float, status: str = "ok") -> dict[str, str | float]:
    low, high = estimate - 1, estimate + 1
    return {"variant": variant, "metric": metric, "estimate": estimate, "low": low, "high": high, "status": status}


ROWS = pd.DataFrame(
    [
        row("b", "local_error{layer=0}", 1.23456789),
        row("b", "local_error{layer=10}", 2.0),
        row("b", "attention_js{layer=0,head=0}", 1.0),
        row("b", "attention_js{layer=0,head=1}", 3.0),
        row("a", "local_error{layer=0}", 5.0),
        row("a", "local_error{layer=1}", 7.0, status="undefined"),
        row("a", "local_error{layers=mean}", 9.0),
        row("a", "kl_mean", 9.0),
    ]
)


def test_heads_are_averaged_without_an_interval() -> None:
    table = layer_table(ROWS).set_index(["variant", "metric", "layer"])
    assert table.loc[("b", "attention_js", 0), "estimate"] == 2
    assert table.loc[("b", "attention_js", 0), ["low", "high"]].isna().all()
    assert table.loc[("b", "local_error", 10)].tolist() == [2, 1, 3]
    assert len(table) == 4


def test_other_metrics_can_be_chosen() -> None:
    assert set(layer_table(ROWS, ["attention_js"])["metric"]) == {"attention_js"}


def test_a_row_for_each_layer_in_the_order_of_the_variants() -> None:
    points = layer_points(ROWS)
    assert points[["variant", "layer"]].values.tolist() == [["b", 0], ["b", 10], ["a", 0]]
    assert list(points.columns) == ["variant", "layer", *LAYERWISE]
    assert points["local_error"].tolist() == pytest.approx([1.23457, 2.0, 5.0], abs=1e-12)
