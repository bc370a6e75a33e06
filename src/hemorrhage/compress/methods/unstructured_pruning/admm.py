"""ADMM pruning (Boža, arXiv 2401.02938): a mask that grows, and the weights that are best under it.

The problem of a layer is the least ``‖(W' - W) X‖²`` over weights W' that are zero where the mask M says so. Inputs are
scaled to a norm of 1, so that ``H_jj = 1`` and a weight's size is Wanda's score. ADMM takes turns between weights that
fit, and weights that are zero where they have to be, with the scaled dual U (equation numbers of the paper):

    M  = all but the lowest |W + U|, a share s_i of the layer               (in the first ``gradual`` turns)
    Z  = M (W + U)
    U  = U + W - Z
    W  = (H + ρ I)⁻¹ (H W⁰ + ρ (Z - U))

The share grows as ``s_i = s (1 - (1 - i / gradual)³)``. The result is the last ``M (W + U)``, divided by the scales. H
has ``damp`` on its diagonal, and in ``H W⁰``, too, which holds weights near to where they were. ρ is 1.

For N:M the n largest of every m neighbouring inputs are never pruned, and the lowest of the others as s grows. The
defaults are those of the authors' program. It prunes shares at once: it computes s_i, and ranks by s. Here s_i counts.

W, Z and U are [rows, columns], the transposes of the program's; H is the dense model's, or with ``sequential`` that
behind the blocks that are pruned already, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field, model_validator

from hemorrhage.compress.checks.integrity import zero_share
from hemorrhage.compress.info import COMPENSATION, Comparison, MethodInfo, Paper
from hemorrhage.compress.method import Context, Method, Wording
from hemorrhage.compress.progress import remaining
from hemorrhage.compress.solvers.sparsity import SHARES, CalibratedSettings, check_zeros, lowest, lowest_of_groups
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

RHO = 1.0

LEAST = 1e-8
"""Added to the norm of an input, which may be zero."""


class Settings(CalibratedSettings):
    """Turns, and in how many of them the mask grows."""

    on_gpu: ClassVar[bool] = True
    words: ClassVar[Mapping[str, Wording]] = {
        **CalibratedSettings.words,
        "turns": "{} turns",
        "gradual": {0: "mask at once"},
    }

    turns: Annotated[int, Field(ge=1, strict=True)] = 20
    gradual: Annotated[int, Field(ge=0, strict=True)] = 15
    """Turns in which the mask grows; with 0 it is that of the weights as they were."""
    damp: Annotated[float, Field(gt=0, le=1)] = 0.1

    @model_validator(mode="after")
    def _grows_in_time(self) -> Self:
        if self.gradual > self.turns:
            raise ValueError(f"gradual: the mask grows in {self.gradual} turns, and there are {self.turns}")
        return self

    @property
    def second_order(self) -> bool:
        """Weights compensate for each other by H."""
        return True


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Prune ``model`` in place. Raises ValueError where groups don't divide a layer's inputs."""
    linears, statistics = linears_of(model), context.calibration
    before = zero_share(linears)
    with torch.no_grad():
        for first, names in remaining(model, statistics.shared(), context.progress, statistics):
            H, norms = scaled(statistics.second_moment(first, context.device), settings.damp)
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(H + RHO * torch.eye(len(H), device=H.device)))
            for name in names:
                weight = linears[name].weight
                weight.copy_(prune(weight.to(H.device).float() * norms, H, inverse, settings, name) / norms)
    check_zeros(linears, settings, before)


def scaled(moment: Tensor, damp: float) -> tuple[Tensor, Tensor]:
    """Return H of inputs with a norm of 1 and ``damp`` on its diagonal, and their norms before.

    Float32 [columns, columns] and [columns] of the second ``moment`` [columns, columns].
    """
    norms = moment.diagonal().sqrt() + LEAST
    H = moment / norms / norms.unsqueeze(1)
    H.diagonal().add_(damp * H.diagonal().mean())
    return H, norms


def prune(W: Tensor, H: Tensor, inverse: Tensor, settings: Settings, name: str = "") -> Tensor:
    """Return the weights of least error: float32 [rows, columns], zero where pruned.

    ``W`` [rows, columns] and ``H`` are of inputs of norm 1; ``inverse`` is (H + ρ I)⁻¹.
    """
    fixed, U = W @ H, torch.zeros_like(W)
    pruned = lowest_mask(W, settings.severity, settings, name)
    for i in range(1, settings.turns + 1):
        if i <= settings.gradual:
            share = settings.severity * (1 - (1 - i / settings.gradual) ** 3)
            pruned = lowest_mask(W + U, share, settings, name)
        Z = (W + U).masked_fill_(pruned, 0)
        U += W - Z
        W = (fixed + RHO * (Z - U)) @ inverse
    # Zeros of negative weights are negative zeros; a stored mask knows one kind of zero.
    return (W + U).masked_fill_(pruned, 0).add_(0.0)


def lowest_mask(W: Tensor, share: float, settings: Settings, name: str) -> Tensor:
    """Return the mask of the lowest ``share`` of ``W`` [rows, columns]; of a pattern's groups, n are spared."""
    size = W.abs()
    if settings.pattern:
        size.masked_fill_(~lowest_of_groups(size, *settings.pattern, name), torch.inf)
    return lowest(size, share)


METHOD = Method(
    MethodInfo(
        title="ADMM pruning",
        summary="a mask that grows, and the best weights under it, by turns",
        papers=(Paper("Boža", "2401.02938"),),
        examples=({"sparsity": 0.5}, {"sparsity": "2:4", "sequential": True}),
        improves_on=(Comparison(COMPENSATION, "wanda", ("sparsity", "sequential")),),
        values=SHARES,
    ),
    Settings,
    alter,
)
