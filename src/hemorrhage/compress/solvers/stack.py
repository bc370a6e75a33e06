"""Taking blocks out of a decoder and putting copies in, and the settings of methods that add blocks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from hemorrhage.compress.info import Spacing
from hemorrhage.compress.method import ConfigJson, Settings, Wording, percent
from hemorrhage.models.blocks import blocks, replace_blocks
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

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

    def check(self, config: ConfigJson) -> str | None:
        """Return the reason why a model with this config.json can't be altered like this, or None."""
        number = config["num_hidden_layers"]
        return None if count(self.added, number) else f"added {self.added} of {number} layers is no layer"

    def number(self, blocks: int) -> int:
        """Return the number of new blocks for a model of ``blocks``. Raises ValueError where that is none."""
        problem = self.check({"num_hidden_layers": blocks})
        if problem:
            raise ValueError(problem)
        return count(self.added, blocks)

    def order(self, blocks: int) -> list[int]:
        """Return the place in a model of so many ``blocks`` that each block of the larger one is made from."""
        raise NotImplementedError

    def check_model(self, model: PreTrainedModel) -> str | None:
        """Raise RefusedError where blocks depend on their place."""
        check_order(model, self.order(len(blocks(model))))
        return None


def check_order(model: PreTrainedModel, order: list[int]) -> None:
    """Raise RefusedError where ``rearrange`` to this order can't be; ``model`` stays as it is."""
    from hemorrhage.models.architecture import skeleton
    from hemorrhage.models.experts import unfuse

    twin = skeleton(model.config)
    unfuse(twin)
    rearrange(twin, order)


def rearrange(model: PreTrainedModel, order: list[int]) -> nn.ModuleList:
    """Make the decoder's blocks those at the places ``order``; a place that comes again is a copy.

    Renumbers every ``layer_idx`` (or the cache of generated keys and values would mix blocks up) and rewrites
    the entries of the configuration that have a value per block. Returns the new stack.
    """
    old = blocks(model)
    seen: set[int] = set()
    new = []
    for origin in order:
        new.append(copy.deepcopy(old[origin]) if origin in seen else old[origin])
        seen.add(origin)
    for index, (origin, block) in enumerate(zip(order, new, strict=True)):
        # Copied along with the block; a second rearrangement keeps the first place.
        vars(block).setdefault("source", origin)
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", index)  # noqa: B010
    stack = torch.nn.ModuleList(new)
    replace_blocks(model, stack)
    config = model.config.get_text_config(decoder=True)
    _rewrite(config, order, len(old))
    if len(order) != len(old) or order != sorted(order):
        _check_kinds(model)
    return stack


INDICES = ("attn_layer_indices", "full_attn_idxs", "mlp_only_layers", "moe_layers")
"""Entries of configurations that name some of the blocks."""

FIRST = ("first_k_dense_replace",)
"""Entries that say how many of the first blocks are of a kind."""


def _rewrite(config: Any, order: list[int], before: int) -> None:
    """Rewrite the entries of ``config`` that have a value per block, or name blocks."""
    computed = {name for name in vars(type(config)) if isinstance(getattr(type(config), name, None), property)}
    for name, value in list(vars(config).items()):
        key = name.removeprefix("_")
        # Token ids may be as many as there are blocks.
        if key in computed or not isinstance(value, list) or key.endswith(("_id", "_ids", "architectures")):
            continue
        if key in INDICES:
            setattr(config, name, [index for index, origin in enumerate(order) if origin in value])
        elif len(value) == before:
            setattr(config, name, [value[origin] for origin in order])
    for name in FIRST:
        if getattr(config, name, None):
            setattr(config, name, sum(origin < getattr(config, name) for origin in order))
    config.num_hidden_layers = len(order)


def _check_kinds(model: PreTrainedModel) -> None:
    """Raise RefusedError where config.json can't say which kind of block each is, or blocks depend on their place.

    Some families compute that: every fourth block attends, the first is dense, a factor falls with the depth.
    """
    from hemorrhage.models.architecture import skeleton
    from hemorrhage.models.experts import unfuse

    twin = skeleton(model.config)
    unfuse(twin)
    for index, (block, wanted) in enumerate(zip(blocks(model), blocks(twin), strict=True)):
        if (difference := _difference(block, wanted)) is not None:
            raise RefusedError(
                f"the blocks of a {model.config.model_type} depend on their place, which config.json can't alter: "
                f"block {index} would have another {difference}"
            )


def are_alike(stack: nn.ModuleList) -> bool:
    """Return whether all blocks are of one kind, wherever they are."""
    return all(_difference(stack[0], other) is None for other in stack)


def _difference(block: nn.Module, wanted: nn.Module) -> str | None:
    """Return the first attribute in which a block differs from the one that config.json puts at its index, or None."""
    theirs: dict[str, nn.Module] = dict(wanted.named_modules())
    for name, module in block.named_modules():
        where = f"{name}." if name else ""
        if name not in theirs:
            return str(name)
        if type(theirs[name]) is not type(module):
            # A packed layer is in a linear layer's place.
            if not list(theirs[name].children()):
                continue
            return name or type(wanted).__name__
        for key, value in vars(theirs[name]).items():
            plain = isinstance(value, int | float | str | bool) and not key.startswith("_") and key not in KEPT
            if plain and vars(module).get(key, value) != value:
                return f"{where}{key}"
    return None


KEPT = ("layer_idx", "training", "in_features", "out_features", "num_key_value_groups", "num_heads", "source")
"""Attributes of modules that say nothing of a block's kind, or that narrowing a layer changes."""


def sources(model: PreTrainedModel) -> list[int]:
    """Return the block that each block of ``model`` was before ``rearrange``.

    A copy's is the one it was copied from.
    """
    return [vars(block)["source"] for block in blocks(model)]


def count(share: float, number: int) -> int:
    """Return ``share`` of ``number`` blocks as a whole number, halves up."""
    return int(share * number + 0.5)
