"""Claims with what was measured of them."""

from __future__ import annotations

import math
from dataclasses import replace

from hemorrhage.analyze.report.sections.claims import number, section
from hemorrhage.analyze.study import Study
from hemorrhage.analyze.verdicts.causes import STRENGTH, Cause
from hemorrhage.analyze.verdicts.claims import CLAIMS
from hemorrhage.analyze.verdicts.evidence import NOT_MEASURED, SUPPORTED


def test_a_number_has_its_unit_and_its_interval_where_both_ends_are_known() -> None:
    assert number("nats", 0.1234, 0.1, 0.2) == "nats: 0.123 (0.1 to 0.2)"
    assert number("nats", 0.1234, None, 0.2) == "nats: 0.123"
    assert number("nats", None, None, None) == ""
    assert number("", 0.1234, 0.1, 0.2) == "0.123 (0.1 to 0.2)"


def test_every_claim_is_a_row(study: Study) -> None:
    rows = section(study).rows
    assert [row.claim for row in rows] == [claim.claim for claim in CLAIMS]
    assert {row.verdict for row in rows} >= {SUPPORTED, NOT_MEASURED}
    assert all(
        (row.number == "") == (claim.finding.estimate is None) for row, claim in zip(rows, study.claims, strict=True)
    )


def test_the_map_has_a_cell_for_each_modification_and_pattern(study: Study) -> None:
    found = section(study)
    assert [row.modification for row in found.map] == ["expansion", "compression", "decoding"]
    assert {len(row.effects) for row in found.map} == {len(found.patterns)} == {3}
    assert all(models for row in found.map for _, models in row.effects)


def test_a_collapsed_variant_has_its_cause_in_times_the_perplexity(study: Study) -> None:
    cause = Cause("rtn-2", "rtn", STRENGTH, "rtn-3 is below twice", math.log(8), math.log(4), math.log(16))
    (row,) = section(replace(study, doubled=[cause])).doubled
    assert (row.variant, row.times, row.cause) == ("rtn-2", "8 (4 to 16)", STRENGTH)
