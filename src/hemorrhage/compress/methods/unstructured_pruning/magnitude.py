"""Magnitude pruning: the smallest weights become zero. No data.

The baseline of SparseGPT and Wanda in the form of Wanda's code (Sun et al., arXiv 2306.11695): score
``|W|``, ranked over a whole linear layer, or inside every m neighbouring inputs for N:M; all linear layers
of the decoder blocks have the same sparsity. llmcompressor's magnitude modifier is no substitute: run
through oneshot it changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hemorrhage.compress.checks.integrity import zero_share
from hemorrhage.compress.info import MethodInfo, Paper
from hemorrhage.compress.method import Context, Method
from hemorrhage.compress.progress import remaining
from hemorrhage.compress.solvers.sparsity import SHARES, SparsitySettings, check_zeros, lowest, lowest_of_groups
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Settings(SparsitySettings):
    """Settings of magnitude pruning."""


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Prune ``model`` in place. Raises ValueError where groups don't divide a layer's inputs."""
    linears = linears_of(model)
    before = zero_share(linears)
    with torch.no_grad():
        for name, linear in remaining(model, linears, context.progress):
            linear.weight.masked_fill_(mask(linear.weight, settings, name), 0)
    check_zeros(linears, settings, before)


def mask(weight: Tensor, settings: SparsitySettings, name: str = "") -> Tensor:
    """Return the mask of ``weight`` [rows, columns] to prune."""
    scores = weight.float().abs()
    if settings.pattern:
        return lowest_of_groups(scores, *settings.pattern, name)
    return lowest(scores, settings.severity)


METHOD = Method(
    MethodInfo(
        title="Magnitude pruning",
        summary="the smallest weights, a share or n:m",
        papers=(Paper("Sun et al.", "2306.11695"),),
        examples=({"sparsity": 0.5}, {"sparsity": "2:4"}),
        values=SHARES,
    ),
    Settings,
    alter,
)
