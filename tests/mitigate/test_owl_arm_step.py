"""OWL recovers where blocks with many outliers are those that matter, and outliers dealt out at random do not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from hemorrhage.compress.methods.unstructured_pruning import owl, wanda
from tests.conftest import CARRIED, STORIES
from tests.mitigate.test_mitigation_arms_step import Made, check, compare, made, statistics, texts
from tests.tiny_model import scale_features

__all__ = ["compare", "made", "statistics", "texts"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260K, whose early blocks have outliers and matter most; the carried model with its scales turned around.

    The carried one has its outliers in the last block, which matters least: what OWL supposes is wrong of it.
    """
    if STORIES.is_dir():
        return STORIES
    out = tmp_path_factory.mktemp("early") / "model"
    shutil.copytree(CARRIED / "scaled", out)
    model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
    scale_features(model, first=0.7, last=-0.7)
    model.save_pretrained(out)
    return out


@pytest.mark.parametrize("sparsity", [0.6, 0.7])
def test_owl_recovers_and_its_control_does_not(made: Made, compare: Any, sparsity: float) -> None:
    settings = {"sparsity": sparsity}
    check(compare(made(wanda, **settings), made(owl, **settings), made(owl, **settings, shuffled=True)))
