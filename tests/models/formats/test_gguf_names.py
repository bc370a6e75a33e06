"""Llama in GGUF's words."""

from __future__ import annotations

import numpy as np
import torch

from hemorrhage.models.formats import gguf_names


def rotary_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of query and key rows: rows i and i + d/2 of a head become 2i and 2i + 1."""
    size = len(weight) // heads
    order = []
    for head in range(heads):
        for i in range(size // 2):
            order += [head * size + i, head * size + size // 2 + i]
    return weight[order]


def test_rotary_order_is_undone_row_by_row() -> None:
    weight = torch.arange(4 * 6 * 3, dtype=torch.float32).view(24, 3)
    stored = torch.from_numpy(rotary_pairs(weight.numpy(), heads=4))
    assert not torch.equal(stored, weight)
    assert torch.equal(gguf_names.rotary_halves(stored, heads=4), weight)
