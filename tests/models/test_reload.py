"""A checkpoint on disk is compared with the model that was altered in memory."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hemorrhage.models.checkpoint import load
from hemorrhage.models.emulation.activations import InputRounding
from hemorrhage.models.reload import POSITIONS, TOKENS, FreshProcess, verify, write_check
from hemorrhage.models.weights import CHECK


@pytest.fixture
def checked(tiny: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny, tmp_path / "model")
    write_check(load(tiny), tmp_path / "model", seed=3)
    return tmp_path / "model"


def damage(folder: Path, by: float = 1.2) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"] *= by
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_the_check_holds_the_models_own_last_logits(tiny: Path, checked: Path) -> None:
    check = load_file(checked / CHECK)
    assert check.keys() == {"tokens", "logits"}
    assert check["tokens"].shape == (1, TOKENS)
    with torch.no_grad():
        expected = load(tiny)(check["tokens"].long()).logits[0, -POSITIONS:]
    torch.testing.assert_close(check["logits"], expected, rtol=1e-4, atol=1e-4)
    write_check(load(tiny), checked, seed=4)
    assert not torch.equal(load_file(checked / CHECK)["tokens"], check["tokens"])


def test_a_model_that_differs_is_refused_here_and_in_a_fresh_process(tiny: Path, checked: Path) -> None:
    verify(load(checked), checked)
    with FreshProcess() as process:
        process.verify(checked, tiny)
    damage(checked)
    with pytest.raises(ValueError, match=r"reload differs by .* in the logits"):
        verify(load(checked), checked)
    with (
        FreshProcess() as process,
        pytest.raises(ValueError, match=r"in a fresh process: ValueError: reload differs by"),
    ):
        process.verify(checked, tiny)


def test_a_model_of_half_precision_can_t_be_compared(checked: Path) -> None:
    with pytest.raises(ValueError, match=r"checked in float32, and the model is in torch\.bfloat16"):
        verify(load(checked, "bfloat16"), checked)


def test_what_rounds_is_compared_without_rounding(tiny: Path, checked: Path) -> None:
    model: Any = load(tiny)
    model.model.layers[0].mlp.up_proj.register_forward_pre_hook(InputRounding(3, "token"))
    write_check(model, checked, seed=3)
    check = load_file(checked / CHECK)
    assert check.keys() == {"tokens", "logits", "exact"}
    assert not torch.allclose(check["logits"], check["exact"], atol=1e-3)
    verify(load(tiny), checked)
    verify(model, checked)


def test_logits_that_are_not_finite_are_refused(tiny: Path, tmp_path: Path) -> None:
    model: Any = load(tiny)
    model.model.norm.weight.data[0] = math.nan
    with pytest.raises(ValueError, match="the altered model's logits are not finite"):
        write_check(model, tmp_path, seed=0)
    assert not list(tmp_path.iterdir())
