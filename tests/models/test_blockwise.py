"""Going through a model block by block."""

from __future__ import annotations

from pathlib import Path

import torch

from hemorrhage.models import blockwise
from hemorrhage.models.checkpoint import load


def test_a_model_in_bfloat16_is_walked_in_float32(tiny: Path) -> None:
    model = load(tiny).bfloat16()
    tokens = torch.randint(500, (2, 16), generator=torch.Generator().manual_seed(1))
    hidden = blockwise.forward_blockwise(model, tokens)
    logits = blockwise.logits(model, hidden)
    assert model.dtype == torch.bfloat16
    with torch.no_grad():
        expected = model.float()(tokens).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
