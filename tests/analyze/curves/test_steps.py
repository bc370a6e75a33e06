"""The values that a curve's setting can have, and their bits."""

from __future__ import annotations

from typing import Any

import pytest

from hemorrhage.analyze.axes import Sweep
from hemorrhage.analyze.curves import steps
from tests.analyze.report.examples import sweep, variant


def info(**fields: Any) -> dict[str, Any]:
    return {"title": "a method", **fields}


def blocks(*shares: float, axis: str = "removed", by_blocks: bool = True) -> Sweep:
    grown = {"removed": -1, "added": 1}[axis]
    return sweep(
        *(
            variant(
                f"depth-{share:g}",
                axis=axis,
                severity=share,
                layers=round(30 * (1 + grown * share)),
                method_info=info(by_blocks=by_blocks),
            )
            for share in shares
        )
    )


def widths(measured: dict[float, float], axis: str = "bits", whole: bool = True) -> Sweep:
    spacing = {"low": 2, "high": 8, "step": 1, "whole": whole}
    return sweep(
        *(
            variant(
                f"rtn-{bits:g}",
                axis=axis,
                severity=bits,
                effective_bits=effective,
                method_info=info(values=spacing),
            )
            for bits, effective in measured.items()
        )
    )


def test_blocks_are_taken_out_one_at_a_time() -> None:
    found = steps.positions(blocks(0.1, 0.5), 0.0)
    assert found is not None
    assert found.tolist() == pytest.approx([block / 30 for block in range(31)])
    grown = steps.positions(blocks(0.2, axis="added"), 0.0)
    assert grown is not None
    assert grown[1] == pytest.approx(1 / 30)


def test_a_block_that_was_measured_stands_where_it_was_measured() -> None:
    # The first and the last block of this model are larger: three are 9.7 % of the parameters.
    found = steps.positions(blocks(0.097, 0.5), 0.0)
    assert found is not None
    assert found[2:5].tolist() == pytest.approx([2 / 30, 0.097, 4 / 30])


def test_bits_of_a_setting_are_whole_and_measured_with_their_scales() -> None:
    rtn = widths({8: 9.982, 4: 6.776, 2: 5.173})
    found = steps.positions(rtn, 16.0)
    assert found is not None
    assert len(found) >= 8
    assert found[-1] == 16.0
    line = steps.line(rtn.variants)
    assert line is not None
    assert line.bits(6.776) == pytest.approx(4, abs=0.01)
    assert line.bits(7.577) == pytest.approx(5, abs=0.01)


def test_a_share_of_weights_may_be_any_number() -> None:
    assert steps.positions(blocks(0.1, by_blocks=False), 0.0) is None
    assert steps.positions(widths({0.1: 0.1}, whole=False), 16.0) is None


def test_one_width_says_nothing_of_the_others() -> None:
    assert steps.line(widths({4: 6.8}).variants) is None
    assert steps.positions(widths({4: 6.8}), 16.0) is None


def test_other_axes_have_the_bits_of_the_setting() -> None:
    found = steps.positions(widths({8: 0, 4: 0}, axis="cache_bits"), 16.0)
    assert found is not None
    assert found.tolist() == [2, 3, 4, 5, 6, 7, 8, 16]
    assert steps.positions(widths({4.5: 0}, axis="cache_bits"), 16.0) is None


def test_blocks_of_a_model_are_counted_from_what_is_left() -> None:
    (removed,), (added,) = blocks(0.2).variants, blocks(0.2, axis="added").variants
    assert (steps.count_blocks(removed), steps.count_blocks(added)) == (30, 30)
    assert steps.count_blocks(variant("rtn-4")) is None
