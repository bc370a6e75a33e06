"""Ranks on the page: what can't be told apart says so."""

from __future__ import annotations

from dataclasses import replace

from hemorrhage.analyze.report.page import render
from hemorrhage.analyze.report.sections.ranking import section
from hemorrhage.analyze.study import Study
from hemorrhage.analyze.verdicts.ranking import Rank

RANKS = [
    Rank("gptq-8", 0.00123, 0.001, 0.0015, 1, 2, "a"),
    Rank("rtn-8", 0.00128, 0.001, 0.0016, 1, 2, "a", 1.04, 0.97, 1.12, 1.0),
    Rank("gptq-4", 0.07, float("nan"), float("nan"), 3, 3, "b", 54.7, float("nan"), float("nan"), 1e-9),
]


def test_a_row_says_which_places_a_variant_may_have(study: Study) -> None:
    first, second, third = section(replace(study, ranking={"prose": RANKS})).tables["prose"]
    assert (first.ranks, first.kl, first.interval, first.times) == ("1 to 2", "0.00123", "0.001 to 0.0015", "")
    assert (second.times, second.times_interval, second.letters) == ("1.04\u00a0×", "0.97 to 1.12", "a")
    assert (third.ranks, third.interval, third.times_interval) == ("3", "", "")
    assert first.label == study.inputs.variants["gptq-8"].label
    assert float(first.bits) < 16


def test_every_variant_that_was_measured_has_its_place_on_each_corpus(study: Study) -> None:
    tables = section(study).tables
    assert list(tables) == study.corpora
    for rows in tables.values():
        assert len(rows) > 30
        assert [float(row.kl) for row in rows] == sorted(float(row.kl) for row in rows)
    page = render(study)
    assert 'id="ranking"' in page
    assert "Holm" in page


def test_one_variant_alone_has_no_rank_and_an_older_study_no_section(study: Study) -> None:
    for ranking in ({"prose": RANKS[:1]}, {}):
        alone = replace(study, ranking=ranking)
        assert section(alone).tables == {}
        assert 'id="ranking"' not in render(alone)
