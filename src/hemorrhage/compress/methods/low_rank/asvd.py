"""ASVD (Yuan et al., arXiv 2312.05821): low rank where columns of large inputs count more, and ranks by search.

With ``s_j = mean|X_j|^alpha + 1e-6`` the matrix ``W diag(s)`` is cut to rank r by its singular values, and s divided
out: ``W' = U_r Σ_r V_rᵀ diag(s)⁻¹``. It is the nearest to W where an error in column j weighs s_j. ``scale: max`` takes
the largest |X_j|.

``ranks: searched`` is the paper's sensitivity-based search. Each layer alone is cut to each of RATIOS of its weights,
and the loss on ``samples`` calibration windows is taken down. The cuts are sorted by it, the most harmful first. Those
from a place on are made, the smallest where a layer has several; it is the last place that takes away at least
``removed`` of the weights. Layers without a cut stay as they are. ``ranks: uniform`` cuts all layers alike.

A cut computes in float32 what its two factors do. The loss is that of the blocks from the layer's own on: what enters
them is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator
from tqdm import tqdm

from hemorrhage.compress.info import LAYERWISE, Comparison, MethodInfo, Paper
from hemorrhage.compress.method import Alteration, Context, Method, Wording
from hemorrhage.compress.method import Settings as Base
from hemorrhage.compress.methods.depth_pruning.depth import batch_size, mean_loss, pass_blocks
from hemorrhage.compress.methods.low_rank.svd import balanced, factors, rank, weights_removed
from hemorrhage.compress.solvers.stack import FEWER
from hemorrhage.models.blocks import blocks
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from hemorrhage.calibrate.reader import Statistics

LEAST = 1e-6
"""Added to a scale, which may be zero."""

RATIOS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of a layer's weights that the search tries to keep; the paper's."""


class Settings(Base):
    """The share of the layers' weights to do without, the scales, and how ranks are chosen."""

    axis: ClassVar[str] = "removed"
    severity_field: ClassVar[str] = "removed"
    words: ClassVar[Mapping[str, Wording]] = {
        "removed": weights_removed,
        "alpha": "α {}",
        "scale": {"mean": "mean inputs", "max": "largest inputs"},
        "ranks": {"searched": "ranks by sensitivity", "uniform": "uniform ranks"},
    }
    always_named: ClassVar[tuple[str, ...]] = ("ranks",)

    removed: Annotated[float, Field(gt=0, lt=1)]
    alpha: Annotated[float, Field(ge=0, le=2)] = 0.5
    scale: Literal["mean", "max"] = "mean"
    ranks: Literal["searched", "uniform"] = "searched"
    samples: Annotated[int, Field(ge=1, strict=True)] = 8
    """Windows that the search reads: the first of the calibration set. Each is read 6 times for every layer."""

    @model_validator(mode="after")
    def _within_ratios(self) -> Self:
        most = round(1 - min(RATIOS), 10)
        if self.ranks == "searched" and self.removed > most:
            raise ValueError(f"removed: searched ranks take away {most} at most, uniform ones {self.removed}")
        return self

    @property
    def statistics(self) -> tuple[str, ...]:
        """Sizes of the layers' inputs, and the windows of the search."""
        return ("activations", *(("tokens",) if self.ranks == "searched" else ()))


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> Alteration:
    """Factor the linear layers of ``model`` in place. Reports the share of weights that each layer keeps."""
    from hemorrhage.models.formats.storage import replace

    linears, statistics = linears_of(model), context.calibration
    scales = {
        name: scale(statistics, first, settings) for first, names in statistics.shared().items() for name in names
    }
    if settings.ranks == "uniform":
        kept = dict.fromkeys(linears, 1 - settings.removed)
    else:
        weights = {name: linear.weight.numel() for name, linear in linears.items()}
        kept = choose(search(model, scales, statistics.tokens()[: settings.samples]), weights, settings.removed)
    with torch.inference_mode():
        for name, share in tqdm(kept.items(), desc="asvd", unit="layer", mininterval=5, leave=False):
            linear = linears[name]
            number = rank(linear.out_features, linear.in_features, 1 - share)
            inner, outer = cut(linear.weight.float(), scales[name], number)
            replace(model, name, balanced(inner, outer, linear))
    return Alteration(entries={"kept": kept})


