"""Claims with what was measured of them."""

from __future__ import annotations

from hemorrhage.analyze.report.sections.claims import number, section
from hemorrhage.analyze.study import Study
from hemorrhage.analyze.verdicts.claims import CLAIMS, NOT_MEASURED, SUPPORTED


def test_a_number_has_its_unit_and_its_interval_where_both_ends_are_known() -> None:
    assert number("nats", 0.1234, 0.1, 0.2) == "nats: 0.123 (0.1 to 0.2)"
    assert number("nats", 0.1234, None, 0.2) == "nats: 0.123"
    assert number("nats", None, None, None) == ""


def test_every_claim_is_a_row(study: Study) -> None:
    rows = section(study)
    assert [row.claim for row in rows] == [claim.claim for claim in CLAIMS]
    assert {row.verdict for row in rows} >= {SUPPORTED, NOT_MEASURED}
    assert all(
        (row.number == "") == (claim.finding.estimate is None) for row, claim in zip(rows, study.claims, strict=True)
    )
