"""GPTQ (Frantar et al., arXiv 2210.17323): round column by column, the columns to the right make up for it.

With ``H`` = mean of x xᵀ + damp · mean(diag H) · I and ``H⁻¹ = Uᵀ U``: ``q = grid(w_j)``, ``W[:, j:] -=
(w_j - q) / U_jj · U[j, j:]`` (computed as hemorrhage.compress.solvers.columns says). As in the paper's code the grid
of a group is fitted when its first column is reached, on the updated weights; a grid per channel is fitted
before the first column. With ``act_order`` the columns are taken by falling diag H, and all grids are fitted
before the first column (the code's ``static_groups``), so that groups stay neighbouring columns in the
checkpoint; that is llmcompressor's default, and its only way with grids.

H is the dense model's, the same for every setting. With ``sequential`` it is that of the model whose blocks
before are quantized already, as in the paper; all layers of a block still see the same pass.

With ``keep_zeros`` a weight that is zero stays zero, whatever the columns before leave to it, and hands that
on: the joint form of SparseGPT (arXiv 2301.00774, section 3.5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from tqdm import tqdm

from hemorrhage.compress.info import COMPENSATION, Comparison, MethodInfo, Paper
from hemorrhage.compress.method import Context, Method
from hemorrhage.compress.progress import remaining
from hemorrhage.compress.solvers.columns import Layers, batches, reach_of, stacked, sweep, wide
from hemorrhage.compress.solvers.grid import GRID, WIDTHS, GridSettings, Quantized, code_dtype, fit, group_width
from hemorrhage.compress.solvers.packing import store
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Settings(GridSettings):
    """Settings of GPTQ; the defaults are the paper's, but for ``sequential``."""

    on_gpu: ClassVar[bool] = True

    damp: Annotated[float, Field(gt=0, le=1)] = 0.01
    act_order: bool = False
    sequential: bool = False

    @property
    def propagates(self) -> bool:
        """Whether H is that of the model whose blocks before are quantized already."""
        return self.sequential

    @property
    def second_order(self) -> bool:
        """Columns make up for each other by the inverse of H."""
        return True

    @property
    def statistics(self) -> tuple[str, ...]:
        """The second moments of the layers' inputs."""
        return ("hessian",)


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Quantize ``model`` in place. Raises ValueError where groups don't divide a layer's inputs."""
    linears, statistics = linears_of(model), context.calibration
    alone = settings.sequential or statistics.collected or wide(each.in_features for each in linears.values())
    groups = statistics.shared()
    # Layers that wait for others of their shape are in no block that is finished.
    items = remaining(model, groups, context.progress, statistics) if alone else iter(groups.items())
    shared = tqdm(items, total=len(groups), desc="gptq", unit="input", mininterval=5, leave=False)
    layers = (
        Layers.of(
            names,
            [linears[name].weight for name in names],
            statistics.second_moment(first, context.device),
            settings.damp,
            settings.act_order,
        )
        for first, names in shared
    )
    with torch.no_grad():
        for batch in batches(layers, alone):
            _put(model, batch, settings)
            del batch


def _put(model: PreTrainedModel, batch: list[Layers], settings: Settings) -> None:
    """Quantize the layers of ``batch``, which are of one shape, where they are in ``model``."""
    width = group_width(batch[0].names[0], len(batch[0].order), settings)
    quantized = _quantize(batch, width, settings, batch[0].weights[0].dtype)
    for each, parts in zip(batch, quantized, strict=True):
        for name, part in zip(each.names, parts, strict=True):
            store(model, name, part, settings)


def quantize(
    weights: list[Tensor], moment: Tensor, width: int, settings: Settings, dtype: torch.dtype
) -> list[Quantized]:
    """Quantize ``weights`` [rows_i, columns] that share an input with second moment ``moment``.

    ``width`` columns share a scale, which is stored in ``dtype``.
    """
    layers = Layers.of(["layer"], weights, moment, settings.damp, settings.act_order)
    return _quantize([layers], width, settings, dtype)[0]


def _quantize(batch: list[Layers], width: int, settings: Settings, dtype: torch.dtype) -> list[list[Quantized]]:
    """Quantize layers of one shape: for each input, the codes of each layer that reads it."""
    W = stacked(batch)
    half = 2 ** (settings.bits - 1)
    grids: list[tuple[Tensor, Tensor, Tensor]] = []

    def place(group: Tensor) -> None:
        """The grid of a group [inputs, width, rows]: its scale, and the lowest and highest step from zero."""
        grid = fit(group, 1, settings, dtype)
        grids.append((grid.scale, -half - grid.zero, half - 1 - grid.zero))

    def grid_of(j: int) -> tuple[Tensor, ...]:
        return grids[j // width]

    if settings.act_order:
        for group in W.split(width, dim=1):
            place(group)
        fitted = [torch.stack(part) for part in zip(*grids, strict=True)]
        each = torch.arange(len(batch), device=W.device)
        groups = [place // width for place in torch.stack([layers.order for layers in batch]).unbind(1)]
        W = torch.stack([w[layers.order] for w, layers in zip(W, batch, strict=True)])

        def grid_of(j: int) -> tuple[Tensor, ...]:
            return tuple(part[groups[j], each] for part in fitted)

    kept = W != 0 if settings.keep_zeros else None

    def begin(start: int, stop: int, group: Tensor) -> None:
        place(group if kept is None else group * kept[:, start:stop])

    def project(j: int, w: Tensor, e: Tensor) -> None:
        scale, low, high = grid_of(j)
        w.div_(scale).round_().clamp_(low, high)
        if kept is not None:
            w.mul_(kept[:, j])
        e.addcmul_(w, scale, value=-1)

    reach = reach_of(batch)
    sweep(W, reach, project, None if settings.act_order else begin, width)
    scales = torch.stack([scale for scale, _, _ in grids], dim=2)
    zeros = torch.stack([-half - low for _, low, _ in grids], dim=2)
    return [
        _parts(w, scale, zero, layers, settings, dtype)
        for w, scale, zero, layers in zip(W, scales, zeros, batch, strict=True)
    ]


def _parts(
    steps: Tensor, scale: Tensor, zero: Tensor, layers: Layers, settings: Settings, dtype: torch.dtype
) -> list[Quantized]:
    """Each layer's codes from ``steps`` away from zero [columns, rows], in the order of the sweep.

    ``scale`` and ``zero`` are [rows, groups].
    """
    if settings.act_order:
        steps[layers.order] = steps.clone()
    codes = steps.unflatten(0, (zero.shape[1], -1)).add_(zero.T.unsqueeze(1)).flatten(0, 1)
    whole = code_dtype(settings.bits)
    return [
        Quantized(c.contiguous().cpu(), s.contiguous().cpu(), None if settings.symmetric else z.contiguous().cpu())
        for c, s, z in zip(
            codes.to(whole).T.contiguous().split(layers.heights),
            scale.to(dtype).split(layers.heights),
            zero.to(whole).split(layers.heights),
            strict=True,
        )
    ]


METHOD = Method(
    MethodInfo(
        title="GPTQ",
        summary="columns make up for each other's rounding; `act_order`, `sequential`",
        papers=(Paper("Frantar et al.", "2210.17323"),),
        examples=(
            {"bits": 4, "group_size": 64},
            {"bits": 4, "group_size": 64, "act_order": True, "sequential": True},
        ),
        storage=("packed",),
        improves_on=(Comparison(COMPENSATION, "rtn", GRID),),
        values=WIDTHS,
    ),
    Settings,
    alter,
)
