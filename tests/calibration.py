"""A calibration set of a tiny model, for the tests of compression."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hemorrhage.calibrate.__main__ import calibrate

SPEC: dict[str, Any] = {"samples": 6, "length": 32, "seed": 3, "max_hessian_gb": 1}


def text_folder(folder: Path, tokens: int = 4000) -> Path:
    """A text of random tokens with a skewed distribution."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.rand(tokens, generator=generator) ** 3 * 500).to(torch.int32)
    save_file({"calibration": drawn, "evaluation": drawn.clone()}, folder / "tokens.safetensors")
    (folder / "manifest.json").write_text(json.dumps({"corpus": "made", "sha256": "ab"}))
    return folder


def calibrated(base: Path, folder: Path) -> Path:
    """A calibration folder of the model ``base``."""
    calibrate(folder / "calibration", base, [text_folder(folder / "text")], SPEC)
    return folder / "calibration"
