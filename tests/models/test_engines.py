"""Which programs can use a checkpoint as it lies on disk."""

from __future__ import annotations

from typing import Any

import pytest

from hemorrhage.models.engines import engine

PACKED = {"quantization_config": {"quant_method": "compressed-tensors"}}


@pytest.mark.parametrize(
    ("settings", "programs", "reason"),
    [
        ({}, "any Hugging Face program", ""),
        ({"hemorrhage": {"narrow": []}}, "any Hugging Face program", ""),
        (PACKED, "vLLM, transformers", ""),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "transformers with bitsandbytes", ""),
        ({"hemorrhage": {"forms": ["codebook"]}, **PACKED}, "vLLM, transformers", ""),
        ({"hemorrhage": {"form": "gguf_file"}}, "llama.cpp", ""),
        ({"hemorrhage": {"form": "sliced"}}, "", "its storage format (sliced) is another architecture"),
        (
            {"hemorrhage": {"forms": ["rotated", "codebook"]}},
            "",
            "its weights are in a storage format of this bench (rotated)",
        ),
        ({"hemorrhage": {"narrow": ["a", "b"]}}, "", "2 weights are narrower than config.json can say"),
        ({"hemorrhage": {"kv_cache": {"bits": 2}}}, "", "keys and values are rounded"),
        ({"quantization_config": {"kv_cache_scheme": {"num_bits": 4}}}, "", "keys and values are rounded"),
    ],
)
def test_programs_and_the_reason_why_there_are_none(settings: dict[str, Any], programs: str, reason: str) -> None:
    found, why = engine(settings)
    assert found == programs
    assert why.startswith(reason)
    assert bool(found) != bool(why)
