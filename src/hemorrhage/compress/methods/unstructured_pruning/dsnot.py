"""DSnoT (Zhang et al., arXiv 2310.08915): a mask whose weights change places until rows give out what they did.

A row of W without its pruned weights gives ``Δ = Σ_pruned W_ij E[X_j]`` less, on average. In each cycle of a row

- of the pruned weights one grows back: with D_ij = W_ij E[X_j], that of the largest ``D / Var(X_j)^power`` where Δ > 0,
  of the smallest where Δ < 0;
- of the weights that were kept one is pruned: of those whose D has the sign that Δ has not, the one of the lowest
  ``|W_ij| · norm2(X_j)``. For N:M it is the one of the lowest starting score in the group of m of the weight that grew.

A weight changes its place once. A row stops after ``cycles``, where |Δ| is at most ``threshold``, or where nothing is
left to exchange; for N:M also before the sign of Δ changes. No weight changes its value.

``start``: the mask to begin with, the lowest of each row by Wanda's score, by magnitude, or by SparseGPT's
``W_ij² / [H⁻¹]_jj²`` in the factor's diagonal, without its update. The defaults are the authors' program's: there D is
summed over a window's tokens, which is what ``threshold`` counts in, and by default layers of MLPs keep their start.
Here all layers are refined. The variance is that over all tokens; there it is the mean of the windows' own. Fifty
exchanges are few among thousands of columns, and most of a row among 64: there they do harm, and want fewer ``cycles``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from hemorrhage.compress.checks.integrity import zero_share
from hemorrhage.compress.info import COMPENSATION, Comparison, MethodInfo, Paper
from hemorrhage.compress.method import Context, Method, Wording
from hemorrhage.compress.progress import remaining
from hemorrhage.compress.solvers.columns import factor
from hemorrhage.compress.solvers.sparsity import (
    SHARES,
    CalibratedSettings,
    check_zeros,
    lowest_of_groups,
    lowest_of_rows,
)
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hemorrhage.calibrate.reader import Statistics


DAMP = 0.01
"""SparseGPT's, for its starting scores."""


class Settings(CalibratedSettings):
    """The mask to start from, and when a row stops."""

    words: ClassVar[Mapping[str, Wording]] = {
        **CalibratedSettings.words,
        "start": "from {}",
        "cycles": "{} cycles",
        "power": "variance to the {}",
    }
    always_named: ClassVar[tuple[str, ...]] = ("start",)

    start: Literal["wanda", "magnitude", "sparsegpt"] = "wanda"
    cycles: Annotated[int, Field(ge=0, strict=True)] = 50
    threshold: Annotated[float, Field(ge=0)] = 0.1
    """Of |Δ|, summed over the tokens of a window."""
    power: Annotated[float, Field(ge=0)] = 1.0
    """Of the variance that D is divided by."""

    @property
    def statistics(self) -> tuple[str, ...]:
        """Means, variances and norms of inputs, the windows' length, and second moments for SparseGPT's scores."""
        return ("activations", "tokens", *(("hessian",) if self.start == "sparsegpt" else ()))


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Prune ``model`` in place. Raises ValueError where groups don't divide a layer's inputs."""
    linears, statistics = linears_of(model), context.calibration
    before = zero_share(linears)
    length = statistics.tokens().shape[1]
    with torch.no_grad():
        for first, names in remaining(model, statistics.shared(), context.progress, statistics):
            sums = length * statistics.mean(first)
            variance, norms = statistics.variance(first), statistics.norms(first)
            gain = _start_gain(statistics, first, settings)
            for name in names:
                weight = linears[name].weight
                W = weight.float()
                pruned = refine(W, sums, variance, W.abs() * norms, W.abs() * gain, settings, name)
                weight.masked_fill_(pruned, 0)
    check_zeros(linears, settings, before)


def _start_gain(statistics: Statistics, first: str, settings: Settings) -> Tensor:
    """Return what |W| is multiplied with to rank the weights of a row at the start: float32 [columns]."""
    if settings.start == "wanda":
        return statistics.norms(first)
    if settings.start == "magnitude":
        return torch.ones_like(statistics.norms(first))
    # The papers' U_jj is 1 / R_jj.
    return factor(statistics.second_moment(first).clone(), DAMP)[1]


def refine(
    W: Tensor, sums: Tensor, variance: Tensor, scores: Tensor, start: Tensor, settings: Settings, name: str = ""
) -> Tensor:
    """Return the mask of ``W`` float32 [rows, columns] to prune.

    ``sums`` of an input over a window's tokens on average, and its ``variance``: float32 [columns]. ``scores`` of what
    may be pruned, and those that the mask ``start``s from: float32 [rows, columns].
    """
    if settings.pattern:
        pruned = lowest_of_groups(start, *settings.pattern, name)
    else:
        pruned = lowest_of_rows(start, settings.severity)
    D = W * sums
    growth = D / variance.pow(settings.power).clamp_(min=torch.finfo(torch.float32).tiny)
    error = D.masked_fill(~pruned, 0).sum(1)
    sign = error.sign()
    may_grow, may_go = pruned.clone(), ~pruned
    rows = torch.arange(len(W))
    for _ in range(settings.cycles):
        rows = rows[error[rows].abs() > settings.threshold]
        if not len(rows):
            break
        side = error[rows].sign().unsqueeze(1)
        grows, can_grow = _best(growth[rows] * side, may_grow[rows] & (D[rows] * side > 0))
        if settings.pattern:
            among = settings.pattern[1]
            group = torch.arange(W.shape[1]) // among == (grows // among).unsqueeze(1)
            goes, can_go = _best(-start[rows], may_go[rows] & group)
        else:
            goes, can_go = _best(-scores[rows], may_go[rows] & (D[rows] * side < 0))
        after = error[rows] + D[rows, goes] - D[rows, grows]
        changes = can_grow & can_go
        if settings.pattern:
            changes &= after.sign() == sign[rows]
        rows, grows, goes = rows[changes], grows[changes], goes[changes]
        pruned[rows, grows], pruned[rows, goes] = False, True
        may_grow[rows, grows], may_go[rows, goes] = False, False
        error[rows] = after[changes]
    return pruned


def _best(values: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the column of the largest of the ``allowed`` ``values`` of each row, and whether there is one."""
    return values.masked_fill(~allowed, -torch.inf).argmax(1), allowed.any(1)


METHOD = Method(
    MethodInfo(
        title="DSnoT",
        summary="pruned and kept weights change places until a row's mean output is what it was",
        papers=(Paper("Zhang et al.", "2310.08915"),),
        examples=({"sparsity": 0.5}, {"sparsity": "2:4", "start": "sparsegpt", "sequential": True}),
        improves_on=(Comparison(COMPENSATION, "wanda", ("sparsity", "sequential"), treated={"start": ("wanda",)}),),
        values=SHARES,
    ),
    Settings,
    alter,
)
