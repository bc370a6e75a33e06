"""KL against speed."""

from __future__ import annotations

from hemorrhage.analyze.inputs import Output
from hemorrhage.analyze.protocol import of_engine
from hemorrhage.analyze.report.charts.scales import kl_coordinate
from hemorrhage.analyze.report.charts.speed import speed
from tests.analyze.report.examples import inputs, numbers, row, variant

SERVED = {"vllm": {name: Output({}, {}) for name in ("rtn-4", "rtn-3")}, "llama_cpp": {"rtn-4": Output({}, {})}}
TIMED = row("rtn-4", of_engine("decode_tokens_per_second", "vllm"), 80, 70, 95)
KL = row("rtn-4", f"{of_engine('kl_mean', 'vllm')}[p]", 0.1, 0.05, 0.2, dataset="prose")


def test_what_was_timed_and_compared_in_one_engine_is_a_point() -> None:
    figure = speed(inputs(variant("rtn-4"), variant("rtn-3"), served=SERVED), numbers(TIMED, KL), "prose", {"kl": 0.05})
    assert figure is not None
    (trace,) = figure["data"]
    assert (trace["name"], trace["text"], trace["x"]) == ("vllm", ["rtn-4"], [80])
    assert trace["y"] == [kl_coordinate(0.1)]
    assert (trace["error_x"]["array"], trace["error_x"]["arrayminus"]) == ([15], [10])
    assert figure["layout"]["shapes"][0]["y0"] == kl_coordinate(0.05)


def test_what_this_bench_emulates_has_no_speed() -> None:
    here = row("rtn-4", "decode_tokens_per_second", 300)
    kl = row("rtn-4", "kl_mean[p]", 0.1, dataset="prose")
    assert speed(inputs(variant("rtn-4"), served=SERVED), numbers(here, kl), "prose", {}) is None
    assert speed(inputs(variant("rtn-4"), served={}), numbers(here, kl), "prose", {}) is None
