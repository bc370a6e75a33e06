"""Recipes of number formats beside llm-compressor's own, on the same model and the same calibration tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from hemorrhage.calibrate.__main__ import calibrate
from hemorrhage.compress.__main__ import compress
from hemorrhage.data.texts.__main__ import prepare as prepare_texts
from hemorrhage.models.__main__ import prepare
from hemorrhage.models.checkpoint import load
from hemorrhage.runtime.artifact import failure

LENGTH, WINDOWS = 128, 32

FOUR_BITS = {"num_bits": 4, "symmetric": True, "strategy": "group", "group_size": 64}
FP8_TOKENS = {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True}


def quantization(**arguments: Any) -> Any:
    from llmcompressor.modifiers.quantization import QuantizationModifier

    return QuantizationModifier(ignore=["lm_head"], **arguments)


def gptq(**arguments: Any) -> Any:
    from llmcompressor.modifiers.gptq import GPTQModifier

    return GPTQModifier(ignore=["lm_head"], **arguments)


def group(**entries: Any) -> dict[str, Any]:
    return {"config_groups": {"group_0": {"targets": ["Linear"], **entries}}}


SEQUENTIAL = {"act_order": True, "sequential": True}
"""What llm-compressor's GPTQ does by default."""

RECIPES: dict[str, tuple[str, dict[str, Any], Callable[[], Any]]] = {
    "FP8_DYNAMIC": (
        "rtn",
        {"format": "fp8", "inputs": "fp8_token"},
        lambda: quantization(targets="Linear", scheme="FP8_DYNAMIC"),
    ),
    "W4AFP8": (
        "rtn",
        {"bits": 4, "group_size": 64, "inputs": "fp8_token"},
        lambda: quantization(**group(weights=FOUR_BITS, input_activations=FP8_TOKENS)),
    ),
    "MXFP4A16": ("rtn", {"format": "mxfp4"}, lambda: quantization(targets="Linear", scheme="MXFP4A16")),
    "NVFP4A16": ("rtn", {"format": "nvfp4"}, lambda: quantization(targets="Linear", scheme="NVFP4A16")),
    "NVFP4": ("rtn", {"format": "nvfp4", "inputs": "nvfp4"}, lambda: quantization(targets="Linear", scheme="NVFP4")),
    "GPTQ W4A16": (
        "gptq",
        {"bits": 4, "group_size": 64, "symmetric": True, **SEQUENTIAL},
        lambda: gptq(**group(weights=FOUR_BITS)),
    ),
    "GPTQ NVFP4A16": (
        "gptq",
        {"format": "nvfp4", **SEQUENTIAL},
        lambda: gptq(targets="Linear", scheme="NVFP4A16"),
    ),
}
"""Recipe -> our method and settings, and what makes llm-compressor's modifier."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first three blocks of the default model, in bfloat16."""
    folder = tmp_path_factory.mktemp("peer")
    prepare({"source": "wheel", "name": "smollm2-135m-instruct"}, folder / "whole")
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "whole", dtype=torch.bfloat16)
    model.model.layers = model.model.layers[:3]
    model.config.num_hidden_layers = 3
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:3]
    model.save_pretrained(folder / "slice")
    AutoTokenizer.from_pretrained(folder / "whole").save_pretrained(folder / "slice")
    prepare({"source": "path", "path": str(folder / "slice")}, folder / "base")
    return folder / "base"


@pytest.fixture(scope="module")
def text(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("peer") / "prose"
    prepare_texts(
        "prose", base, {"source": "embedded"}, {"calibration": WINDOWS * LENGTH, "evaluation": 16 * LENGTH}, out
    )
    return out


@pytest.fixture(scope="module")
def calibration(base: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("peer") / "calibration"
    calibrate(out, base, [text], {"samples": WINDOWS, "length": LENGTH, "seed": 0, "max_hessian_gb": 4})
    return out


def made_by_them(base: Path, tokens: Tensor, recipe: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    from datasets import Dataset
    from llmcompressor.entrypoints.oneshot import oneshot
    from llmcompressor.pipelines.cache import IntermediatesCache

    # Without a GPU its cache can't pin memory.
    monkeypatch.setattr(IntermediatesCache, "pin_memory", lambda *_: None, raising=False)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    rows = {"input_ids": tokens.tolist(), "attention_mask": [[1] * LENGTH] * len(tokens)}
    oneshot(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(base),
        dataset=Dataset.from_dict(rows),
        recipe=recipe,
        num_calibration_samples=len(tokens),
        max_seq_length=LENGTH,
    )
    return model.float()


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_the_damage_is_that_of_llm_compressor(
    base: Path, text: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    method, settings, recipe = RECIPES[name]
    spec = {"sweep": "s", "method": method, "settings": settings, "seed": 0, "on": None}
    compress(tmp_path / "out", "v", base, None, calibration, [], spec)
    assert failure(tmp_path / "out") is None
    tokens = load_file(calibration / "tokens.safetensors")["tokens"].long()
    theirs = made_by_them(base, tokens, recipe(), monkeypatch)
    evaluated = load_file(text / "tokens.safetensors")["evaluation"].long()[: 16 * LENGTH].view(16, LENGTH)
    with torch.inference_mode():
        p, ours, other = (
            model(evaluated).logits.log_softmax(-1) for model in (load(base), load(tmp_path / "out", base=base), theirs)
        )
    damage = [(p.exp() * (p - q)).sum(-1).mean(1) for q in (ours, other)]
    difference = damage[0] - damage[1]
    error = float(difference.std()) / len(difference) ** 0.5
    # Windows are paired. A twentieth: NVFP4's scales are rounded to bfloat16 there before they are rounded to E4M3.
    assert float(difference.mean()) < 3 * error + 0.05 * float(damage[1].mean()), (damage[0].mean(), damage[1].mean())
    assert float(-difference.mean()) < 3 * error + 0.15 * float(damage[1].mean()), (damage[0].mean(), damage[1].mean())
