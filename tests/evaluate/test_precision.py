"""The dtype that a model computes in."""

from __future__ import annotations

from pathlib import Path

import torch

from hemorrhage.evaluate.language import (
    hidden_states,
)
from hemorrhage.evaluate.precision import compute_in
from hemorrhage.models.checkpoint import load


def test_a_model_computes_in_bfloat16_within_the_block_only(tiny: Path) -> None:
    model = load(tiny)
    tokens = torch.arange(3, 35)[None]
    before = hidden_states(model, tokens)
    with compute_in(model, "bfloat16"):
        within = hidden_states(model, tokens)
    assert within.dtype == torch.float32
    assert not torch.equal(within, before)
    torch.testing.assert_close(within, before, rtol=0.1, atol=0.1)
    assert torch.equal(hidden_states(model, tokens), before)
    assert next(model.parameters()).dtype == torch.float32
