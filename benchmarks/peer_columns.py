"""GPTQ's column update of this package, as an implementation that llmcompressor looks up: for the comparison only.

llmcompressor 0.14 looks up an implementation of ``gptq_block_update`` and has one for CUDA; elsewhere it goes
through a block column by column with a dozen calls for each, on columns that lie far apart in memory.
``register`` adds the sweep of hemorrhage.compress.solvers.columns, with the same result up to the order of sums. Its
SparseGPT looks nothing up (the loop is part of ``sparsify_weight``), so there is nothing to register for it.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from hemorrhage.compress.solvers.columns import sweep

if TYPE_CHECKING:
    from torch import Tensor


@cache
def register() -> None:
    """From now on llmcompressor's GPTQ on a CPU updates its columns with ``gptq_block_update_cpu``."""
    from compressed_tensors.utils.impl_backend import ImplBackend

    ImplBackend.register("gptq_block_update", _fits, 0)(gptq_block_update_cpu)


def gptq_block_update_cpu(
    W1: Tensor,
    Hinv1: Tensor,
    Q1: Tensor,
    Err1: Tensor,
    losses1: Tensor,
    *,
    scale: Tensor,
    zero_point: Tensor | None,
    global_scale: Tensor | None,
    g_idx: Tensor | None,
    quant_args: Any,
    i1: int,
) -> None:
    """Run llmcompressor's ``gptq_block_update`` for float32 blocks ``W1`` [batch, rows, columns] on integer grids.

    ``Hinv1`` [batch, columns, columns] is the block of U, ``H⁻¹ = Uᵀ U``. Writes the values on the grid into
    ``Q1``, errors over U_jj into ``Err1`` and their squares into ``losses1``. The other arguments say what
    the grid of each column is, and go to the engine's own ``column_scale_window``.
    """
    from compressed_tensors.quantization.utils import calculate_range
    from llmcompressor.modifiers.gptq.helpers import column_scale_window

    rows, columns = W1.shape[1:]
    low, high = (limit.item() for limit in calculate_range(quant_args, "cpu"))
    effective, zero = column_scale_window(
        scale, zero_point, global_scale, g_idx, quant_args, num_rows=rows, i1=i1, i2=i1 + columns
    )
    # [batch, rows] of each column; the scale may be for all of the batch.
    scales = effective.float().expand(len(W1), rows, columns).mT.contiguous().unbind(1)
    zeros = None if zero is None else zero.expand(len(W1), rows, columns).mT.contiguous().unbind(1)
    dtype = effective.dtype

    def project(j: int, w: Tensor, e: Tensor) -> None:
        e.copy_(w)
        w.div_(scales[j])
        if zeros is not None:
            w.add_(zeros[j])
        w.round_().clamp_(low, high)
        if zeros is not None:
            w.sub_(zeros[j])
        w.mul_(scales[j])
        if dtype != w.dtype:
            # The engine computes the value on the grid in the dtype of the scales.
            w.copy_(w.to(dtype))
        e.sub_(w)

    diagonal = Hinv1.diagonal(dim1=1, dim2=2)
    W = W1.mT.contiguous()
    errors = sweep(W, (Hinv1 / diagonal.unsqueeze(2)).neg_().mT, project)
    Q1.copy_(W.mT)
    Err1.copy_((errors / diagonal.unsqueeze(2)).mT)
    losses1.copy_(Err1.square())


def _fits(W1: Tensor, *_: object, quant_args: Any, **__: object) -> bool:
    return W1.dim() == 3 and W1.device.type == "cpu" and str(W1.dtype) == "torch.float32" and quant_args.type == "int"
