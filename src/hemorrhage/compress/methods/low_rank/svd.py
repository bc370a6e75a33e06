"""Low rank: each linear layer of the decoder blocks becomes the product of two thin ones.

Plain, ``W ≈ U_r Σ_r V_rᵀ`` is the nearest matrix of that rank. ``whiten`` takes the nearest in what the layer gives
out on the calibration tokens, ``‖(W - W') X‖``, as SVD-LLM (Wang et al., arXiv 2403.07378) does with the Cholesky
factor of ``X Xᵀ``: with H = mean of x xᵀ = L Lᵀ, ``W L = U Σ Vᵀ`` is cut and ``L`` divided out. SVD-LLM's later
fine-tuning is not part of it. Every layer keeps the same share of its weights; H is the base model's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from tqdm import tqdm

from hemorrhage.compress.info import MethodInfo, Paper
from hemorrhage.compress.method import Context, Method, Wording, percent
from hemorrhage.compress.method import Settings as Base
from hemorrhage.compress.solvers.stack import FEWER
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from hemorrhage.models.formats.low_rank import LowRankLinear


def weights_removed(share: float) -> str:
    """Return how much the factors do without, in words."""
    return f"{percent(share)} of weights"


class Settings(Base):
    """The share of the layers' weights to do without, and in which metric the rest is nearest."""

    axis: ClassVar[str] = "removed"
    severity_field: ClassVar[str] = "removed"
    words: ClassVar[Mapping[str, Wording]] = {
        "removed": weights_removed,
        "whiten": {True: "whitened", False: "plain"},
    }
    always_named: ClassVar[tuple[str, ...]] = ("whiten",)

    removed: Annotated[float, Field(gt=0, lt=1)]
    whiten: bool = True
    damp: Annotated[float, Field(gt=0, le=1)] = 0.01

    @property
    def statistics(self) -> tuple[str, ...]:
        """The second moments of the layers' inputs, if they count."""
        return ("hessian",) if self.whiten else ()


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Factor the linear layers of ``model`` in place."""
    from hemorrhage.models.formats.storage import replace

    linears, statistics = linears_of(model), context.statistics
    shared = statistics.shared() if statistics else {name: [name] for name in linears}
    with torch.inference_mode():
        for first, names in tqdm(shared.items(), desc="svd", unit="input", mininterval=5, leave=False):
            moment = statistics.second_moment(first) if statistics else None
            for name in names:
                linear = linears[name]
                kept = rank(linear.out_features, linear.in_features, settings.removed)
                inner, outer = factors(linear.weight.float(), moment, kept, settings.damp)
                replace(model, name, balanced(inner, outer, linear))


def rank(rows: int, columns: int, removed: float) -> int:
    """Return the rank whose two factors have a share ``1 - removed`` of rows · columns weights, at least 1."""
    return max(1, round((1 - removed) * rows * columns / (rows + columns)))


def factors(W: Tensor, moment: Tensor | None, rank: int, damp: float) -> tuple[Tensor, Tensor]:
    """(inner [rank, columns], outer [rows, rank]) float32 of ``W`` float32 [rows, columns].

    The left vectors of ``W L`` are eigenvectors of ``W H Wᵀ``, and the cut is a projection on them, so neither L
    nor its inverse is needed where a layer has no more rows than columns. Where it has more, the smaller matrix
    ``Lᵀ Wᵀ W L`` gives the right vectors. In float64.
    """
    W = W.double()
    rows, columns = W.shape
    H = torch.eye(columns, dtype=torch.float64) if moment is None else moment.double().clone()
    if moment is not None:
        H.diagonal().add_(damp * H.diagonal().mean())
    if rows <= columns:
        left = torch.linalg.eigh(W @ H @ W.T).eigenvectors[:, -rank:]
        return (left.T @ W).float(), left.float()
    lower = torch.linalg.cholesky(H)
    product = W @ lower
    right = torch.linalg.eigh(product.T @ product).eigenvectors[:, -rank:]
    inner = torch.linalg.solve_triangular(lower, right.T, upper=False, left=False)
    return inner.float(), (product @ right).float()


def balanced(inner: Tensor, outer: Tensor, linear: nn.Linear) -> LowRankLinear:
    """Return the layer of both factors in the dtype of ``linear``, with its bias.

    Both factors are as large as each other, so that neither loses more in a narrow dtype.
    """
    from hemorrhage.models.formats.low_rank import LowRankLinear

    ratio = (inner.norm() / outer.norm()).sqrt() if inner.any() and outer.any() else torch.ones(())
    dtype = linear.weight.dtype
    return LowRankLinear((inner / ratio).to(dtype), (outer * ratio).to(dtype), linear.bias)


METHOD = Method(
    MethodInfo(
        title="Low rank (SVD, SVD-LLM)",
        summary="two thin factors, plain or whitened by the inputs",
        papers=(Paper("Wang et al.", "2403.07378"),),
        examples=({"removed": 0.2}, {"removed": 0.2, "whiten": False}),
        storage=("low_rank",),
        values=FEWER,
    ),
    Settings,
    alter,
)
