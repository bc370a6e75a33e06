"""Tests of stack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.depth_expansion import duplication
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import load
from hemorrhage.runtime.artifact import read_manifest
from tests.calibration import calibrated
from tests.compress.stacks import altered
from tests.layers import block_of


@pytest.fixture(scope="module")
def calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("depth"))


def test_the_manifest_says_which_blocks_of_the_base_the_blocks_are(tiny: Path, tmp_path: Path) -> None:
    def made(name: str, method: str, settings: dict[str, Any], parent: str | None = None) -> dict[str, Any]:
        spec = {"sweep": "s", "method": method, "settings": settings, "seed": 0, "on": parent}
        compress(tmp_path / name, name, tiny, tmp_path / parent if parent else None, None, [], spec)
        return read_manifest(tmp_path / name)

    assert made("grown", "llama_pro", {"added": 0.4})["blocks"] == [0, 1, 1, 2, 3, 4, 4]
    shrunk = made("shrunk", "depth", {"order": "random", "removed": 0.3}, "grown")["blocks"]
    assert len(shrunk) == 5
    assert shrunk == sorted(shrunk)
    assert max(shrunk) <= 4
    assert made("pruned", "magnitude", {"sparsity": 0.5}, "shrunk")["blocks"] == shrunk
    assert "blocks" not in made("alone", "magnitude", {"sparsity": 0.5})


def test_scaling_is_rounded_once_to_the_stored_type(tiny: Path) -> None:
    model, naive = load(tiny, "bfloat16"), load(tiny, "bfloat16")
    duplication.alter(model, duplication.Settings(added=0.2, scale=0.3), Context())
    duplication.alter(naive, duplication.Settings(added=0.2), Context())
    ours = block_of(model, 3).mlp.down_proj.weight
    assert torch.equal(ours, (block_of(naive, 3).mlp.down_proj.weight.float() * 0.3).bfloat16())


def test_copies_share_no_memory(tiny: Path) -> None:
    model = altered(tiny, duplication, added=1.0)
    pointers = [parameter.data_ptr() for parameter in blocks(model).parameters()]
    assert len(set(pointers)) == len(pointers)
