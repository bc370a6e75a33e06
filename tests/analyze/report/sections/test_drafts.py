"""The table of drafts."""

from __future__ import annotations

from hemorrhage.analyze.report.sections.drafts import DraftRow, draft_rows
from tests.analyze.report.examples import inputs, numbers, row, variant


def test_the_fastest_draft_comes_first_with_its_price_in_tokens_per_second() -> None:
    measured = numbers(
        row("base", "decode_tokens_per_second", 10.0, 9, 11),
        row("rtn-4", "acceptance", 0.8, 0.7, 0.9, dataset="prose"),
        row("rtn-4", "draft_speedup{gamma=4}", 1.68, 1.39, 2.05, dataset="prose"),
        row("rtn-8", "acceptance", 1.0, 1.0, 1.0, dataset="prose"),
        row("rtn-8", "draft_speedup{gamma=4}", 1.67, 1.67, 1.67, dataset="prose"),
    )
    variants = variant("rtn-8", severity=8, size_ratio=0.5), variant("rtn-4", size_ratio=0.25)
    rows = draft_rows(inputs(*variants), measured, ["prose", "code"])
    # All 16 tokens of a draft that is the base are kept: 17 in the time of 9.
    assert rows[0] == DraftRow(
        "rtn-8", "prose", "1.00 (1.00 to 1.00)", "0.50", "1.67 (1.67 to 1.67)", 16, f"{17 / 9:.2f}", "19"
    )
    assert (rows[1].variant, rows[1].acceptance, rows[1].gamma) == ("rtn-4", "0.80 (0.70 to 0.90)", 3)
