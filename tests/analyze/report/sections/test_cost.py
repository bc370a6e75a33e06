"""Cost of running variants."""

from __future__ import annotations

from hemorrhage.analyze.report.sections.cost import Row, cost_rows
from tests.analyze.report.examples import inputs, numbers, row, variant


def test_a_cost_is_written_with_its_range_and_what_is_theoretical() -> None:
    protocol = "batch=1 theoretical: weights are unpacked"
    costs = numbers(
        row("rtn-4", "prefill_tokens_per_second", 1234.5, 1200, 1300, protocol=protocol),
        row("rtn-4", "peak_bytes", 5e9, protocol=protocol),
        row("rtn-4", "kv_bytes", 2.5e6, protocol=protocol),
    )
    assert cost_rows(inputs(variant("rtn-4")), costs) == [
        Row("rtn-4", "1,234 (1,200 to 1,300)", "–", "5,000", "2.50", "–", "batch=1", "weights are unpacked")
    ]


def test_what_was_not_timed_has_no_row() -> None:
    assert cost_rows(inputs(), numbers(row("base", "peak_bytes", 1.0))) == []
