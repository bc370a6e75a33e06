"""Wanda (Sun et al., arXiv 2306.11695): prune by weight times activation, without updating weights.

Score ``S_ij = |W_ij| · norm2(X_j)``; the lowest of every output row become zero, or the lowest of every m
neighbouring inputs for N:M. The norms are the dense model's, the same for every setting; with
``sequential`` they are those behind the blocks that are pruned already, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hemorrhage.compress.checks.integrity import zero_share
from hemorrhage.compress.info import MethodInfo, Paper
from hemorrhage.compress.method import Context, Method
from hemorrhage.compress.progress import remaining
from hemorrhage.compress.solvers.sparsity import (
    SHARES,
    CalibratedSettings,
    check_zeros,
    lowest_of_groups,
    lowest_of_rows,
)
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Settings(CalibratedSettings):
    """Settings of Wanda."""

    @property
    def statistics(self) -> tuple[str, ...]:
        """The norms of the layers' input features."""
        return ("activations",)


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Prune ``model`` in place. Raises ValueError where groups don't divide a layer's inputs."""
    linears = linears_of(model)
    before = zero_share(linears)
    prune(model, context, lambda weight, norms, name: mask(weight, norms, settings, name))
    check_zeros(linears, settings, before)


def prune(model: PreTrainedModel, context: Context, choose: Callable[[Tensor, Tensor, str], Tensor]) -> None:
    """Set to zero what ``choose`` says of each weight [rows, columns], its inputs' norms [columns] and its name."""
    linears, statistics = linears_of(model), context.calibration
    with torch.no_grad():
        for first, names in remaining(model, statistics.shared(), context.progress, statistics):
            norms = statistics.norms(first)
            for name in names:
                weight = linears[name].weight
                weight.masked_fill_(choose(weight, norms, name), 0)


def mask(weight: Tensor, norms: Tensor, settings: Settings, name: str = "") -> Tensor:
    """Return the mask of ``weight`` [rows, columns] to prune, given the inputs' ``norms`` [columns]."""
    scores = weight.float().abs() * norms
    if settings.pattern:
        return lowest_of_groups(scores, *settings.pattern, name)
    return lowest_of_rows(scores, settings.severity)


METHOD = Method(
    MethodInfo(
        title="Wanda",
        summary="weight times activation; `sequential`",
        papers=(Paper("Sun et al.", "2306.11695"),),
        examples=({"sparsity": 0.5}, {"sparsity": "2:4", "sequential": True}),
        values=SHARES,
    ),
    Settings,
    alter,
)
