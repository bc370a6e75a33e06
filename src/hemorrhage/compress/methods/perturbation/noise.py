"""Noise on the weights of some blocks: how much a model bears where, whatever the method. No data.

Of each linear layer, ``W + strength · σ(W) · N``: σ is the standard deviation over the whole layer, N is standard
normal, drawn with the variant's seed and the layer's place. Embeddings, head, norms and routers stay. Rounding with a
step Δ adds noise of Δ / √12 (Bennett, "Spectra of Quantized Signals", 1948), so that a strength can be put beside a
number of bits. ``blocks`` says which third of the decoder is altered, or all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from hemorrhage.compress.info import MethodInfo, Paper, Spacing
from hemorrhage.compress.method import Context, Method, Wording
from hemorrhage.compress.method import Settings as Base
from hemorrhage.compress.progress import remaining
from hemorrhage.models.blocks import blocks
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Settings(Base):
    """Settings of noise: its strength as a share of each layer's spread, and the third of the blocks that has it."""

    axis: ClassVar[str] = "noise"
    severity_field: ClassVar[str] = "strength"
    words: ClassVar[Mapping[str, Wording]] = {"strength": "noise of {} standard deviations", "blocks": "{} third"}

    strength: Annotated[float, Field(gt=0, le=4, allow_inf_nan=False)]
    blocks: Literal["all", "first", "middle", "last"] = "all"


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Add noise to ``model`` in place."""
    linears = linears_of(model)
    places = {name: place for place, name in enumerate(linears)}
    stack = blocks(model)
    chosen = {module for place in third(len(stack), settings.blocks) for module in stack[place].modules()}
    with torch.no_grad():
        for name, linear in remaining(model, linears, context.progress):
            if linear in chosen:
                linear.weight.copy_(noisy(linear.weight, settings.strength, (context.seed, places[name])))


def third(number: int, which: str) -> range:
    """Return the places of all blocks, or of a third of them; the middle one has what does not divide."""
    if which == "all":
        return range(number)
    side = number // 3
    return {"first": range(side), "middle": range(side, number - side), "last": range(number - side, number)}[which]


def noisy(weight: Tensor, strength: float, seed: tuple[int, int]) -> Tensor:
    """Return a matrix with noise of ``strength`` times its standard deviation, in its dtype."""
    generator = torch.Generator().manual_seed(seed[0] * 1_000_003 + seed[1])
    plain = weight.float()
    drawn = torch.randn(weight.shape, generator=generator).to(weight.device)
    return (plain + strength * plain.std(correction=0) * drawn).to(weight.dtype)


METHOD = Method(
    MethodInfo(
        title="Noise on weights",
        summary="normal noise of a share of each layer's spread, on all blocks or a third of them",
        papers=(Paper("Bennett 1948"),),
        examples=({"strength": 0.2}, {"strength": 0.2, "blocks": "first"}),
        values=Spacing(0.05, 1.0, 0.05),
    ),
    Settings,
    alter,
)
