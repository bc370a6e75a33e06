"""RIA (Zhang et al., "Plug-and-Play", ICLR 2024): a weight's share of its row and its column, times activation.

Score ``S_ij = (|W_ij| / Σ_k |W_kj| + |W_ij| / Σ_k |W_ik|) · norm2(X_j)^a``, with a = 0.5. A weight that is small but
among the largest of its input channel stays, so that no channel is pruned away. The lowest of a layer become zero, or
the lowest of every m neighbouring inputs for N:M. The calibration has norm2(X_j) over √tokens, which changes no order.

``permute``, for N:M alone, chooses which inputs are neighbours: the columns of a layer are put into an order in which
more of the score stays, as in the paper.

- Allocation: the columns, sorted by their sums of S, are dealt out to the groups of m back and forth.
- Assignment: for each place c of a group in turn, the groups' c-th columns are assigned to the groups anew so that what
  stays is largest (Hungarian algorithm). With ``T`` the sum of the n - 1 largest of a row's other m - 1 scores in the
  group and A the n-th largest, a group that gets a column of scores x keeps ``T + max(A, x)`` of the row.

The mask has the pattern in that order of columns. Weights stay where they were, so the model computes the same with or
without the order; a kernel for N:M has to gather the inputs first, which no engine here does.

Norms are the dense model's, or with ``sequential``, as in the paper, those behind the blocks that are pruned already.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, model_validator

from hemorrhage.compress.checks.integrity import zero_share
from hemorrhage.compress.info import MethodInfo, Paper
from hemorrhage.compress.method import Context, Method, Wording
from hemorrhage.compress.methods.unstructured_pruning import wanda
from hemorrhage.compress.solvers.sparsity import SHARES, SparsitySettings, check_zeros, lowest, lowest_of_groups
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Settings(wanda.Settings):
    """The power of the activations, and whether columns are permuted; the default power is the paper's."""

    words: ClassVar[Mapping[str, Wording]] = {
        **wanda.Settings.words,
        "power": "activations to the {}",
        "permute": "permuted",
    }

    power: Annotated[float, Field(ge=0)] = 0.5
    permute: bool = False

    @model_validator(mode="after")
    def _groups_to_permute(self) -> Settings:
        if self.permute and self.pattern is None:
            raise ValueError(f"permute: columns are permuted for a pattern, and sparsity {self.sparsity} is a share")
        return self

    @property
    def theoretical(self) -> str:
        """A pattern in permuted columns needs a kernel that gathers inputs."""
        return "the pattern holds in a permuted order of inputs, which no engine gathers" if self.permute else ""


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Prune ``model`` in place. Raises ValueError where groups don't divide a layer's inputs."""
    linears = linears_of(model)
    before = zero_share(linears)
    wanda.prune(model, context, lambda weight, norms, name: mask(weight, norms, settings, name))
    # Groups of permuted columns are no neighbours.
    share = SparsitySettings(sparsity=settings.severity)
    check_zeros(linears, share if settings.permute else settings, before)


def mask(weight: Tensor, norms: Tensor, settings: Settings, name: str = "") -> Tensor:
    """Return the mask of ``weight`` [rows, columns] to prune, given the inputs' ``norms`` [columns]."""
    S = score(weight, norms, settings.power)
    if settings.pattern is None:
        return lowest(S, settings.severity)
    if not settings.permute:
        return lowest_of_groups(S, *settings.pattern, name)
    order = permutation(S, *settings.pattern, name)
    pruned = torch.empty_like(S, dtype=torch.bool)
    pruned[:, order] = lowest_of_groups(S[:, order], *settings.pattern, name)
    return pruned


def score(weight: Tensor, norms: Tensor, power: float) -> Tensor:
    """Return S of ``weight`` [rows, columns], given the inputs' ``norms`` [columns]: float32."""
    W = weight.float().abs()
    # Of a row or column of zeros no weight has a share.
    of_column = W / W.sum(0, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny)
    of_row = W / W.sum(1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny)
    return of_column.add_(of_row).mul_(norms.pow(power))


def permutation(S: Tensor, kept: int, among: int, name: str = "") -> Tensor:
    """Return the order of the columns of ``S`` [rows, columns] in which a pattern keeps more of it: int64 [columns].

    Raises ValueError where ``among`` does not divide the columns.
    """
    if S.shape[1] % among:
        raise ValueError(f"sparsity {kept}:{among}: {among} does not divide the {S.shape[1]} inputs of {name}")
    groups = allocate(S, among)
    for place in range(among):
        groups[:, place] = groups[assign(S, groups, place, kept), place]
    return groups.flatten()


def allocate(S: Tensor, among: int) -> Tensor:
    """Deal the columns of ``S`` out to groups of ``among``, lowest sums first, back and forth: int64 [groups, m]."""
    rounds = S.sum(0).argsort(stable=True).unflatten(0, (among, -1))
    rounds[1::2] = rounds[1::2].flip(1)
    groups: Tensor = rounds.T.contiguous()
    return groups


def assign(S: Tensor, groups: Tensor, place: int, kept: int) -> Tensor:
    """Return for each of ``groups`` [groups, m] the group whose column at ``place`` it gets: int64 [groups]."""
    from scipy.optimize import linear_sum_assignment

    others = torch.cat([groups[:, :place], groups[:, place + 1 :]], dim=1)
    # [rows, groups]
    A = S[:, others.flatten()].unflatten(1, others.shape).topk(kept, dim=2).values[..., -1]
    X = S[:, groups[:, place]]
    # T is the same whatever a group gets, so it decides nothing.
    gain = torch.stack([torch.maximum(A[:, [group]], X).sum(0) for group in range(len(groups))])
    columns = linear_sum_assignment(gain.cpu().numpy(), maximize=True)[1]
    return torch.from_numpy(columns).to(groups.device)


METHOD = Method(
    MethodInfo(
        title="RIA",
        summary="a weight's share of its row and column times activation; `permute` for n:m",
        papers=(Paper("Zhang et al. 2024"),),
        examples=({"sparsity": 0.5}, {"sparsity": "2:4", "permute": True, "sequential": True}),
        values=SHARES,
    ),
    Settings,
    alter,
)
