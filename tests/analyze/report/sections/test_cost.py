"""Cost of running variants."""

from __future__ import annotations

from hemorrhage.analyze.inputs import Output
from hemorrhage.analyze.manifests import EngineFields
from hemorrhage.analyze.protocol import of_engine
from hemorrhage.analyze.report.sections.cost import Row, cost_rows
from tests.analyze.report.examples import inputs, numbers, row, variant


def test_a_speed_without_the_kernels_of_a_format_is_none() -> None:
    protocol = "batch=1 theoretical: weights are unpacked"
    costs = numbers(
        row("rtn-4", "prefill_tokens_per_second", 1234.5, 1200, 1300, protocol=protocol),
        row("rtn-4", "peak_bytes", 5e9, protocol=protocol),
        row("rtn-4", "kv_bytes", 2.5e6, protocol=protocol),
    )
    assert cost_rows(inputs(variant("rtn-4")), costs) == [
        Row(
            "rtn-4",
            "this bench",
            "–",
            "–",
            "5,000",
            "2.50",
            "–",
            "batch=1",
            "weights are unpacked",
        )
    ]


def test_a_cost_is_written_with_its_range() -> None:
    speed = row("rtn-4", "prefill_tokens_per_second", 1234.5, 1200, 1300, protocol="batch=1")
    (cost,) = cost_rows(inputs(variant("rtn-4")), numbers(speed))
    assert (cost.prefill, cost.decode, cost.theoretical) == ("1,234 (1,200 to 1,300)", "–", "")


def test_what_an_engine_ran_is_not_called_theoretical() -> None:
    protocol = "batch=1 theoretical: weights are unpacked"
    costs = numbers(
        row("rtn-4", "decode_tokens_per_second", 10, 9, 11, protocol=protocol),
        row("rtn-4", of_engine("decode_tokens_per_second", "llama_cpp"), 80, 70, 90, protocol="batch=1 engine=x"),
        row("rtn-3", "decode_tokens_per_second", 10, 9, 11, protocol=protocol),
    )
    engine: EngineFields = {"name": "llama_cpp", "title": "llama.cpp", "version": "b1"}
    served = {"llama_cpp": {name: Output({"engine": engine}, {}) for name in ("rtn-4", "rtn-3")}}
    rows = cost_rows(inputs(variant("rtn-4"), variant("rtn-3"), served=served), costs)
    assert [(each.variant, each.engine, each.decode, each.theoretical) for each in rows] == [
        ("rtn-4", "this bench", "–", ""),
        ("rtn-4", "llama.cpp b1", "80 (70 to 90)", ""),
        ("rtn-3", "this bench", "–", "weights are unpacked"),
    ]


def test_what_was_not_timed_has_its_bytes_and_what_was_not_measured_no_row() -> None:
    (untimed,) = cost_rows(inputs(), numbers(row("base", "peak_bytes", 2e6)))
    assert (untimed.prefill, untimed.decode, untimed.peak) == ("–", "–", "2")
    assert cost_rows(inputs(), numbers(row("base", "accuracy", 1.0))) == []
