"""GPTQ (Frantar et al., arXiv 2210.17323): round column by column, the columns to the right compensate.

With the Cholesky factor ``H⁻¹ = Uᵀ U``, for every column j from left to right:

    Q[:, j]    = quant(W[:, j])
    Err[:, j]  = (W[:, j] - Q[:, j]) / U_jj
    W[:, j:]  -= Err[:, j] U[j, j:]

    W    weights, transposed here: [inputs, columns, rows]
    H    XᵀX / n + damp · mean(diag H) · I, the damped input second moment
    Q    quantized weights; here as steps from zero, ``Q / Δ``, whole ones or numbers of a floating-point format
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

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from hemorrhage.compress.info import COMPENSATION, Comparison, MethodInfo, Paper
from hemorrhage.compress.method import Context, Method
from hemorrhage.compress.methods.weight_quantization import rtn
from hemorrhage.compress.solvers.columns import Layers, in_batches, stack_factors, stack_weights, sweep
from hemorrhage.compress.solvers.grid import WIDTHS, Quantized, code_dtype, fit
from hemorrhage.compress.solvers.number_formats import (
    FLOATS,
    FORMAT,
    AnyQuantized,
    FloatFormat,
    FormatSettings,
    QuantizedFloats,
    columns_of_scale,
    fit_steps,
    layer_total,
    nearest_,
    spread_largest,
    stored_scales,
)
from hemorrhage.compress.solvers.packing import rounded_inputs, store
from hemorrhage.compress.solvers.vocabulary import VocabularySettings, quantize_vocabulary
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hemorrhage.calibrate.reader import Statistics


class Settings(VocabularySettings, FormatSettings):
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
        """The second moments of the layers' inputs, and their ranges where a scale is fixed."""
        return ("hessian", *super().statistics)


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Quantize ``model`` in place. Raises ValueError where groups don't divide a layer's inputs."""
    with torch.no_grad():
        for batch in in_batches(model, context, "gptq", settings.damp, settings.act_order, settings.sequential):
            _quantize_batch(model, batch, settings, context.calibration)
            del batch
        quantize_vocabulary(model, settings.embeddings, settings.group_size, rtn.quantize)


def _quantize_batch(model: PreTrainedModel, batch: list[Layers], settings: Settings, statistics: Statistics) -> None:
    """Quantize the layers of ``batch``, which are of one shape, in ``model``."""
    dtype = batch[0].weights[0].dtype
    width = columns_of_scale(batch[0].names[0], len(batch[0].order), settings)
    for layers, quantized in zip(batch, _quantize(batch, width, settings, dtype), strict=True):
        is_fixed = "activations" in settings.statistics
        inputs = rounded_inputs(settings, statistics.max_abs(layers.names[0]) if is_fixed else None, dtype)
        for name, layer in zip(layers.names, quantized, strict=True):
            store(model, name, layer, settings, inputs)


def quantize(weights: list[Tensor], H: Tensor, width: int, settings: Settings, dtype: torch.dtype) -> list[Quantized]:
    """Quantize ``weights`` [rows_i, columns] that share an input with second moment ``H`` to integers.

    ``width`` columns share a scale, which is stored in ``dtype``.
    """
    return [each for each in quantize_shared(weights, H, width, settings, dtype) if isinstance(each, Quantized)]


def quantize_shared(
    weights: list[Tensor], H: Tensor, width: int, settings: Settings, dtype: torch.dtype
) -> Sequence[AnyQuantized]:
    """Do as ``quantize`` for any format of numbers."""
    layers = Layers.of(["layer"], weights, H, settings.damp, settings.act_order)
    return _quantize([layers], width, settings, dtype)[0]


@dataclass
class _Grids(abc.ABC):
    """The grids of the groups of layers of one shape, fitted one after the other.

    ``parameters``: of each group Δ and what ``nearest_`` needs besides, each [inputs, rows].
    """

    batch: list[Layers]
    settings: Settings
    dtype: torch.dtype
    parameters: list[tuple[Tensor, ...]] = field(default_factory=list)

    @abc.abstractmethod
    def fit(self, group: Tensor) -> None:
        """Fit the grid of the next group [inputs, width, rows]."""

    @abc.abstractmethod
    def nearest_(self, q: Tensor, *others: Tensor) -> Tensor:
        """Round ``q`` [inputs, rows], counted in steps, in place."""

    @abc.abstractmethod
    def split(self, steps: Tensor, layers: Layers, index: int) -> Sequence[AnyQuantized]:
        """Return each of ``layers``, those of input ``index``, from ``steps`` [columns, rows] away from zero."""


class _Integers(_Grids):
    """Besides Δ the lowest and the highest step from zero."""

    def fit(self, group: Tensor) -> None:
        half = 2 ** (self.settings.bits - 1)
        grid = fit(group, 1, self.settings, self.dtype)
        self.parameters.append((grid.scale, -half - grid.zero, half - 1 - grid.zero))

    def nearest_(self, q: Tensor, *others: Tensor) -> Tensor:
        low, high = others
        return q.round_().clamp_(low, high)

    def split(self, steps: Tensor, layers: Layers, index: int) -> Sequence[AnyQuantized]:
        half = 2 ** (self.settings.bits - 1)
        Δ = torch.stack([group[0][index] for group in self.parameters], dim=1)
        zero = torch.stack([-half - group[1][index] for group in self.parameters], dim=1)
        return _split(steps, Δ, zero, layers, self.settings, self.dtype)


class _Floats(_Grids):
    """Besides Δ the scale as it is stored, which ``nearest_`` does not need."""

    @cached_property
    def total(self) -> Tensor | None:
        """G of each input: float32 [inputs, 1]."""
        totals = [layer_total(layers.weights, self.number) for layers in self.batch]
        stacked = [total for total in totals if total is not None]
        return torch.stack(stacked).to(self.batch[0].B.device) if stacked else None

    @property
    def number(self) -> FloatFormat:
        """The format."""
        return FLOATS[self.settings.format]

    def fit(self, group: Tensor) -> None:
        largest = spread_largest(group.abs().amax(1), self.number, self.batch[0].heights)
        steps = fit_steps(largest, self.number, self.dtype, self.total)
        self.parameters.append((steps.Δ, steps.scale))

    def nearest_(self, q: Tensor, *_others: Tensor) -> Tensor:
        return nearest_(q, self.number)

    def split(self, steps: Tensor, layers: Layers, index: int) -> Sequence[AnyQuantized]:
        scale = torch.stack([group[1][index] for group in self.parameters], dim=1)
        total = None if self.total is None else self.total[index].cpu()
        numbers = steps.to(torch.float8_e4m3fn).T.contiguous()
        return [
            QuantizedFloats(
                each.contiguous().cpu(), stored_scales(s, self.number, self.dtype).cpu(), total, self.number
            )
            for each, s in zip(numbers.split(layers.heights), scale.split(layers.heights), strict=True)
        ]


def _quantize(batch: list[Layers], width: int, settings: Settings, dtype: torch.dtype) -> list[Sequence[AnyQuantized]]:
    """Quantize layers of one shape: for each input, the codes of each layer that reads it."""
    W = stack_weights(batch)
    grids = (_Floats if settings.number else _Integers)(batch, settings, dtype)

    def grid_of(j: int) -> tuple[Tensor, ...]:
        return grids.parameters[j // width]

    if settings.act_order:
        for group in W.split(width, dim=1):
            grids.fit(group)
        fitted = [torch.stack(tensors) for tensors in zip(*grids.parameters, strict=True)]
        inputs = torch.arange(len(batch), device=W.device)
        groups = [columns // width for columns in torch.stack([layers.order for layers in batch]).unbind(1)]
        W = torch.stack([w[layers.order] for w, layers in zip(W, batch, strict=True)])

        def grid_of(j: int) -> tuple[Tensor, ...]:
            return tuple(tensor[groups[j], inputs] for tensor in fitted)

    kept = W != 0 if settings.keep_zeros else None

    def begin(start: int, stop: int, group: Tensor) -> None:
        grids.fit(group if kept is None else group * kept[:, start:stop])

    def project(j: int, q: Tensor, e: Tensor) -> None:
        Δ, *others = grid_of(j)
        grids.nearest_(q.div_(Δ), *others)
        if kept is not None:
            q.mul_(kept[:, j])
        e.addcmul_(q, Δ, value=-1)

    sweep(W, stack_factors(batch), project, None if settings.act_order else begin, width)
    for steps, layers in zip(W, batch, strict=True):
        if settings.act_order:
            steps[layers.order] = steps.clone()
    return [grids.split(steps, layers, index) for index, (steps, layers) in enumerate(zip(W, batch, strict=True))]


def _split(
    steps: Tensor, Δ: Tensor, zero: Tensor, layers: Layers, settings: Settings, dtype: torch.dtype
) -> list[Quantized]:
    """Return each layer's codes from ``steps`` away from zero [columns, rows].

    ``Δ`` and ``zero`` are [rows, groups].
    """
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
            {"bits": 4, "group_size": 64, "inputs": "int8_token"},
            {"format": "nvfp4", "act_order": True, "inputs": "nvfp4"},
            {"format": "fp8_block", "inputs": "fp8_group"},
        ),
        storage=("packed", "floats"),
        improves_on=(Comparison(COMPENSATION, "rtn", FORMAT),),
        values=WIDTHS,
    ),
    Settings,
    alter,
)
