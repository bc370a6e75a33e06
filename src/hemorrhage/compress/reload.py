"""Proof that a checkpoint on disk is the model that was altered in memory.

``check.safetensors`` of a checkpoint: ``tokens`` int32 [1, 48], drawn from the vocabulary by lot, and
``logits`` float32 [4, vocabulary], the in-memory model's at the last four positions.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hemorrhage.compress.size import CHECK
from hemorrhage.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

TOKENS = 48
POSITIONS = 4

TOLERANCE = 1e-4
"""Of the largest absolute logit. Float32 sums in another order differ by 1e-6 of it."""


def write_check(model: PreTrainedModel, folder: Path, seed: int) -> None:
    """Write ``check.safetensors`` of the float32 ``model``; ValueError where its logits are not finite."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.randint(vocabulary, (1, TOKENS), generator=generator, dtype=torch.int32)
    logits = _logits(model, tokens)
    if not logits.isfinite().all():
        raise ValueError("the altered model's logits are not finite")
    save_file({"tokens": tokens, "logits": logits}, folder / CHECK)


def verify(model: PreTrainedModel, folder: Path) -> None:
    """Compare the float32 ``model``, loaded from ``folder``, with what it was in memory when it was written.

    Raises ValueError where a logit differs by more than ``TOLERANCE`` of the largest.
    """
    from safetensors.torch import load_file

    if model.dtype != torch.float32:
        raise ValueError(f"reload is checked in float32, and the model is in {model.dtype}")
    check = load_file(folder / CHECK)
    expected = check["logits"]
    difference = (_logits(model, check["tokens"]) - expected).abs().max().item()
    limit = TOLERANCE * expected.abs().max().item()
    # Not "difference > limit", which a NaN would pass.
    if not difference <= limit:
        raise ValueError(f"reload differs by {difference:.3g} in the logits (at most {limit:.3g} allowed)")


def _logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        output = model(tokens.long().to(model.device), use_cache=False, logits_to_keep=POSITIONS)
    return output.logits[0].float().cpu().contiguous()
