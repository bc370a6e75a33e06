"""Lottery tickets (Frankle and Carbin, arXiv 1803.03635): a trained model's largest weights, trained again from before.

A mask m keeps the weights of largest size, ranked over all linear layers of the blocks at once. They go back to what
they were at the beginning, or after some tokens of the training (rewinding, arXiv 1912.05671), and m ∘ θ is trained
with the text, the order and the schedule of the first time. A ticket of a ticket is a round of iterative pruning: what
was zero stays zero. Drawn anew, the same mask has first weights that had no part in choosing it: the paper's control.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hemorrhage.models.linears import linears_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

REDRAWN = 1_000_003
"""What the seed of weights that are drawn anew lies above the recipe's."""


def masks(model: PreTrainedModel, sparsity: float) -> dict[str, Tensor]:
    """Return by layer which weights are kept, bool of the weight's shape: all but a share ``sparsity`` of the smallest.

    Raises ValueError where more are zero already.
    """
    import torch

    weights = {name: linear.weight.detach().float().abs() for name, linear in linears_of(model).items()}
    sizes = torch.cat([weight.flatten() for weight in weights.values()])
    number = round(sparsity * len(sizes))
    zeros = int((sizes == 0).sum())
    if zeros > number:
        raise ValueError(f"ticket.sparsity: {sparsity} of a parent of which {zeros / len(sizes):.3f} is zero already")
    kept = torch.ones(len(sizes), dtype=torch.bool)
    kept[torch.argsort(sizes, stable=True)[:number]] = False
    parts = kept.split([weight.numel() for weight in weights.values()])
    return {name: part.view_as(weights[name]) for name, part in zip(weights, parts, strict=True)}


def hold(model: PreTrainedModel, kept: Mapping[str, Tensor]) -> None:
    """Set what is not ``kept`` to zero, where it stays: it gets no gradients, and what is zero does not decay."""
    import torch

    linears = linears_of(model)
    with torch.no_grad():
        for name, mask in kept.items():
            weight = linears[name].weight
            weight.mul_(mask)
            weight.register_hook(lambda gradient, mask=mask: gradient * mask)
