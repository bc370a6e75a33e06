"""Magnitude pruning: the smallest weights become zero. No data.

The baseline of SparseGPT and Wanda in the form of Wanda's code (Sun et al., arXiv 2306.11695): score
``|W|``, ranked over a whole linear layer, or inside every m neighbouring inputs for N:M; all linear layers
of the decoder blocks have the same sparsity. llmcompressor's magnitude modifier is no substitute: run
through oneshot it changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hemorrhage.compress.blocks import linears_of
from hemorrhage.compress.integrity import zero_share
from hemorrhage.compress.sparsity import SparsitySettings, check_zeros, lowest, lowest_of_groups
from hemorrhage.compress.statistics import Statistics
from hemorrhage.lazy import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Settings(SparsitySettings):
    """Settings of magnitude pruning."""

    @property
    def statistics(self) -> tuple[str, ...]:
        """None."""
        return ()


def alter(
    model: PreTrainedModel, settings: Settings, statistics: Statistics | None, seed: int, dtype: torch.dtype
) -> None:
    """Prune ``model`` in place."""
    linears = linears_of(model)
    before = zero_share(linears)
    with torch.no_grad():
        for name, linear in linears.items():
            scores = linear.weight.abs()
            if settings.pattern:
                mask = lowest_of_groups(scores, *settings.pattern, name)
            else:
                mask = lowest(scores, settings.severity)
            linear.weight.masked_fill_(mask, 0)
    check_zeros(linears, settings, before)
