"""What a model would say after its first blocks: its last norm and its head on an earlier state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def depth(model: PreTrainedModel) -> int:
    """Return the number of blocks."""
    return model.config.get_text_config(decoder=True).num_hidden_layers


def exit_layer(model: PreTrainedModel, layers: int | None) -> int:
    """``layers``, or half of the model's blocks where it is None.

    Raises ValueError unless at least one block is before the exit and one behind it.
    """
    blocks = depth(model)
    wanted = blocks // 2 if layers is None else layers
    if not 0 < wanted < blocks:
        raise ValueError(f"layers: {wanted}, between 1 and {blocks - 1} wanted for a model of {blocks} blocks")
    return wanted


def early_logits(model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
    """Return logits float32 [batch, n, vocabulary] of ``states`` [batch, n, width] that left any block but the last."""
    # Imported here: it imports torch, and strategies are read with params.yaml.
    from hemorrhage.models.blockwise import final_norm, logits

    tokens = torch.zeros(states.shape[:2], dtype=torch.long, device=states.device)
    (normed,) = final_norm(model, (tokens,), [states])
    return logits(model, normed)


def implausible_tokens(logits: torch.Tensor, alpha: float) -> torch.Tensor:
    """Mark the tokens with p(v) < ``alpha`` max p, [..., vocabulary]; never for the most probable one."""
    return logits < logits.amax(-1, keepdim=True) + torch.tensor(alpha).log()
