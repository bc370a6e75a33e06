"""How many texts of a sweep are different is a row of each data set."""

from __future__ import annotations

from hemorrhage.analyze.inputs import Output, Variant
from hemorrhage.analyze.rows.distinct import distinct_rows


def test_each_data_set_has_its_number() -> None:
    output = Output(
        {
            "distinct": {"prose": {"texts": 24, "distinct": 7}, "recall": {"texts": 8, "distinct": 8}},
            "datasets": {name: {"sha256": "a" * 64} for name in ("prose", "recall")},
            "protocol": {"prose": "items=4", "recall": "items=8"},
            "seed": 3,
        },
        {},
    )
    rows = list(distinct_rows(Variant.unaltered({}, "rtn-4", "RTN"), output))
    found = [(row.metric, row.method, row.dataset, row.estimate, row.n) for row in rows]
    assert found == [
        ("distinct_texts", "all strategies", "prose", 7.0, 24),
        ("distinct_texts", "all strategies", "recall", 8.0, 8),
    ]


def test_an_output_that_counted_none_has_no_row() -> None:
    assert list(distinct_rows(Variant.unaltered({}, "rtn-4", "RTN"), Output({"failure": "no memory"}, {}))) == []
