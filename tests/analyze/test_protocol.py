"""Protocols in the names of metrics."""

from __future__ import annotations

import pytest

from hemorrhage.analyze import protocol


def test_the_whole_protocol_is_in_the_name() -> None:
    stated = 'window=128 stride=64 windows=16/33 bos=1 join="\\n \\u00e4" predicted=2032 dtype=bfloat16'
    assert protocol.tag(stated) == "w128-s64-b1-jnsc3a4-n2032-bf16"
    assert protocol.tag(stated.replace('"\\n \\u00e4"', '""')) == "w128-s64-b1-j0-n2032-bf16"
    assert protocol.strip_protocol(protocol.add_protocol("kl_mean{position=1}", stated)) == "kl_mean{position=1}"
    assert protocol.tag(f"{stated} cut=segments score=assistant") == "w128-s64-b1-jnsc3a4-n2032-bf16-assistant"
    assert protocol.tag(f"{stated} cut=segments score=all") == protocol.tag(stated)
    engine = "w128-s64-b1-jnsc3a4-n2032-bf16-assistant-vllm-0.33"
    assert protocol.tag(f"{stated} cut=segments score=assistant engine=vllm-0.33") == engine
    with pytest.raises(ValueError, match="does not say join="):
        protocol.tag("window=128 stride=128 bos=0 predicted=9 dtype=float32")


def test_an_engines_metric_is_not_the_benchs_without_its_protocol() -> None:
    stated = 'window=9 stride=9 bos=0 join="" predicted=9 dtype=float32 engine=vllm-0.33'
    named = protocol.add_protocol(protocol.of_engine("kl_mean", "vllm", "added"), stated)
    assert named == "kl_mean{engine=vllm,part=added}[w9-s9-b0-j0-n9-f32-vllm-0.33]"
    assert protocol.strip_protocol(named) == "kl_mean{engine=vllm,part=added}"
    assert protocol.category_of(named) is None


def test_a_category_is_in_the_name() -> None:
    stated = 'window=9 stride=9 bos=0 join="" predicted=9 dtype=float32'
    named = protocol.add_protocol(protocol.of_category("kl_mean", "a (b) = c"), stated)
    assert named == "kl_mean{category=a (b) = c}[w9-s9-b0-j0-n9-f32]"
    assert protocol.category_of(named) == ("kl_mean", "a (b) = c")
    assert protocol.category_of(protocol.add_protocol("kl_mean{position=1}", stated)) is None
    assert protocol.category_of("kl_mean") is None


def test_a_stage_is_in_the_name_and_in_the_tag() -> None:
    stated = 'window=9 stride=9 bos=0 join="" predicted=9 dtype=float32 stage=confirmation'
    for plain in ("kl_mean", protocol.of_category("kl_mean", "a (b)")):
        whole = protocol.add_protocol(plain, stated)
        named = protocol.of_stage(whole, protocol.CONFIRMATION)
        assert named.startswith("kl_mean{stage=confirmation}")
        assert named.endswith("[w9-s9-b0-j0-n9-f32-confirmation]")
        assert protocol.strip_protocol(named) != "kl_mean", "it is no metric of the evaluation"
        assert protocol.category_of(named) is None
        assert protocol.without_stage(named, protocol.CONFIRMATION) == whole
        assert protocol.without_stage(whole, protocol.CONFIRMATION) is None
    assert protocol.without_stage(protocol.of_stage("mean_flips", "confirmation"), "confirmation") == "mean_flips"


def test_a_decoding_protocol_has_a_tag_of_what_texts_depend_on() -> None:
    stated = "items=24 prefix=32 new_tokens=3 chat=ab12cd34 shots=8; batch=24; dtype=float32"
    assert protocol.decoding_tag(stated) == "i24-p32-t3-cab12cd34-s8"
    assert protocol.decoding_tag("synthetic") == ""
