"""GPTQ (Frantar et al., arXiv 2210.17323): round column by column, the columns to the right make up for it.

With ``H`` = mean of x xᵀ + damp · mean(diag H) · I and ``H⁻¹ = Uᵀ U``: ``q = grid(w_j)``, ``W[:, j:] -=
(w_j - q) / U_jj · U[j, j:]``. As in the paper's code the grid of a group is fitted when its first column is
reached, on the updated weights; a grid per channel is fitted before the first column. With ``act_order``
the columns are taken by falling diag H, and all grids are fitted before the first column (the code's
``static_groups``), so that groups stay neighbouring columns in the checkpoint. H is the dense model's:
errors are not propagated from block to block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from tqdm import tqdm

from hemorrhage.compress.blocks import linears_of
from hemorrhage.compress.columns import factor, joined, sweep
from hemorrhage.compress.grid import Grid, GridSettings, Quantized, fit, group_width
from hemorrhage.compress.packing import Packed, packed
from hemorrhage.compress.statistics import Statistics
from hemorrhage.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Settings(GridSettings):
    """Settings of GPTQ; the defaults are the paper's."""

    damp: Annotated[float, Field(gt=0, le=1)] = 0.01
    block_size: Annotated[int, Field(ge=1, strict=True)] = 128
    act_order: bool = False

    @property
    def curve(self) -> str:
        """What the points of one damage curve have in common."""
        return f"{super().curve}, act order" if self.act_order else super().curve

    @property
    def statistics(self) -> tuple[str, ...]:
        """The second moments of the layers' inputs."""
        return ("hessian",)


def alter(
    model: PreTrainedModel, settings: Settings, statistics: Statistics, seed: int, dtype: torch.dtype
) -> Packed:
    """Quantize ``model`` in place. ``dtype`` is that of the stored scales."""
    linears = linears_of(model)
    quantized = {}
    with torch.inference_mode():
        for first, names in tqdm(
            statistics.shared().items(), desc="gptq", unit="input", mininterval=5, leave=False
        ):
            width = group_width(first, linears[first].in_features, settings)
            parts = quantize(
                [linears[name].weight for name in names],
                statistics.second_moment(first),
                width,
                settings,
                dtype,
            )
            for name, part in zip(names, parts, strict=True):
                quantized[name] = part
                linears[name].weight.copy_(part.dense())
    return packed(model, quantized, settings)


def quantize(
    weights: list[Tensor], moment: Tensor, width: int, settings: Settings, dtype: torch.dtype
) -> list[Quantized]:
    """Quantize ``weights`` float32 [rows_i, columns] that share an input with second moment ``moment``.

    ``width`` columns share a scale.
    """
    W = joined(weights)
    columns, rows = W.shape
    W[moment.diagonal() == 0] = 0
    order = torch.arange(columns)
    if settings.act_order:
        order = moment.diagonal().argsort(descending=True, stable=True)
        moment = moment[order][:, order]
    grids: list[Grid] = []
    if settings.act_order:
        grids = [fit(part, 0, settings, dtype) for part in W.split(width)]
        W = W[order]
    group_of = (order // width).tolist()
    codes = torch.empty(columns, rows)

    def begin(start: int, stop: int) -> None:
        if not settings.act_order:
            grids.append(fit(W[start:stop], 0, settings, dtype))

    def project(j: int, w: Tensor, out: Tensor) -> None:
        grids[group_of[j]].round(w, codes[j], out)

    sweep(W, factor(moment, settings.damp), settings.block_size, width, begin, project)
    if settings.act_order:
        codes[order] = codes.clone()
    scale = torch.stack([grid.scale for grid in grids], dim=1).to(dtype)
    zero = torch.stack([grid.zero for grid in grids], dim=1).to(torch.int8)
    heights = [len(weight) for weight in weights]
    return [
        Quantized(c.contiguous(), s.contiguous(), None if settings.symmetric else z.contiguous())
        for c, s, z in zip(
            codes.T.to(torch.int8).split(heights), scale.split(heights), zero.split(heights), strict=True
        )
    ]
