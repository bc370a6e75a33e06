"""Tensors of a published folder grouped by layer; what is stored in an unknown format is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hemorrhage.models import published
from hemorrhage.runtime.step import InputError


def test_tensors_are_grouped_by_the_layer_that_has_a_mark() -> None:
    reader: Any = SimpleNamespace(MARKS=("qweight", "weight.quant_state.nf4"))
    names = [
        "model.embed_tokens.weight",
        "model.layers.0.q_proj.qweight",
        "model.layers.0.q_proj.scales",
        "model.layers.0.q_proj.bias",
        "model.layers.0.o_proj.weight",
        "model.layers.0.up.weight",
        "model.layers.0.up.weight.absmax",
        "model.layers.0.up.weight.quant_state.nf4",
    ]
    assert published.group(names, reader) == {
        "model.layers.0.q_proj": {
            "qweight": "model.layers.0.q_proj.qweight",
            "scales": "model.layers.0.q_proj.scales",
        },
        "model.layers.0.up": {
            "weight": "model.layers.0.up.weight",
            "weight.absmax": "model.layers.0.up.weight.absmax",
            "weight.quant_state.nf4": "model.layers.0.up.weight.quant_state.nf4",
        },
    }
    assert published.group(names, None) == {}


def test_an_unknown_format_is_named_with_those_that_are_read() -> None:
    with pytest.raises(InputError, match=r"model is stored as exl3, which is not read; known are "):
        published.reader_of(Path("model"), {"quant_method": "exl3"})
    assert published.reader_of(Path("model"), {}) is None


def test_an_expert_that_lacks_a_tensor_is_named() -> None:
    """As the library stacks experts, it only says that it can't."""
    names = [f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight"
             for layer in range(2) for expert in range(12) for part in ("up_proj", "down_proj")]  # fmt: skip
    published._check_experts(Path("m"), [*names, "model.layers.0.mlp.gate.weight", "model.layers.0.mlp.experts.up"])
    names.remove("model.layers.1.mlp.experts.10.up_proj.weight")
    with pytest.raises(InputError, match=r"m lacks model\.layers\.1\.mlp\.experts\.10\.up_proj\.weight, which other"):
        published._check_experts(Path("m"), names)