def scale(statistics: Statistics, first: str, settings: Settings) -> Tensor:
    """Return s of the input of linear ``first``: float32 [columns]."""
    sizes = statistics.mean_abs(first) if settings.scale == "mean" else statistics.max_abs(first)
    return sizes.cpu().pow(settings.alpha) + LEAST


def cut(W: Tensor, s: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Return the factors (inner [rank, columns], outer [rows, rank]) float32 of ``W`` float32 [rows, columns].

    Errors of column j weigh ``s`` [columns]: the metric of inputs whose second moment is diag(s²).
    """
    return factors(W, torch.diag(s.double().square()), number, 0.0)


def search(model: PreTrainedModel, scales: Mapping[str, Tensor], tokens: Tensor) -> dict[tuple[str, float], float]:
    """Return the loss, in nats a token of ``tokens`` int64 [samples, length], of each layer cut to each of RATIOS."""
    from hemorrhage.models.blockwise import embed

    losses = {}
    batches = tokens.to(model.device).split(batch_size(*tokens.shape))
    stack = blocks(model)
    with torch.inference_mode():
        states, arguments = embed(model, batches)
        for index, block in enumerate(tqdm(stack, desc="asvd search", unit="block", mininterval=5, leave=False)):
            rest = list(range(index, len(stack)))
            for name, linear in _inside(model, block).items():
                original = linear.weight.data
                inner, outer = cut(original.float(), scales[name], _rank(linear, max(RATIOS)))
                for share in RATIOS:
                    # A smaller rank's vectors are the last of a larger one's.
                    number = _rank(linear, share)
                    linear.weight.data = outer[:, -number:] @ inner[-number:]
                    losses[name, share] = mean_loss(model, batches, pass_blocks(model, rest, states, arguments))
                linear.weight.data = original
            states = pass_blocks(model, [index], states, arguments)
    return losses


def choose(losses: Mapping[tuple[str, float], float], weights: Mapping[str, int], removed: float) -> dict[str, float]:
    """Return the share of its ``weights`` that each layer which is cut keeps; at least ``removed`` of all go."""
    order = sorted(losses, key=lambda cut: -losses[cut])
    kept: dict[str, float] = {}
    gone, goal = 0.0, removed * sum(weights.values())
    # From the least harmful on, until enough is gone; rounding may leave the sum of all a little short.
    for name, share in reversed(order):
        if gone >= goal * (1 - 1e-9):
            break
        smaller = min(share, kept.get(name, 1.0))
        gone += weights[name] * (kept.get(name, 1.0) - smaller)
        kept[name] = smaller
    return kept


def _rank(linear: nn.Linear, share: float) -> int:
    return rank(linear.out_features, linear.in_features, 1 - share)


def _inside(model: PreTrainedModel, block: nn.Module) -> dict[str, nn.Linear]:
    modules = set(block.modules())
    return {name: linear for name, linear in linears_of(model).items() if linear in modules}


METHOD = Method(
    MethodInfo(
        title="ASVD",
        summary="two thin factors where columns of large inputs count more; ranks by each layer's sensitivity",
        papers=(Paper("Yuan et al.", "2312.05821"),),
        examples=({"removed": 0.2, "samples": 2}, {"removed": 0.2, "ranks": "uniform", "scale": "max"}),
        storage=("low_rank",),
        improves_on=(
            Comparison(
                LAYERWISE,
                "asvd",
                ("removed", "alpha", "scale"),
                treated={"ranks": ("searched",)},
                untreated={"ranks": ("uniform",)},
                changed=("ranks",),
            ),
        ),
        values=FEWER,
    ),
    Settings,
    alter,
)
