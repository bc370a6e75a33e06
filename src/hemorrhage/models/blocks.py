"""The decoder of a model and its blocks, wherever a family keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def decoder(model: PreTrainedModel) -> Any:
    """Return the module that makes final hidden states of tokens: embeddings, blocks, last norm."""
    module = model.get_decoder()
    if module is not model:
        return module
    # Some families give the model itself.
    decoders = [child for child in model.children() if hasattr(child, "get_input_embeddings")]
    if not decoders:
        raise RefusedError(f"{type(model).__name__} has no decoder apart from its head")
    return decoders[0]


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder blocks, in order. Raises RefusedError where the model has no stack of blocks."""
    stack: nn.ModuleList = getattr(decoder(model), _stack_name(model))
    return stack


def replace_blocks(model: PreTrainedModel, stack: nn.ModuleList) -> None:
    """Make ``stack`` the decoder blocks of ``model``."""
    setattr(decoder(model), _stack_name(model), stack)


def _stack_name(model: PreTrainedModel) -> str:
    """Return the decoder's name for its blocks: ``layers`` in most families, ``h`` in GPT-2's, ``blocks`` in MPT's."""
    stacks = {name: child for name, child in decoder(model).named_children() if isinstance(child, torch.nn.ModuleList)}
    longest: str | None = max(stacks, key=lambda name: len(stacks[name]), default=None)
    if longest is None or not len(stacks[longest]):
        raise RefusedError(f"{type(model).__name__} has no stack of decoder blocks; it can't be altered")
    return longest
