"""Round to nearest: every weight becomes the nearest point of its group's grid. No data.

The baseline of GPTQ (Frantar et al., arXiv 2210.17323) and of AWQ (Lin et al., arXiv 2306.00978): ``w' = s
(clamp(round(w / s) + z) - z)`` with the grids of hemorrhage.compress.solvers.grid, on all linear layers of the
decoder blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hemorrhage.compress.info import MethodInfo, Paper
from hemorrhage.compress.method import Context, Method
from hemorrhage.compress.progress import remaining
from hemorrhage.compress.solvers.grid import WIDTHS, GridSettings, Quantized, code_dtype, fit, group_width
from hemorrhage.compress.solvers.packing import store
from hemorrhage.models.linears import linears_of
from hemorrhage.models.stream import rows_at_once
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Settings(GridSettings):
    """Settings of round to nearest."""


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Quantize ``model`` in place. Raises ValueError where groups don't divide a layer's inputs."""
    with torch.no_grad():
        for name, linear in remaining(model, linears_of(model), context.progress):
            width = group_width(name, linear.in_features, settings)
            store(model, name, quantize(linear.weight, width, settings, linear.weight.dtype), settings)


def quantize(weight: Tensor, width: int, settings: GridSettings, dtype: torch.dtype) -> Quantized:
    """Return ``weight`` [rows, columns], rounded to nearest in groups of ``width`` columns.

    The scales are stored in ``dtype``. Every grid has a point at zero, so zeros stay.
    """
    pieces = [_round(rows, width, settings, dtype) for rows in weight.split(rows_at_once(weight.shape[1]))]
    return Quantized(
        codes=torch.cat([piece.codes for piece in pieces]),
        scale=torch.cat([piece.scale for piece in pieces]),
        zero=None if settings.symmetric else torch.cat([piece.zero for piece in pieces if piece.zero is not None]),
    )


def _round(weight: Tensor, width: int, settings: GridSettings, dtype: torch.dtype) -> Quantized:
    # [width, rows, groups]: a scale for each of the last two.
    groups = weight.float().unflatten(1, (-1, width)).permute(2, 0, 1).contiguous()
    grid = fit(groups, 0, settings, dtype)
    codes = torch.empty_like(groups)
    grid.round(groups, codes, torch.empty_like(groups))
    return Quantized(
        codes=codes.to(code_dtype(settings.bits)).permute(1, 2, 0).flatten(1),
        scale=grid.scale.to(dtype),
        zero=None if settings.symmetric else grid.zero.to(code_dtype(settings.bits)),
    )


METHOD = Method(
    MethodInfo(
        title="Round to nearest (RTN)",
        summary="every weight becomes the nearest point of its group's grid; 2 to 8 bits, any group or per channel",
        papers=(Paper("Frantar et al.", "2210.17323"),),
        examples=({"bits": 4, "group_size": 64}, {"bits": 4, "group_size": "channel", "symmetric": True}),
        storage=("packed",),
        values=WIDTHS,
    ),
    Settings,
    alter,
)
