"""Alterations in plain words."""

from __future__ import annotations

from typing import Any

import pytest

from hemorrhage.analyze.report.sections.wording import in_plain_words
from tests.analyze.report.examples import variant


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"settings": {"bits": 4, "group_size": 128}}, "4-bit weights in groups of 128"),
        ({"settings": {"bits": 3, "group_size": "channel"}}, "3-bit weights, one scale per channel"),
        (
            {"settings": {"bits": 3, "group_size": 64, "embeddings": 3}},
            "3-bit weights in groups of 64, 3-bit embedding and head",
        ),
        ({"settings": {"bits": 8, "group_size": "channel", "activation_bits": 8}}, "8-bit weights and activations"),
        (
            {"settings": {"bits": 4, "group_size": 64, "activation_bits": 8}},
            "4-bit weights in groups of 64, 8-bit activations",
        ),
        ({"settings": {"type": "nf4", "block_size": 64}}, "4-bit weights (NF4) in blocks of 64"),
        ({"settings": {"type": "Q4_K"}}, "llama.cpp's Q4_K"),
        ({"settings": {"sparsity": 0.5}, "family": "unstructured_pruning"}, "50\u00a0% of the weights set to zero"),
        ({"settings": {"sparsity": "2:4"}, "family": "unstructured_pruning"}, "2 of every 4 weights set to zero"),
        ({"settings": {"removed": 0.034}, "family": "depth_pruning"}, "3.4\u00a0% of the layers removed"),
        ({"settings": {"added": 0.2}, "family": "depth_expansion"}, "20\u00a0% more layers"),
        ({"settings": {"damp": 1}}, "label of some-4"),
        ({"settings": {"bits": 4}, "on": "wanda-0.5"}, "4-bit weights, on top of wanda-0.5"),
    ],
)
def test_settings_in_plain_words(fields: dict[str, Any], words: str) -> None:
    assert in_plain_words(variant("some-4", **fields)) == words


def test_a_cache_is_not_a_weight() -> None:
    assert (
        in_plain_words(variant("kv-4", axis="cache_bits", settings={"bits": 4})) == "4-bit keys and values in the cache"
    )
