"""A base with a block that writes nothing, as an expanded model has: all methods work on it."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.checks.integrity import is_finite, zero_share
from hemorrhage.models.checkpoint import load
from hemorrhage.runtime.artifact import failure
from tests.calibration import calibrated

SILENT = ("self_attn.o_proj", "mlp.down_proj")


@pytest.fixture(scope="module")
def silent(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("silent")
    shutil.copytree(tiny, folder / "base")
    state = load_file(tiny / "model.safetensors")
    for part in SILENT:
        state[f"model.layers.2.{part}.weight"] = torch.zeros_like(state[f"model.layers.2.{part}.weight"])
    save_file(state, folder / "base" / "model.safetensors", {"format": "pt"})
    calibrated(folder / "base", folder)
    return folder


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("rtn", {"bits": 4, "group_size": 4}),
        ("gptq", {"bits": 4, "group_size": 4}),
        ("awq", {"bits": 4, "group_size": 4}),
        ("activations", {"bits": 8, "activation_bits": 8, "smooth": 0.5}),
        ("wanda", {"sparsity": 0.5}),
        ("sparsegpt", {"sparsity": 0.5}),
        ("svd", {"removed": 0.3}),
    ],
)
def test_a_silent_block_is_no_obstacle(silent: Path, tmp_path: Path, method: str, settings: dict[str, Any]) -> None:
    spec = {"sweep": "s", "method": method, "settings": settings, "seed": 0}
    compress(tmp_path / "v", "v", silent / "base", None, silent / "calibration", [], spec)
    assert failure(tmp_path / "v") is None
    layer: Any = load(tmp_path / "v", base=silent / "base").get_submodule("model.layers.2.mlp.down_proj")
    assert not (layer.dense() if hasattr(layer, "dense") else layer.weight).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_one_number_that_is_not_finite_is_found_anywhere(dtype: torch.dtype) -> None:
    sound = torch.linspace(-3, 3, 7 * 41).view(7, 41).to(dtype)
    assert is_finite(sound)
    assert is_finite(sound[:0])
    assert is_finite(torch.full((3,), torch.finfo(dtype).max, dtype=dtype))
    for place in (0, 5, 100, 7 * 41 - 1):
        for fault in (math.nan, math.inf, -math.inf):
            broken = sound.clone()
            broken.view(-1)[place] = fault
            assert not is_finite(broken)
    assert is_finite(torch.arange(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_are_counted_of_either_sign(dtype: torch.dtype) -> None:
    linears = {"a": torch.nn.Linear(41, 7, bias=False), "b": torch.nn.Linear(3, 5, bias=False)}
    with torch.no_grad():
        for linear in linears.values():
            linear.weight.data = torch.ones_like(linear.weight).to(dtype)
        linears["a"].weight[2, 3:8] = 0.0
        linears["b"].weight[0] = -0.0
    assert zero_share(linears) == 8 / (41 * 7 + 3 * 5)
