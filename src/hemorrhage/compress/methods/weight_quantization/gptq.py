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

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from hemorrhage.compress.info import COMPENSATION, Comparison, MethodInfo, Paper
from hemorrhage.compress.method import Context, Method
from hemorrhage.compress.methods.weight_quantization import rtn
from hemorrhage.compress.solvers.columns import Layers, Limits, in_batches
from hemorrhage.compress.solvers.grid import WIDTHS, Quantized
from hemorrhage.compress.solvers.number_formats import CHOSEN, FORMAT, AnyQuantized, FormatSettings, columns_of_scale
from hemorrhage.compress.solvers.packing import rounded_inputs, store
from hemorrhage.compress.solvers.rounded_sweep import sweep_formats
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
    (swept,) = sweep_formats(batch, width, [settings], dtype, settings.act_order)
    for layers, quantized in zip(batch, swept, strict=True):
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
    return [each.cpu() for each in sweep_formats([layers], width, [settings], dtype, settings.act_order)[0][0]]


def quantize_variants(
    batch: list[Layers], variants: Sequence[Settings], dtype: torch.dtype
) -> list[list[Sequence[AnyQuantized]]]:
    """Quantize layers of one shape by several settings: of each, for each input, each layer that reads it.

    ``damp`` and ``act_order`` are those of ``batch``, whose factors serve all. Settings that give as many columns a
    scale are swept together, as more rows, as far as the device has room. What is returned is on the device.
    """
    columns, rows = len(batch[0].order), sum(batch[0].heights)
    limits = Limits.of_device()
    alike: dict[tuple[int, bool, str], list[int]] = {}
    # Rows of one format are rounded in one call where they are neighbours.
    for number in sorted(range(len(variants)), key=lambda number: variants[number].format):
        width = columns_of_scale(batch[0].names[0], columns, variants[number])
        # Which scales are chosen says what those of the layers are, of which a sweep has one each.
        key = (width, variants[number].keep_zeros, variants[number].block_scales)
        alike.setdefault(key, []).append(number)
    swept: dict[int, list[Sequence[AnyQuantized]]] = {}
    for (width, *_), numbers in alike.items():
        at_once = next((n for n in range(len(numbers), 1, -1) if limits.allow(len(batch), columns, n * rows)), 1)
        for start in range(0, len(numbers), at_once):
            some = numbers[start : start + at_once]
            settings = [variants[number] for number in some]
            swept |= zip(some, sweep_formats(batch, width, settings, dtype, settings[0].act_order), strict=True)
    return [swept[number] for number in range(len(variants))]


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
        storage=("packed", "int8", "floats"),
        improves_on=(
            Comparison(COMPENSATION, "rtn", FORMAT),
            replace(CHOSEN, plain="gptq", same=(*CHOSEN.same, "damp", "act_order", "sequential")),
        ),
        values=WIDTHS,
    ),
    Settings,
    alter,
)
