"""Texts for the tests of compression."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hemorrhage.models.checkpoint import load
from tests.layers import generate


@pytest.fixture(scope="module")
def text(tiny: Path) -> Tensor:
    """Texts of the model itself: int64 [4, 64]."""
    model = load(tiny)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return generate(
            model, torch.ones((4, 1), dtype=torch.long), do_sample=True, max_new_tokens=63, min_new_tokens=63
        )
