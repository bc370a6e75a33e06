"""The decoder blocks of a model and the linear layers in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hemorrhage.lazy import torch

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks, in order. Raises ValueError where the model has no stack of blocks."""
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, torch.nn.ModuleList) or not len(layers):
        raise ValueError(f"{type(model).__name__} has no decoder blocks at .layers; it can't be altered")
    return layers


def linears_of(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """``{name in the model: module}`` of every linear layer of the decoder blocks, in their order.

    Embeddings and the language-model head are none of them: no method alters these. Raises ValueError where
    the blocks hold no linear layer.
    """
    inside = {module for module in blocks(model).modules() if isinstance(module, torch.nn.Linear)}
    found = {name: module for name, module in model.named_modules() if module in inside}
    if not found:
        raise ValueError(f"the decoder blocks of {type(model).__name__} hold no linear layers")
    return found
