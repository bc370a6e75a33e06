"""What config.json says of how a checkpoint is stored, by the keys that checkpoints have on disk."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import LlamaConfig

from hemorrhage.models.formats.config import BenchStorage

KIVI = {"bits": 2, "group_size": 32, "residual": 128}


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (None, BenchStorage()),
        ({}, BenchStorage()),
        ({"form": "sliced", "kept": 64}, BenchStorage(model_format="sliced")),
        ({"forms": ["low_rank", "rotated"]}, BenchStorage(layer_formats=("low_rank", "rotated"))),
        ({"narrow": ["a.weight"]}, BenchStorage(pruned_width=("a.weight",))),
        ({"kv_cache": KIVI, "layout": "by layer"}, BenchStorage(kv_cache=KIVI, is_by_layer=True)),
    ],
)
def test_the_keys_of_checkpoints(entry: Any, expected: BenchStorage) -> None:
    assert BenchStorage.of({"model_type": "llama", "hemorrhage": entry}) == expected
    config = LlamaConfig()
    config.hemorrhage = entry
    assert BenchStorage.of_model(config) == expected


def test_a_configuration_without_the_entry_says_nothing() -> None:
    assert BenchStorage.of({}) == BenchStorage.of_model(LlamaConfig()) == BenchStorage()
