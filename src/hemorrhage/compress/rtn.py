"""Round to nearest: every weight becomes the nearest point of its group's grid. No data.

The baseline of GPTQ (Frantar et al., arXiv 2210.17323) and of AWQ (Lin et al., arXiv 2306.00978): ``w' = s
(clamp(round(w / s) + z) - z)`` with the grids of hemorrhage.compress.grid, on all linear layers of the
decoder blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hemorrhage.compress.blocks import linears_of
from hemorrhage.compress.grid import GridSettings, Quantized, fit, group_width
from hemorrhage.compress.packing import Packed, packed
from hemorrhage.compress.statistics import Statistics
from hemorrhage.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Settings(GridSettings):
    """Settings of round to nearest."""


def alter(
    model: PreTrainedModel, settings: Settings, statistics: Statistics | None, seed: int, dtype: torch.dtype
) -> Packed:
    """Quantize ``model`` in place. ``dtype`` is that of the stored scales."""
    quantized = {}
    with torch.no_grad():
        for name, linear in linears_of(model).items():
            quantized[name] = quantize(
                linear.weight, group_width(name, linear.in_features, settings), settings, dtype
            )
            linear.weight.copy_(quantized[name].dense())
    return packed(model, quantized, settings)


def quantize(weight: Tensor, width: int, settings: GridSettings, dtype: torch.dtype) -> Quantized:
    """``weight`` float32 [rows, columns], rounded to nearest in groups of ``width`` columns."""
    # [width, rows, groups]: a scale for each of the last two.
    groups = weight.unflatten(1, (-1, width)).permute(2, 0, 1).contiguous()
    grid = fit(groups, 0, settings, dtype)
    codes = torch.empty_like(groups)
    grid.round(groups, codes, torch.empty_like(groups))
    return Quantized(
        codes=codes.to(torch.int8).permute(1, 2, 0).flatten(1),
        scale=grid.scale.to(dtype),
        zero=None if settings.symmetric else grid.zero.to(torch.int8),
    )
