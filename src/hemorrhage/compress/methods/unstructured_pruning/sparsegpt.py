"""SparseGPT (Frantar and Alistarh, arXiv 2301.00774): prune column by column, the columns to the right make
up for it.

With ``H`` = mean of x xᵀ + damp · mean(diag H) · I and ``H⁻¹ = Uᵀ U``: in every block of columns the lowest
``W_ij² / U_jj²`` of the block become zero (for N:M: of every m columns when they are reached), and ``W[:,
j:] -= (w_j - q) / U_jj · U[j, j:]`` (computed as hemorrhage.compress.solvers.columns says). H is the dense model's,
the same for every setting. With ``sequential`` it is that of the model whose blocks before are pruned
already, as in the paper; all layers of a block still see the same pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from tqdm import tqdm

from hemorrhage.compress.checks.integrity import zero_share
from hemorrhage.compress.info import MethodInfo, Paper
from hemorrhage.compress.method import Context, Method, Wording
from hemorrhage.compress.progress import remaining
from hemorrhage.compress.solvers.columns import Layers, batches, reach_of, stacked, sweep, wide
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
        """Columns make up for each other by the inverse of H."""
        return True


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Prune ``model`` in place. Raises ValueError where groups don't divide a layer's inputs."""
    linears, statistics = linears_of(model), context.calibration
    before = zero_share(linears)
    alone = settings.sequential or statistics.collected or wide(each.in_features for each in linears.values())
    groups = statistics.shared()
    # Layers that wait for others of their shape are in no block that is finished.
    items = remaining(model, groups, context.progress, statistics) if alone else iter(groups.items())
    shared = tqdm(items, total=len(groups), desc="sparsegpt", unit="input", mininterval=5, leave=False)
    layers = (
        Layers.of(
            names,
            [linears[name].weight for name in names],
            statistics.second_moment(first, context.device),
            settings.damp,
        )
        for first, names in shared
    )
    with torch.no_grad():
        for batch in batches(layers, alone):
            _put(batch, settings)
            del batch
    check_zeros(linears, settings, before)


def _put(batch: list[Layers], settings: Settings) -> None:
    """Prune the layers of ``batch``, which are of one shape, in place."""
    for each, pruned in zip(batch, _prune(batch, settings), strict=True):
        for weight, new in zip(each.weights, pruned, strict=True):
            weight.copy_(new)


def prune(weights: list[Tensor], moment: Tensor, settings: Settings, name: str = "") -> list[Tensor]:
    """``weights`` [rows_i, columns] that share an input with second moment ``moment``, pruned, float32."""
    return _prune([Layers.of([name], weights, moment, settings.damp)], settings)[0]


def _prune(batch: list[Layers], settings: Settings) -> list[list[Tensor]]:
    """Prune layers of one shape: for each input, the weights of each layer that reads it.

    Each layer gets its own mask: unstructured scores are ranked inside one layer's block.
    """
    W = stacked(batch)
    heights = batch[0].heights
    if settings.pattern and W.shape[1] % settings.pattern[1]:
        name = batch[0].names[0]
        raise ValueError(f"sparsity {settings.sparsity} does not divide the {W.shape[1]} inputs of {name}")
    diagonal = torch.stack([layers.diagonal for layers in batch]).unsqueeze(2)
    kept = torch.empty_like(W)

    def begin(start: int, stop: int, current: Tensor) -> None:
        scores = (current * diagonal[:, start:stop]).square_()
        if settings.pattern:
            dropped = lowest_of_groups(scores.mT.flatten(0, 1), *settings.pattern)
            kept[:, start:stop] = ~dropped.unflatten(0, (len(W), -1)).mT
            return
        for score, keep in zip(scores, kept[:, start:stop], strict=True):
            for part, out in zip(score.split(heights, 1), keep.split(heights, 1), strict=True):
                out.copy_(~lowest(part, settings.severity))

    def project(j: int, w: Tensor, e: Tensor) -> None:
        w.mul_(kept[:, j])
        e.sub_(w)

    reach = reach_of(batch)
    sweep(W, reach, project, begin, settings.pattern[1] if settings.pattern else settings.block_size)
    # Zeros of negative weights are negative zeros; a stored mask knows one kind of zero.
    W += 0.0
    return [[part.T for part in w.split(heights, 1)] for w in W]


METHOD = Method(
    MethodInfo(
        title="SparseGPT",
        summary="columns make up for what is pruned; `sequential`",
        papers=(Paper("Frantar and Alistarh", "2301.00774"),),
        examples=({"sparsity": 0.5}, {"sparsity": "2:4", "sequential": True}),
        values=SHARES,
    ),
    Settings,
    alter,
)
