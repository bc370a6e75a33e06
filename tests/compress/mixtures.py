"""What a mixture of experts computes, as the bench and as transformers alone read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.layers import logits_of
from tests.whole import whole

TOKENS = torch.randint(3, 500, (2, 40), generator=torch.Generator().manual_seed(5))


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return logits_of(model, TOKENS)


def plain(folder: Path, base: Path | None = None, **arguments: Any) -> PreTrainedModel:
    """As transformers alone reads it."""
    folder = whole(folder, base) if base else folder
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **arguments).eval()
    return model


def assert_close(left: Tensor, right: Tensor) -> None:
    assert (left - right).abs().max() <= 2e-5 * right.abs().max()
