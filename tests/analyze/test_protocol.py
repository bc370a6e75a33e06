"""Protocols in the names of metrics."""

from __future__ import annotations

import pytest

from hemorrhage.analyze import protocol


def test_the_whole_protocol_is_in_the_name() -> None:
    stated = 'window=128 stride=64 windows=16/33 bos=1 join="\\n \\u00e4" predicted=2032 dtype=bfloat16'
    assert protocol.tag(stated) == "w128-s64-b1-jnsc3a4-n2032-bf16"
    assert protocol.tag(stated.replace('"\\n \\u00e4"', '""')) == "w128-s64-b1-j0-n2032-bf16"
    assert protocol.strip_protocol(protocol.add_protocol("kl_mean{position=1}", stated)) == "kl_mean{position=1}"
    with pytest.raises(ValueError, match="does not say join="):
        protocol.tag("window=128 stride=128 bos=0 predicted=9 dtype=float32")
