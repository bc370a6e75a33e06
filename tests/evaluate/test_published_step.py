"""A published checkpoint's loss is the one that transformers computes with the same folder on the same windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from hemorrhage.compress.__main__ import compress
from hemorrhage.evaluate.__main__ import evaluate
from hemorrhage.runtime.artifact import failure
from tests import compressed


@pytest.mark.parametrize(
    ("name", "preset"), [("pack channel of 3 bits", "W4A16"), ("int channel", "W8A8"), ("float channel", "FP8_DYNAMIC")]
)
def test_the_loss_is_the_one_that_transformers_computes(study: Path, tmp_path: Path, name: str, preset: str) -> None:
    windows = load_file(study / "reference" / "windows.safetensors")["prose"].long()
    inputs = dict(preset_name_to_scheme(preset, ["Linear"]).input_activations or ())
    folder = compressed.save(study / "base", tmp_path / "theirs", [compressed.scheme_of(name, **inputs)], windows)
    spec = {"sweep": "published", "method": "external", "settings": {"files": str(folder)}, "seed": 0}
    compress(tmp_path / "v", "v", study / "base", None, None, [], spec)
    assert failure(tmp_path / "v") is None
    evaluate(tmp_path / "evaluation", "v", tmp_path / "v", study / "base", study / "reference", [])
    tokens = pd.read_parquet(tmp_path / "evaluation" / "tokens.parquet").query("corpus == 'prose'")

    theirs: Any = compressed.decompress(AutoModelForCausalLM.from_pretrained(folder, dtype="auto"))
    with torch.no_grad():
        logits = nn.Module.float(theirs)(windows).logits
    losses = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten(), reduction="none")
    expected = losses.view(len(windows), -1)[tokens["window"].tolist(), (tokens["position"] - 1).tolist()]
    assert tokens["nll"].mean() == pytest.approx(expected.mean().item(), abs=1e-5)
    assert tokens["kl"].mean() > 1e-4
