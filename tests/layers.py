"""Modules of models whose class and attributes differ from one architecture or storage format to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hemorrhage.models.blocks import blocks

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


def block_of(model: PreTrainedModel, index: int) -> Any:
    """Return a decoder block."""
    return blocks(model)[index]


def layer_of(module: nn.Module, name: str) -> Any:
    """Return the module ``name`` inside another: a linear layer, a norm or a storage format."""
    return module.get_submodule(name)


def generate(model: Any, start: Tensor, **options: Any) -> Tensor:
    """Return what a model generates: int64 [samples, tokens], ``start`` included."""
    tokens: Tensor = model.generate(start, **options)
    return tokens


def logits_of(model: Any, tokens: Tensor, **keywords: Any) -> Tensor:
    """Return the logits of a model for ``tokens`` [samples, length]."""
    values: Tensor = model(tokens, **keywords).logits
    return values
