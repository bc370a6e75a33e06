"""GPTQ (Frantar et al., arXiv 2210.17323): round column by column, the columns to the right compensate.

With the Cholesky factor ``H⁻¹ = Uᵀ U``, for every column j from left to right:

    Q[:, j]    = quant(W[:, j])
    Err[:, j]  = (W[:, j] - Q[:, j]) / U_jj
    W[:, j:]  -= Err[:, j] U[j, j:]

    W    weights, transposed here: [inputs, columns, rows]
    H    XᵀX / n + damp · mean(diag H) · I, the damped input second moment
    Q    quantized weights; here as whole steps from zero, ``Q / Δ``
    Δ    scale of a group's grid
    E    W - Q with W as before the sweep; hemorrhage.compress.solvers.columns passes it on, the same as Err U

As in the paper's code the grid of a group is fitted when its first column is reached, on the updated weights; a grid
per channel is fitted before the first column. With ``act_order`` the columns are taken by falling diag H, and all
grids are fitted before the first column (the code's ``static_groups``), so that groups stay neighbouring columns in
the checkpoint; that is llmcompressor's default, and its only way with grids.

H is the dense model's, the same for every setting. With ``sequential`` it is that of the model whose blocks
before are quantized already, as in the paper; all layers of a block still see the same pass.

With ``keep_zeros`` a weight that is zero stays zero, whatever the columns before leave to it, and passes that
on: the joint form of SparseGPT (arXiv 2301.00774, section 3.5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from tqdm import tqdm

from hemorrhage.compress.info import COMPENSATION, Comparison, MethodInfo, Paper
from hemorrhage.compress.method import Context, Method
from hemorrhage.compress.progress import remaining
from hemorrhage.compress.solvers.columns import Layers, are_wide, batches, stack_factors, stack_weights, sweep
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
        """True where H is that of the model whose blocks before are quantized already."""
        return self.sequential

    @property
    def second_order(self) -> bool:
        """Columns compensate for each other by H⁻¹."""
        return True

    @property
    def statistics(self) -> tuple[str, ...]:
        """The second moments of the layers' inputs."""
        return ("hessian",)


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Quantize ``model`` in place. Raises ValueError where groups don't divide a layer's inputs."""
    linears, statistics = linears_of(model), context.calibration
    alone = settings.sequential or statistics.collected or are_wide(each.in_features for each in linears.values())
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
            _quantize_batch(model, batch, settings)
            del batch


def _quantize_batch(model: PreTrainedModel, batch: list[Layers], settings: Settings) -> None:
    """Quantize the layers of ``batch``, which are of one shape, in ``model``."""
    width = group_width(batch[0].names[0], len(batch[0].order), settings)
    for layers, quantized in zip(batch, _quantize(batch, width, settings, batch[0].weights[0].dtype), strict=True):
        for name, layer in zip(layers.names, quantized, strict=True):
            store(model, name, layer, settings)


def quantize(weights: list[Tensor], H: Tensor, width: int, settings: Settings, dtype: torch.dtype) -> list[Quantized]:
    """Quantize ``weights`` [rows_i, columns] that share an input with second moment ``H``.

    ``width`` columns share a scale, which is stored in ``dtype``.
    """
    layers = Layers.of(["layer"], weights, H, settings.damp, settings.act_order)
    return _quantize([layers], width, settings, dtype)[0]


def _quantize(batch: list[Layers], width: int, settings: Settings, dtype: torch.dtype) -> list[list[Quantized]]:
    """Quantize layers of one shape: for each input, the codes of each layer that reads it."""
    W = stack_weights(batch)
    half = 2 ** (settings.bits - 1)
    grids: list[tuple[Tensor, Tensor, Tensor]] = []

    def fit_grid(group: Tensor) -> None:
        """Fit the grid of a group [inputs, width, rows]: Δ, and the lowest and highest step from zero."""
        grid = fit(group, 1, settings, dtype)
        grids.append((grid.scale, -half - grid.zero, half - 1 - grid.zero))

    def grid_of(j: int) -> tuple[Tensor, ...]:
        return grids[j // width]

    if settings.act_order:
        for group in W.split(width, dim=1):
            fit_grid(group)
        fitted = [torch.stack(tensors) for tensors in zip(*grids, strict=True)]
        inputs = torch.arange(len(batch), device=W.device)
        groups = [columns // width for columns in torch.stack([layers.order for layers in batch]).unbind(1)]
        W = torch.stack([w[layers.order] for w, layers in zip(W, batch, strict=True)])

        def grid_of(j: int) -> tuple[Tensor, ...]:
            return tuple(tensor[groups[j], inputs] for tensor in fitted)

    kept = W != 0 if settings.keep_zeros else None

    def begin(start: int, stop: int, group: Tensor) -> None:
        fit_grid(group if kept is None else group * kept[:, start:stop])

    def project(j: int, q: Tensor, e: Tensor) -> None:
        Δ, low, high = grid_of(j)
        q.div_(Δ).round_().clamp_(low, high)
        if kept is not None:
            q.mul_(kept[:, j])
        e.addcmul_(q, Δ, value=-1)

    sweep(W, stack_factors(batch), project, None if settings.act_order else begin, width)
    scales = torch.stack([Δ for Δ, _, _ in grids], dim=2)
    zeros = torch.stack([-half - low for _, low, _ in grids], dim=2)
    return [
        _split(steps, Δ, zero, layers, settings, dtype)
        for steps, Δ, zero, layers in zip(W, scales, zeros, batch, strict=True)
    ]


def _split(
    steps: Tensor, Δ: Tensor, zero: Tensor, layers: Layers, settings: Settings, dtype: torch.dtype
) -> list[Quantized]:
    """Return each layer's codes from ``steps`` away from zero [columns, rows], in the order of the sweep.

    ``Δ`` and ``zero`` are [rows, groups].
    """
    if settings.act_order:
        steps[layers.order] = steps.clone()
    codes = steps.unflatten(0, (zero.shape[1], -1)).add_(zero.T.unsqueeze(1)).flatten(0, 1)
    integer = code_dtype(settings.bits)
    return [
        Quantized(c.contiguous().cpu(), s.contiguous().cpu(), None if settings.symmetric else z.contiguous().cpu())
        for c, s, z in zip(
            codes.to(integer).T.contiguous().split(layers.heights),
            Δ.to(dtype).split(layers.heights),
            zero.to(integer).split(layers.heights),
            strict=True,
        )
    ]


METHOD = Method(
    MethodInfo(
        title="GPTQ",
        summary="columns compensate for each other's rounding; `act_order`, `sequential`",
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
