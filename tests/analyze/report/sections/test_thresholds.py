"""Thresholds in a table and in a sentence."""

from __future__ import annotations

from hemorrhage.analyze.curves.definitions import NAMES
from hemorrhage.analyze.curves.entries import NO_CLIFF, LabelBits, Threshold
from hemorrhage.analyze.report.sections.thresholds import doubling_sentence, explanation, location, section
from hemorrhage.analyze.study import Study
from tests.analyze.report.examples import entry, located, sweep, variant


def test_a_threshold_is_written_with_its_interval_in_its_unit() -> None:
    bits = entry(thresholds={"knee": located(3.0, 2.5, 3.5)})
    assert location(bits, "knee") == "3.00 bits (2.50 to 3.50)"
    share = entry(axis="sparsity", base=0.0, thresholds={"knee": located(0.5, 0.4, None), "two_fold": located(0.25)})
    assert location(share, "knee") == "50.0 % (beyond 40.0)"
    assert location(share, "two_fold") == "25.0 % (anywhere)"


def test_an_answer_without_a_threshold_has_its_reason() -> None:
    unknown = entry()
    assert location(unknown, "knee") == "too few points"
    assert explanation(unknown, "knee") == "a knee needs 4 points"


def test_the_points_around_a_threshold_are_named() -> None:
    curve = entry(thresholds={"knee": located(3.0, 2.5, 3.5, between=(2.0, 4.0)), "two_fold": located(3.0)})
    assert explanation(curve, "knee") == "between the measured 2.00 and 4.00 bits"
    assert explanation(curve, "two_fold") == ""


def test_the_bits_of_the_setting_stand_next_to_the_measured_ones() -> None:
    curve = entry(thresholds={"two_fold": located(7.5, 6.8, None, label_bits=LabelBits(4.9, 4.0, None))})
    assert location(curve, "two_fold") == "7.50 bits (beyond 6.80)"
    assert explanation(curve, "two_fold") == "at a label of 4.9 (beyond 4) bits"


def test_doubling_points_are_listed_from_the_furthest_on() -> None:
    curves = [sweep(variant(f"{name}-4"), variant(f"{name}-2")) for name in ("rtn", "gptq", "awq", "single")]
    curves[3].variants.pop()
    entries = [
        entry("rtn", thresholds={"two_fold": located(4.0)}),
        entry("gptq", thresholds={"two_fold": located(3.0)}),
        entry("awq", thresholds={"two_fold": Threshold(NO_CLIFF)}),
        entry("single", thresholds={"two_fold": located(5.0)}),
    ]
    assert doubling_sentence(entries, curves, "prose") == (
        "On prose, perplexity doubles at gptq 3.00\u00a0bits, rtn 4.00\u00a0bits. "
        "It never doubles for awq in the range measured."
    )
    assert doubling_sentence(entries[2:3], curves, "prose") == (
        "On prose, perplexity never doubles for awq in the range measured."
    )
    assert doubling_sentence(entries, curves, "code") == ""


def test_every_curve_with_two_points_is_a_row(study: Study) -> None:
    table = section(study)
    assert table.names == list(NAMES.values())
    assert list(table.rows) == ["prose", "code"]
    rows = {row.name: row for row in table.rows["prose"]}
    assert "wanda n:4" not in rows, "it has one point"
    assert rows["sparsegpt unstructured"].missing == "sparsegpt-0.7"
    assert len(rows["rtn"].cells) == len(NAMES)
    assert rows["rtn"].points == 4
    # What the name does not say is next to it.
    assert (rows["rtn"].curve, rows["sparsegpt unstructured"].curve) == ("groups of 64", "")
    assert rows["rtn"].shape
