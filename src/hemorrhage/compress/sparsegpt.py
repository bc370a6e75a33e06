"""SparseGPT (Frantar and Alistarh, arXiv 2301.00774): prune column by column, the columns to the right make
up for it.

With ``H`` = mean of x xᵀ + damp · mean(diag H) · I and ``H⁻¹ = Uᵀ U``: in every block of columns the lowest
``W_ij² / U_jj²`` of the block become zero (for N:M: of every m columns when they are reached), and ``W[:,
j:] -= (w_j - q) / U_jj · U[j, j:]``. H is the dense model's: errors are not propagated from block to block
of the decoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from tqdm import tqdm

from hemorrhage.compress.blocks import linears_of
from hemorrhage.compress.columns import factor, joined, sweep
from hemorrhage.compress.integrity import zero_share
from hemorrhage.compress.sparsity import SparsitySettings, check_zeros, lowest, lowest_of_groups
from hemorrhage.compress.statistics import Statistics
from hemorrhage.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Settings(SparsitySettings):
    """Settings of SparseGPT; the defaults are the paper's."""

    damp: Annotated[float, Field(gt=0, le=1)] = 0.01
    block_size: Annotated[int, Field(ge=1, strict=True)] = 128


def alter(
    model: PreTrainedModel, settings: Settings, statistics: Statistics, seed: int, dtype: torch.dtype
) -> None:
    """Prune ``model`` in place."""
    linears = linears_of(model)
    before = zero_share(linears)
    with torch.inference_mode():
        for first, names in tqdm(
            statistics.shared().items(), desc="sparsegpt", unit="input", mininterval=5, leave=False
        ):
            pruned = prune(
                [linears[name].weight for name in names], statistics.second_moment(first), settings, first
            )
            for name, weight in zip(names, pruned, strict=True):
                linears[name].weight.copy_(weight)
    check_zeros(linears, settings, before)


def prune(weights: list[Tensor], moment: Tensor, settings: Settings, name: str = "") -> list[Tensor]:
    """Prune ``weights`` float32 [rows_i, columns] that share an input with second moment ``moment``.

    Each layer gets its own mask: unstructured scores are ranked inside one layer's block.
    """
    W = joined(weights)
    if settings.pattern and len(W) % settings.pattern[1]:
        raise ValueError(f"sparsity {settings.sparsity} does not divide the {len(W)} inputs of {name}")
    W[moment.diagonal() == 0] = 0
    lower = factor(moment, settings.damp)
    diagonal = lower.diagonal().unsqueeze(1)
    heights = [len(weight) for weight in weights]
    kept = torch.empty_like(W)

    def begin(start: int, stop: int) -> None:
        scores = (W[start:stop] / diagonal[start:stop]).square_()
        if settings.pattern:
            dropped = lowest_of_groups(scores.T, *settings.pattern).T
        else:
            dropped = torch.cat([lowest(part, settings.severity) for part in scores.split(heights, 1)], 1)
        kept[start:stop] = ~dropped

    sweep(
        W,
        lower,
        settings.block_size,
        settings.pattern[1] if settings.pattern else settings.block_size,
        begin,
        lambda j, w, out: torch.mul(w, kept[j], out=out),
    )
    return [part.T for part in W.split(heights, 1)]
