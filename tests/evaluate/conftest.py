"""Fixtures of this folder's tests."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hemorrhage.data.tasks.probes import prepare
from hemorrhage.evaluate.reference import Spec, reference
from hemorrhage.models.checkpoint import load, load_tokenizer
from hemorrhage.models.reload import write_check
from hemorrhage.runtime.artifact import write_manifest
from tests.evaluate.texts import WINDOW, stream_of


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    return load(tiny)


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    return load_tokenizer(tiny)


@pytest.fixture(scope="module")
def damaged(tiny: Path) -> Any:
    broken: Any = load(tiny)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in broken.model.layers:
            weight = layer.mlp.down_proj.weight
            weight += 0.1 * weight.std() * torch.randn(weight.shape, generator=noise)
    return broken


@pytest.fixture(scope="module")
def windows(model: Any) -> torch.Tensor:
    return torch.randint(
        3, model.config.vocab_size, (3, WINDOW), generator=torch.Generator().manual_seed(1), dtype=torch.int32
    )


@pytest.fixture(scope="module")
def study(tiny: Path, damaged: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two texts, a task, the reference and a sound checkpoint."""
    root = tmp_path_factory.mktemp("study")
    shutil.copytree(tiny, root / "base")
    write_manifest(root / "base", leading=[1])
    tokenizer = load_tokenizer(tiny)
    for corpus, task in (("prose", "agreement"), ("code", "recall")):
        folder = root / corpus
        folder.mkdir()
        save_file({"evaluation": stream_of(task, tokenizer)}, folder / "tokens.safetensors")
        write_manifest(folder, corpus=corpus, sha256=f"sha of {corpus}", join="")
    prepare("agreement", 8, 0, root / "tasks" / "agreement" / "x")
    spec: Spec = {"dtype": "float32", "window": 32, "windows": 6, "diagnostics": {"windows": 2, "window": 24}}
    texts, tasks = [root / "prose", root / "code"], [root / "tasks" / "agreement" / "x"]
    reference(root / "reference", root / "base", texts, tasks, spec)
    damaged.save_pretrained(root / "checkpoint")
    write_check(damaged, root / "checkpoint", seed=0)
    write_manifest(root / "checkpoint", variant="v", theoretical="nothing gained")
    return root
