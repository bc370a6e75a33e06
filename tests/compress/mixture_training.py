"""Training a mixture of experts through the step, and what lies on disk then."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.__main__ import compress
from hemorrhage.models.__main__ import prepare
from hemorrhage.models.architecture import architecture
from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.tools.export import export
from tests.calibration import calibrated
from tests.families import build

FAMILIES = ("mixtral", "phimoe", "qwen2_moe", "deepseek_v3", "granitemoe", "gpt_oss", "llama4_text")


@dataclass(frozen=True)
class Trained:
    """A family's folder as users have it, the tokens it was trained on, and the variant as a plain folder."""

    original: Path
    exported: Path
    tokens: Tensor


def trained(root: Path, family: str, method: str, **settings: Any) -> Trained:
    """Train a family's small model; only linear layers of its blocks may have changed."""
    original, base = build(root / "original", family), root / "base"
    prepare({"source": "path", "path": str(original)}, base)
    calibration = calibrated(base, root / "calibrated")
    spec = {"sweep": "s", "method": method, "settings": settings, "seed": 0}
    compress(root / "v", "v", base, None, calibration, [], spec)
    assert "failure" not in read_manifest(root / "v"), read_manifest(root / "v")["failure"]
    before, after = Weights(base), Weights(root / "v", base)
    linears = {f"{name}.weight" for name in linears_of(load(base, "stored"))}
    changed = {name for name in before.names() if name not in after or before.digest(name) != after.digest(name)}
    assert changed <= linears
    assert sum("experts" in name for name in changed) > sum("experts" in name for name in linears) / 2
    export(root / "v", root / "exported", "dense", base)
    return Trained(original, root / "exported", Statistics(calibration).tokens().long())


def same_layout(trained: Trained) -> bool:
    """Whether the exported file has the family's own tensors, by names, shapes and dtypes."""
    folders = trained.original, trained.exported
    ours, theirs = (
        {name: (value.shape, value.dtype) for name, value in load_file(folder / "model.safetensors").items()}
        for folder in folders
    )
    return ours == theirs


def logits(folder: Path, tokens: Tensor) -> Tensor:
    """What transformers alone computes with a folder, in float32."""
    model: Any = architecture(AutoConfig.from_pretrained(folder)).from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        values: Tensor = model(tokens, use_cache=False).logits
        return values
