"""Structured pruning by regularization: proximal training with group lasso over heads and channels, then width pruning.

The groups are those of width pruning (hemorrhage.compress.methods.structured_pruning.width): a head of keys and values
with the query heads that read it, or a channel of the MLP, each with all rows and columns that go with it. The loss
gets a penalty ``λ Σ_g √n_g ‖w_g‖`` over groups of n_g weights (Yuan and Lin 2006). Each step descends on the loss alone
and then applies its proximal operator, the block soft threshold, with the step's learning rate η:

    w_g = max(0, 1 - η λ √n_g / ‖w_g‖) w_g

so that whole groups become zero while others learn to do without them. λ is a block's own, for heads and for channels:
over all steps a group that no gradient holds up loses ``strength`` times the mean of ``‖w_g‖ / √n_g``, times √n_g. In
the end the groups of the smallest norm go as in width pruning, to the same share. No more groups become zero than go,
and heads of which none goes have no penalty. Blocks that are spared are trained without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from hemorrhage.compress.info import MethodInfo, Paper
from hemorrhage.compress.method import ConfigJson, Context, Method, Wording
from hemorrhage.compress.methods.structured_pruning import width
from hemorrhage.compress.solvers.coupled import find_parts
from hemorrhage.compress.solvers.pruned_training import (
    PrunedSettings,
    Rule,
    total_rate,
    train,
    write_back,
)
from hemorrhage.compress.solvers.stack import FEWER
from hemorrhage.compress.solvers.training import stored_dtypes
from hemorrhage.models.blocks import blocks
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hemorrhage.compress.solvers.coupled import Coupled


class Settings(PrunedSettings):
    """The share of the blocks' weights to take out, how strong the penalty is, and the budget of the training."""

    axis: ClassVar[str] = "removed"
    severity_field: ClassVar[str] = "removed"
    words: ClassVar[Mapping[str, Wording]] = {
        **PrunedSettings.words,
        "removed": width.weights_removed,
        "strength": "group penalty {}",
        "protect_first": "first {} blocks spared",
        "protect_last": "last {} spared",
    }
    always_named: ClassVar[tuple[str, ...]] = ("strength", "steps", "protect_first", "protect_last")

    removed: Annotated[float, Field(gt=0, lt=1)]
    strength: Annotated[float, Field(ge=0)] = 0.5
    protect_first: Annotated[int, Field(ge=0, strict=True)] = 4
    protect_last: Annotated[int, Field(ge=0, strict=True)] = 2

    @property
    def width(self) -> width.Settings:
        """The settings of what is done after the training."""
        return width.Settings(
            removed=self.removed,
            importance="magnitude",
            protect_first=self.protect_first,
            protect_last=self.protect_last,
        )

    def check(self, config: ConfigJson) -> str | None:
        """Return the reason why a model with this config.json can't be altered like this, or None."""
        return self.width.check(config)

    def check_model(self, model: PreTrainedModel) -> str | None:
        """Raise RefusedError where a block has no MLP whose channels can be taken out, or is too narrow."""
        return self.width.check_model(model)


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Train ``model`` and make its blocks narrower in place; it is in float32 while it trains."""
    dtypes = stored_dtypes(model)
    weights = train(model, Blocks(model, settings), settings, context)
    write_back(model, weights, dtypes)
    width.alter(model, settings.width, context)


class Blocks(Rule):
    """The block soft threshold after each step, for the heads and the channels of the blocks that are not spared."""

    def __init__(self, model: PreTrainedModel, settings: Settings) -> None:
        """Find the groups of ``model`` and their penalties."""
        names = {module: name for name, module in model.named_modules()}
        weights = {name: linear.weight.detach().float() for name, linear in linears_of(model).items()}
        stack, each_rate = blocks(model), settings.strength / total_rate(settings)
        parts, chosen = find_parts(model), settings.width
        shapes = width.shapes_of(model, parts)
        share = width.pruned_share(shapes, chosen)
        self.groups: list[tuple[str, Coupled, float, int]] = []
        for index, block in enumerate(stack):
            if not width.is_pruned(index, len(stack), chosen):
                continue
            kinds = (parts[index].heads, parts[index].channels)
            for coupled, gone in zip(kinds, shapes[index].gone(share), strict=True):
                if coupled is not None and gone:
                    norms, number = group_norms(weights, names[block], coupled)
                    size = (norms / number**0.5).mean().item()
                    self.groups.append((names[block], coupled, each_rate * size, gone))

    def after_step(self, weights: dict[str, Tensor], learning_rate: float) -> None:
        """Shrink all groups."""
        for block, coupled, penalty, gone in self.groups:
            norms, number = group_norms(weights, block, coupled)
            most = norms.kthvalue(gone).values.item()
            factor = block_factor(norms, min(learning_rate * penalty * number**0.5, most))
            shrink(weights, block, coupled, factor)


def group_norms(weights: Mapping[str, Tensor], block: str, coupled: Coupled) -> tuple[Tensor, int]:
    """Return the norm of each group of ``block`` [groups], and the number of weights of a group."""
    columns = weights[f"{block}.{coupled.reader}"][:, coupled.columns]
    squares, number = columns.square().sum((0, 2)), columns.shape[0] * columns.shape[2]
    for layer, places in coupled.rows.items():
        rows = weights[f"{block}.{layer}"][places]
        squares, number = squares + rows.square().sum((1, 2)), number + rows.shape[1] * rows.shape[2]
    return squares.sqrt(), number


def block_factor(norms: Tensor, threshold: float) -> Tensor:
    """Return ``max(0, 1 - threshold / norm)``: the proximal operator of ``threshold · ‖w‖`` multiplies w with it."""
    return (1 - threshold / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp_(min=0)


def shrink(weights: Mapping[str, Tensor], block: str, coupled: Coupled, factor: Tensor) -> None:
    """Multiply the weights of each group with its ``factor`` [groups], in place."""
    weights[f"{block}.{coupled.reader}"][:, coupled.columns.flatten()] *= factor.repeat_interleave(
        coupled.columns.shape[1]
    )
    for layer, places in coupled.rows.items():
        weights[f"{block}.{layer}"][places.flatten()] *= factor.repeat_interleave(places.shape[1]).unsqueeze(1)


METHOD = Method(
    MethodInfo(
        title="Proximal training (group lasso)",
        summary="trained with a penalty on heads and MLP channels by block soft thresholds, then the smallest go",
        papers=(Paper("Yuan and Lin 2006"), Paper("Parikh and Boyd 2014")),
        examples=({"removed": 0.2, "steps": 50},),
        storage=("plain", "pruned_width"),
        values=FEWER,
        spares_blocks=True,
    ),
    Settings,
    alter,
)
