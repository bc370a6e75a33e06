"""Metrics' names, taken apart as docs/formats.md writes them."""

from __future__ import annotations

import pytest

from hemorrhage.analyze.protocol import add_protocol, of_category, of_engine, of_stage
from hemorrhage.analyze.rows.names import Name, parse

TAG = "w128-s128-b0-jnn-n2032-f32"
PROTOCOL = 'window=128 stride=128 bos=0 join="\\n\\n" predicted=2032 dtype=float32'


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("disk_bytes", Name("disk_bytes")),
        (f"kl_mean[{TAG}]", Name("kl_mean", TAG)),
        (f"kl_mean{{position=17-32}}[{TAG}]", Name("kl_mean", TAG, bucket="position=17-32")),
        (f"kl_mean{{frequency=1-9}}[{TAG}]", Name("kl_mean", TAG, bucket="frequency=1-9")),
        ("local_error{layer=3}", Name("local_error", layer=3)),
        ("attention_js{layer=3,head=11}", Name("attention_js", layer=3, head=11)),
        ("local_error{layers=worst}", Name("local_error", part="layers=worst")),
        ("secondary{metric=acc,none}", Name("secondary", part="metric=acc,none")),
        ("recovery{of=kl_mean,plain=wanda-0.5}[x]", Name("recovery", "x", part="of=kl_mean,plain=wanda-0.5")),
        (
            add_protocol(of_stage(of_category("kl_mean", "a, b=c"), "confirmation"), PROTOCOL),
            Name("kl_mean", TAG, part="stage=confirmation,category=a, b=c"),
        ),
        (of_engine("kl_mean", "vllm", "added"), Name("kl_mean", part="engine=vllm,part=added")),
        ("what is this", Name("what is this")),
    ],
)
def test_a_name_says_what_was_measured(name: str, parts: Name) -> None:
    assert parse(name) == parts


def test_what_is_of_a_whole_model() -> None:
    names = ("kl_mean[x]", "x{layers=mean}", "x{engine=vllm}", "x{layer=0}", "x{layer=0,head=1}", "x{position=1}")
    assert [parse(name).is_whole for name in names] == [True, True, True, False, False, False]
