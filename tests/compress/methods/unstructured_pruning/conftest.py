"""A calibration and its gradients, on texts of the model itself, for the methods that read both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hemorrhage.calibrate.gradients import gradients
from hemorrhage.calibrate.reader import Statistics
from hemorrhage.calibrate.statistics import collect
from hemorrhage.models.checkpoint import load
from tests.layers import generate

SAMPLES, LENGTH = 16, 48


@pytest.fixture(scope="module")
def texts(tiny: Path) -> Tensor:
    """What the model itself says: int64 [2 · SAMPLES, LENGTH]."""
    model = load(tiny)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = torch.full((2 * SAMPLES, 1), model.config.bos_token_id)
        return generate(
            model,
            start,
            attention_mask=torch.ones_like(start),
            do_sample=True,
            top_k=0,
            min_new_tokens=LENGTH - 1,
            max_new_tokens=LENGTH - 1,
            pad_token_id=0,
        )


@pytest.fixture(scope="module")
def calibration(tiny: Path, texts: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    save_file({"tokens": texts[:SAMPLES].int()}, folder / "tokens.safetensors")
    collected = collect(load(tiny), texts[:SAMPLES], folder)
    facts = {"corpora": {"made": "ab"}, "tokens": texts[:SAMPLES].numel(), "seed": 0, **collected}
    (folder / "manifest.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="module")
def parts(tiny: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gradients")
    for part in ("loss", "local"):
        gradients(folder / part, tiny, calibration, {"part": part})
    return {part: folder / part for part in ("loss", "local")}


@pytest.fixture(scope="module")
def statistics(calibration: Path, parts: dict[str, Path]) -> Statistics:
    return Statistics(calibration, parts)
