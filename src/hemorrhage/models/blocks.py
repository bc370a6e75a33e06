"""The decoder blocks of a model and the linear layers in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks, in order. Raises ValueError where the model has no stack of blocks."""
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, torch.nn.ModuleList) or not len(layers):
        raise ValueError(f"{type(model).__name__} has no decoder blocks at .layers; it can't be altered")
    return layers
