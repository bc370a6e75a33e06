"""SparseGPT (Frantar and Alistarh, arXiv 2301.00774): prune column by column, the columns to the right compensate.

With the Cholesky factor ``H⁻¹ = Uᵀ U``, in every block of columns the weights of the lowest ``W_ij² / U_jj²`` are
pruned (for N:M: of every m columns when they are reached), and for every column j of it:

    Q[:, j]    = M[:, j] W[:, j]
    Err[:, j]  = (W[:, j] - Q[:, j]) / U_jj
    W[:, j:]  -= Err[:, j] U[j, j:]

    W    weights, transposed here: [inputs, columns, rows]; each column becomes its Q
    H    XᵀX / n + damp · mean(diag H) · I, the damped input second moment
    M    pruning mask, 1 for weights that stay
    R    ``H = R Rᵀ``, upper triangular, so that ``U_jj = 1 / R_jj``
    E    W - Q with W as before the sweep; hemorrhage.compress.solvers.columns passes it on, the same as Err U

H is the dense model's, the same for every setting. With ``sequential`` it is that of the model whose blocks before are
pruned already, as in the paper; all layers of a block still see the same pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from hemorrhage.compress.checks.integrity import zero_share
from hemorrhage.compress.info import MethodInfo, Paper
from hemorrhage.compress.method import Context, Method, Wording
from hemorrhage.compress.solvers.columns import Layers, in_batches, stack_factors, stack_weights, sweep
from hemorrhage.compress.solvers.sparsity import SHARES, CalibratedSettings, check_zeros, lowest, lowest_of_groups
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Settings(CalibratedSettings):
    """Settings of SparseGPT; the defaults are the paper's, but for ``sequential``."""

    on_gpu: ClassVar[bool] = True
    words: ClassVar[Mapping[str, Wording]] = {**CalibratedSettings.words, "block_size": "blocks of {}"}

    damp: Annotated[float, Field(gt=0, le=1)] = 0.01
    block_size: Annotated[int, Field(ge=1, strict=True)] = 128
    """Columns that are ranked together where sparsity is unstructured."""

    @property
    def second_order(self) -> bool:
        """Columns compensate for each other by H⁻¹."""
        return True


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Prune ``model`` in place. Raises ValueError where groups don't divide a layer's inputs."""
    linears = linears_of(model)
    before = zero_share(linears)
    with torch.no_grad():
        for batch in in_batches(model, context, "sparsegpt", settings.damp, alone=settings.sequential):
            _prune_batch(batch, settings)
            del batch
    check_zeros(linears, settings, before)


def _prune_batch(batch: list[Layers], settings: Settings) -> None:
    """Prune the layers of ``batch``, which are of one shape, in place."""
    for layers, pruned in zip(batch, _prune(batch, settings), strict=True):
        for weight, Q in zip(layers.weights, pruned, strict=True):
            weight.copy_(Q)


def prune(weights: list[Tensor], H: Tensor, settings: Settings, name: str = "") -> list[Tensor]:
    """Return Q float32 of ``weights`` [rows_i, columns] that share an input with second moment ``H``."""
    return _prune([Layers.of([name], weights, H, settings.damp)], settings)[0]


def _prune(batch: list[Layers], settings: Settings) -> list[list[Tensor]]:
    """Prune layers of one shape: for each input, the weights of each layer that reads it.

    Each layer gets its own mask: unstructured scores are ranked inside one layer's block.
    """
    W = stack_weights(batch)
    heights = batch[0].heights
    if settings.pattern and W.shape[1] % settings.pattern[1]:
        name = batch[0].names[0]
        raise ValueError(f"sparsity {settings.sparsity} does not divide the {W.shape[1]} inputs of {name}")
    R_jj = torch.stack([layers.R_jj for layers in batch]).unsqueeze(2)
    M = torch.empty_like(W)

    def begin(start: int, stop: int, current: Tensor) -> None:
        scores = (current * R_jj[:, start:stop]).square_()
        if settings.pattern:
            dropped = lowest_of_groups(scores.mT.flatten(0, 1), *settings.pattern)
            M[:, start:stop] = ~dropped.unflatten(0, (len(W), -1)).mT
            return
        for score, mask in zip(scores, M[:, start:stop], strict=True):
            for of_layer, out in zip(score.split(heights, 1), mask.split(heights, 1), strict=True):
                out.copy_(~lowest(of_layer, settings.severity))

    def project(j: int, q: Tensor, e: Tensor) -> None:
        q.mul_(M[:, j])
        e.sub_(q)

    sweep(W, stack_factors(batch), project, begin, settings.pattern[1] if settings.pattern else settings.block_size)
    # Zeros of negative weights are negative zeros; a stored mask knows one kind of zero.
    Q = W.add_(0.0)
    return [[of_layer.T for of_layer in q.split(heights, 1)] for q in Q]


METHOD = Method(
    MethodInfo(
        title="SparseGPT",
        summary="columns compensate for what is pruned; `sequential`",
        papers=(Paper("Frantar and Alistarh", "2301.00774"),),
        examples=({"sparsity": 0.5}, {"sparsity": "2:4", "sequential": True}),
        values=SHARES,
    ),
    Settings,
    alter,
)
