"""Protocols, and the rows for the page's CSV."""

from __future__ import annotations

import math

import pandas as pd

from hemorrhage.analyze.report.sections.provenance import Protocol, csv_columns, protocols
from hemorrhage.analyze.rows.tasks import ALL_TASKS
from tests.analyze.report.examples import row

ROWS = pd.DataFrame(
    [
        row("a", "kl_mean", 0.123456789, dataset="prose", protocol="p", data="ab"),
        row("b", "kl_mean", 2.0, dataset="prose", protocol="p", data="ab"),
        row("a", "kl_mean{position=1}", 1.0, dataset="prose", protocol="p", data="ab"),
        row("a", "mean_accuracy", math.nan, dataset=ALL_TASKS, protocol="p", data="cd"),
    ]
)


def test_a_data_set_is_named_once_and_means_over_tasks_are_none() -> None:
    assert protocols(ROWS) == [Protocol("prose", "p", "ab")]


def test_rows_of_single_layers_and_tokens_are_left_out() -> None:
    columns = csv_columns(ROWS)
    assert columns["estimate"] == {"numbers": [0.12345679, 2, None]}
    assert columns["variant"] == {"texts": ["a", "b"], "codes": [0, 1, 0]}
    assert columns["metric"] == {"texts": ["kl_mean", "mean_accuracy"], "codes": [0, 0, 1]}
