"""What llm-compressor makes of a model, with its own recipes, through the step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from hemorrhage.compress.__main__ import compress
from hemorrhage.models.__main__ import prepare
from hemorrhage.models.checkpoint import load
from hemorrhage.runtime.artifact import failure, read_manifest
from tests import compressed
from tests.models.formats.test_published_step import mean_nll

FOUR_BITS: dict[str, Any] = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}

RECIPES: dict[str, dict[str, Any]] = {
    "W8A8": {"scheme": "W8A8"},
    "FP8": {"scheme": "FP8"},
    "FP8_DYNAMIC": {"scheme": "FP8_DYNAMIC"},
    "FP8_BLOCK": {"scheme": "FP8_BLOCK"},
    "NVFP4A16": {"scheme": "NVFP4A16"},
    "NVFP4": {"scheme": "NVFP4"},
    "MXFP4": {"scheme": "MXFP4"},
    "MXFP8": {"scheme": "MXFP8"},
    "W4A16 asymmetric": {
        "config_groups": {"all": {"targets": ["Linear"], "weights": {**FOUR_BITS, "symmetric": False}}}
    },
    "GPTQ": {"config_groups": {"all": {"targets": ["Linear"], "weights": {**FOUR_BITS, "actorder": "weight"}}}},
    "mixed": {
        "config_groups": {
            "attention": {
                "targets": ["re:.*self_attn.*"],
                "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
                "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
            },
            "mlp": {"targets": ["re:.*mlp.*"], "weights": FOUR_BITS},
        }
    },
}
"""Name -> arguments of llm-compressor's modifier."""

NOT_CALLED = ("FP8_BLOCK",)
"""transformers can't compute with groups of inputs that are wider than the layer."""


def make(source: Path, out: Path, name: str) -> Path:
    """The folder that llm-compressor writes."""
    from datasets import Dataset
    from llmcompressor.entrypoints.oneshot import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier

    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(source)
    # 172 columns, which no group divides.
    ignore = ["lm_head", "re:.*down_proj"]
    modifier = (GPTQModifier if name == "GPTQ" else QuantizationModifier)(
        targets="Linear", ignore=ignore, **RECIPES[name]
    )
    tokens = torch.randint(3, model.config.vocab_size, (16, 64), generator=torch.Generator().manual_seed(0))
    texts = Dataset.from_dict({"input_ids": tokens.tolist(), "attention_mask": torch.ones_like(tokens).tolist()})
    samples = {"dataset": texts, "num_calibration_samples": 16, "max_seq_length": 64}
    oneshot(model=model, tokenizer=tokenizer, recipe=modifier, **samples)
    model.save_pretrained(out, save_compressed=True)
    tokenizer.save_pretrained(out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_what_llm_compressor_writes_is_what_it_computes(trained: Path, tmp_path: Path, name: str) -> None:
    prepare({"source": "path", "path": str(trained)}, tmp_path / "base")
    folder = make(trained, tmp_path / "theirs", name)
    spec = {"sweep": "published", "method": "external", "settings": {"files": str(folder)}, "seed": 0}
    compress(tmp_path / "v", "v", tmp_path / "base", None, None, [], spec)
    assert failure(tmp_path / "v") is None
    assert read_manifest(tmp_path / "v")["lineage"]["verdict"] == "same"
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    compressed.decompress(theirs)
    weights = {name: value.float() for name, value in theirs.named_parameters() if name.endswith("_proj.weight")}
    ours = load(tmp_path / "v", base=tmp_path / "base")
    own = dict(ours.named_parameters())
    assert weights
    assert all(torch.equal(own[name], value) for name, value in weights.items())
    if name not in NOT_CALLED:
        assert mean_nll(ours) == pytest.approx(mean_nll(nn.Module.float(theirs)), abs=1e-5)
