"""Many revisions: what was swept, the tidy table, and the page."""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd
import pytest

from hemorrhage.runtime.command import json_text
from hemorrhage.tools import multiples
from hemorrhage.tools.revisions import Study
from tests.analyze.rows.made import row


def made(name: str, params: dict[str, Any], *rows: dict[str, Any]) -> Study:
    return Study(name, "0123456789", "a subject", pd.DataFrame(list(rows)), params, {}, {})


BOTH = ["prose", "code"]
STUDIES = [
    made(
        "one",
        {"seed": 0, "damp": 0.01, "corpus": "prose"},
        row("gptq-3", "kl_mean[w1]", 0.5, 0.1),
        row("old", "kl_mean[w1]", 9.0),
    ),
    made("two", {"seed": 0, "damp": 0.1, "corpus": "prose"}, row("gptq-3", "kl_mean[w1]", 0.4, 0.1)),
    made(
        "three",
        {"seed": 0, "damp": 0.5, "corpus": BOTH},
        row("gptq-3", "kl_mean[w2]", 0.3, 0.1),
        row("new", "kl_mean[w2]", 8.0),
    ),
]


def test_what_was_swept() -> None:
    assert multiples.swept(STUDIES) == {"damp": [0.01, 0.1, 0.5], "corpus": ["prose", "prose", BOTH]}
    axis, places = multiples.places(STUDIES)
    assert axis == "damp"
    assert [place.at for place in places] == [0.01, 0.1, 0.5]
    assert [place.group for place in places] == ["corpus=prose", "corpus=prose", 'corpus=["prose", "code"]']
    same = [made(name, {"seed": 0}) for name in "ab"]
    assert multiples.places(same)[0] == "revision"
    texts = [made(name, {"corpus": value}) for name, value in (("a", "prose"), ("b", None), ("c", "prose"))]
    assert [(place.at, place.label) for place in multiples.places(texts)[1]] == [
        (0.0, "prose"), (1.0, "not set"), (0.0, "prose"),
    ]  # fmt: skip


def test_the_table_has_every_number_beside_the_first() -> None:
    table = multiples.table(STUDIES)
    assert list(table.columns[:6]) == ["revision", "commit", "damp", "corpus", "variant", "family"]
    at = table.set_index(["revision", "variant"])
    assert at.difference["one", "gptq-3"] == 0
    assert at.difference["two", "gptq-3"] == pytest.approx(-0.1)
    assert at.difference_low["two", "gptq-3"] == pytest.approx(-0.1 - math.hypot(0.1, 0.1))
    assert at.tag["three", "gptq-3"] == "w2"
    assert math.isnan(at.difference["three", "gptq-3"]), "by another protocol"
    assert at.estimate["three", "new"] == 8.0, "a number of one revision alone"
    assert ("two", "old") not in at.index
    assert at.corpus["three", "new"] == '["prose", "code"]'
    assert len(table) == 5


def test_the_page_has_a_chart_and_a_line_for_each_variant() -> None:
    table = multiples.table(STUDIES)
    (measure,) = multiples.measures(table)
    assert measure.name == "KL, nats per token on prose"
    page = multiples.render(STUDIES, table)
    for text in (
        "Each variant by damp",
        'data-figure="multiple|{measure}|gptq-3"',
        'data-figure="multiple|{measure}|new"',
        "0.4<small>-0.1 (-0.241 to +0.0414)</small>",
        "2 keys of params.yaml differ.",
    ):
        assert text in page
    content = json.loads(json_text(multiples.as_json(STUDIES, table)))
    assert len(content["rows"]) == 5
    assert content["params"]["damp"] == [0.01, 0.1, 0.5]
