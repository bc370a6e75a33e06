"""Round to nearest: every weight becomes the nearest point of its group's grid. No data.

The baseline of GPTQ (Frantar et al., arXiv 2210.17323) and of AWQ (Lin et al., arXiv 2306.00978): ``w' = s
(clamp(round(w / s) + z) - z)`` with the grids of hemorrhage.compress.solvers.grid, or the nearest number of a
floating-point format (hemorrhage.compress.solvers.number_formats), on all linear layers of the decoder blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hemorrhage.compress.info import MethodInfo, Paper
from hemorrhage.compress.method import Context, Method
from hemorrhage.compress.progress import remaining
from hemorrhage.compress.solvers.grid import WIDTHS, GridSettings, Quantized, code_dtype, fit, group_width
from hemorrhage.compress.solvers.number_formats import CHOSEN, AnyQuantized, FormatSettings, round_to_nearest
from hemorrhage.compress.solvers.packing import rounded_inputs, store
from hemorrhage.compress.solvers.vocabulary import VocabularySettings, quantize_vocabulary
from hemorrhage.models.linears import linears_of
from hemorrhage.models.stream import rows_at_once
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Settings(VocabularySettings, FormatSettings):
    """Settings of round to nearest."""


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Quantize ``model`` in place. Raises ValueError where groups don't divide a layer's inputs."""
    linears, statistics = linears_of(model), context.statistics
    if statistics is not None:
        shared = statistics.shared()
    elif settings.number is None:
        shared = {name: [name] for name in linears}
    else:
        from hemorrhage.calibrate.statistics import shared_inputs

        shared = shared_inputs(model, torch.ones(1, 1))
    with torch.no_grad():
        for first, names in remaining(model, shared, context.progress, statistics):
            dtype = linears[first].weight.dtype
            largest = statistics.max_abs(first) if settings.statistics and statistics is not None else None
            inputs = rounded_inputs(settings, largest, dtype)
            layers = quantize_shared([linears[name].weight for name in names], first, settings, dtype)
            for name, quantized in zip(names, layers, strict=True):
                store(model, name, quantized, settings, inputs)
        quantize_vocabulary(model, settings.embeddings, settings.group_size, quantize)


def quantize_shared(
    weights: list[Tensor], first: str, settings: FormatSettings, dtype: torch.dtype
) -> Sequence[AnyQuantized]:
    """Return the layers ``weights`` that read one input, rounded; ``first`` is the name of one."""
    if settings.number is None:
        width = group_width(first, weights[0].shape[1], settings)
        return [quantize(weight, width, settings, dtype) for weight in weights]
    return round_to_nearest(weights, settings.number, dtype, settings.block_scales)


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
        summary="every weight becomes the nearest integer of 2 to 8 bits, or number of FP8, NVFP4, MXFP4, MXFP8",
        papers=(
            Paper("Frantar et al.", "2210.17323"),
            Paper("Cook et al.", "2512.02010"),
            Paper("Gupta et al.", "2605.12464"),
        ),
        examples=(
            {"bits": 4, "group_size": 64},
            {"bits": 4, "group_size": "channel", "symmetric": True},
            {"bits": 8, "group_size": "channel", "inputs": "int8_token"},
            {"format": "fp8", "inputs": "fp8_token"},
            {"format": "nvfp4", "inputs": "nvfp4"},
            {"format": "nvfp4", "block_scales": "four_over_six"},
        ),
        storage=("packed", "int8", "floats"),
        improves_on=(replace(CHOSEN, plain="rtn"),),
        values=WIDTHS,
    ),
    Settings,
    alter,
)
