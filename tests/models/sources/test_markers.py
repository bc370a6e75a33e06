"""A folder that is quantized already is known by any marker of any generation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hemorrhage.models.sources.markers import marker
from hemorrhage.models.sources.path import refusal
from tests.models.sources.folders import llama, settings, weights

LAYER = "model.layers.0.mlp.up_proj"
PLAIN = {f"{LAYER}.weight": "BF16", f"{LAYER}.bias": "F32", "model.position_ids": "I64", "h.0.attn.bias": "U8"}


@pytest.mark.parametrize(
    ("config", "files", "tensors"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, (), {}),
        ({"compression_config": {"format": "pack-quantized"}}, (), {}),
        ({"quantization": {"bits": 4, "group_size": 64}}, (), {}),
        ({"text_config": {"quantization_config": {"quant_method": "gptq"}}}, (), {}),
        ({}, ("quantize_config.json",), {}),
        ({}, ("quant_config.json",), {}),
        ({}, ("hf_quant_config.json",), {}),
        ({}, ("quanto_qmap.json",), {}),
        ({}, (), {f"{LAYER}.qweight": "I32"}),
        ({}, (), {f"{LAYER}.weight_packed": "I32"}),
        ({}, (), {f"{LAYER}.weight_scale_inv": "F32"}),
        ({}, (), {f"{LAYER}.weight": "F8_E4M3"}),
        ({}, (), {f"{LAYER}.weight": "U8"}),
        ({}, (), {f"{LAYER}.SCB": "F32"}),
        ({}, (), {f"{LAYER}.weight.absmax": "F32"}),
        ({}, (), {f"{LAYER}.weight._data": "I8"}),
        ({}, (), {"model.layers.0.mlp.experts.gate_up_proj_blocks": "U8"}),
    ],
)
def test_every_generation_is_known(config: dict[str, Any], files: tuple[str, ...], tensors: dict[str, str]) -> None:
    assert marker(config, ("config.json", *files), {**PLAIN, **tensors}) is not None


def test_a_plain_checkpoint_has_no_marker() -> None:
    config = {"model_type": "llama", "quantization_config": None, "rope_parameters": {"rope_type": "default"}}
    assert marker(config, ("config.json", "generation_config.json"), PLAIN) is None


def test_the_line_says_what_says_so_and_what_a_base_is(tiny: Path, tmp_path: Path) -> None:
    folder = llama(tiny, tmp_path / "model")
    weights(folder, lambda state: {**state, f"{LAYER}.weight": torch.zeros(8, 8, dtype=torch.uint8)})
    line = (
        f"{folder} is quantized already ({LAYER}.weight is of type U8); the base has to be a plain checkpoint of 16 or "
        "32 bits: name the model that it was made from, and `hemorrhage judge` this one beside it"
    )
    assert refusal(folder) == line
    assert load_file(folder / "model.safetensors")[f"{LAYER}.weight"].dtype == torch.uint8
    settings(folder / "config.json", compression_config={"format": "pack-quantized"})
    assert "(config.json has compression_config)" in str(refusal(folder))
    (folder / "hf_quant_config.json").write_text(json.dumps({}))
    settings(folder / "config.json", compression_config=None)
    assert "(it has hf_quant_config.json)" in str(refusal(folder))
