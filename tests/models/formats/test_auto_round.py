"""auto-round's own checkpoints: which format its packing_format names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hemorrhage.models.formats.auto_round import describe, read_published
from hemorrhage.models.formats.awq import AwqLinear
from hemorrhage.models.formats.gptq import GptqLinear
from tests.models.formats import test_awq, test_gptq

CONFIG: dict[str, Any] = {"quant_method": "auto-round", "bits": 4, "group_size": 32}


@pytest.mark.parametrize(
    ("packing", "version"), [("auto_round:auto_gptq", 1), ("auto_round:gptqmodel", 2), ("auto_round", 2)]
)
def test_gptqs_zero_points_are_those_of_the_packing(packing: str, version: int) -> None:
    stored, expected = test_gptq.layer(4, 32, 64, 32, version=version)
    del stored["g_idx"]
    found = read_published(stored, CONFIG | {"packing_format": packing}, "a")
    assert isinstance(found, GptqLinear)
    assert torch.equal(found.dense(), expected)


def test_the_order_of_awq() -> None:
    stored, expected = test_awq.layer(16, 64, 32)
    config = CONFIG | {"packing_format": "auto_round:auto_awq"}
    found = read_published(stored, config, "a")
    assert isinstance(found, AwqLinear)
    assert torch.equal(found.dense(), expected)
    with pytest.raises(ValueError, match="AWQ with 8 bits is not read"):
        read_published(stored, config | {"bits": 8}, "a")


def test_other_packings_are_refused_by_name() -> None:
    for packing in ("auto_round:llm_compressor", "auto_round:fp8_static", None):
        with pytest.raises(ValueError, match=f"packing_format {packing!r} is not read; known are auto_round:auto_gptq"):
            read_published({}, CONFIG | {"packing_format": packing}, "a")


def test_the_format_in_words() -> None:
    assert describe(CONFIG | {"packing_format": "auto_round:auto_awq"}) == "auto-round as AWQ, 4 bits, groups of 32"
    mixed = CONFIG | {"packing_format": "auto_round:auto_gptq", "extra_config": {"lm_head": {"bits": 8}}}
    assert describe(mixed) == "auto-round as GPTQ, 4 bits, groups of 32, some layers otherwise"
