"""Taking blocks out of a decoder and putting copies in, and the settings of methods that add blocks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from hemorrhage.compress.info import Spacing
from hemorrhage.compress.method import Settings, Wording, percent
from hemorrhage.models.blocks import blocks
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

WRITES = ("o_proj", "down_proj")
"""The linear layers of a Llama-like block that write to the residual stream."""


MORE = Spacing(0.1, 1.0, 0.1)
"""Shares of new blocks worth running next."""

FEWER = Spacing(0.05, 0.8, 0.05)
"""Shares to take out of a model that are worth running next."""


def layers_added(share: float) -> str:
    """Return how many blocks more, in words."""
    return f"+{percent(share)} of layers"


class AddedSettings(Settings):
    """New blocks as a share of the model's blocks, rounded to whole blocks."""

    axis: ClassVar[str] = "added"
    severity_field: ClassVar[str] = "added"
    words: ClassVar[Mapping[str, Wording]] = {"added": layers_added}

    added: Annotated[float, Field(gt=0, le=1)]

    def check(self, config: dict[str, Any]) -> str | None:
        """Why these settings can't be for a model with this config.json, or None."""
        number = config["num_hidden_layers"]
        return None if count(self.added, number) else f"added {self.added} of {number} layers is no layer"

    def number(self, blocks: int) -> int:
        """New blocks for a model of ``blocks``. Raises ValueError where that is none."""
        problem = self.check({"num_hidden_layers": blocks})
        if problem:
            raise ValueError(problem)
        return count(self.added, blocks)


def rearrange(model: PreTrainedModel, order: list[int]) -> nn.ModuleList:
    """Make the decoder's blocks those at the places ``order``; a place that comes again is a copy.

    Renumbers every ``layer_idx`` (or the cache of generated keys and values would mix blocks up) and rewrites
    the entries of the configuration that have a value per block. Returns the new stack.
    """
    old = blocks(model)
    seen: set[int] = set()
    new = []
    for place in order:
        new.append(copy.deepcopy(old[place]) if place in seen else old[place])
        seen.add(place)
    for index, (place, block) in enumerate(zip(order, new, strict=True)):
        # Copied along with the block; a second rearrangement keeps the first place.
        vars(block).setdefault("source", place)
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", index)  # noqa: B010
    stack = torch.nn.ModuleList(new)
    model.get_decoder().layers = stack
    config = model.config
    types = getattr(config, "layer_types", None)
    config.num_hidden_layers = len(order)
    # Mamba's are computed from the number of layers.
    if types and not isinstance(getattr(type(config), "layer_types", None), property):
        config.layer_types = [types[place] for place in order]
    return stack


def sources(model: PreTrainedModel) -> list[int]:
    """The block that each block of ``model`` was before ``rearrange``; a copy's is the one it was copied from."""
    return [vars(block)["source"] for block in blocks(model)]


def scale_writes(block: nn.Module, factor: float) -> None:
    """Multiply the output projections of ``block``, so what it adds to the residual stream, by ``factor``.

    Computed in float32 and stored in the weights' own dtype. Raises ValueError where the block has no such
    projections, or none that are plain linear layers.
    """
    writes = [module for name, module in block.named_modules() if name.rsplit(".", 1)[-1] in WRITES]
    if len(writes) != len(WRITES) or not all(isinstance(module, torch.nn.Linear) for module in writes):
        needed = " and ".join(WRITES)
        raise ValueError(f"to be scaled a {type(block).__name__} needs plain linear layers {needed}")
    with torch.no_grad():
        for module in writes:
            for parameter in module.parameters():
                parameter.copy_(parameter.float() * factor)


def count(share: float, number: int) -> int:
    """``share`` of ``number`` blocks as a whole number, halves up."""
    return int(share * number + 0.5)
