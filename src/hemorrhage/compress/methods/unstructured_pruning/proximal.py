"""Pruning by regularization: proximal training with an L1 penalty, then the smallest weights.

The loss gets a penalty ``λ Σ |W_ij|``. Each step descends on the loss alone and then applies the penalty's proximal
operator, the soft threshold, with the step's learning rate η (Parikh and Boyd, "Proximal Algorithms", 2014, sections
4.2 and 6.5.2):

    W = sign(W) max(|W| - η λ, 0)

so that weights become exactly zero while others learn to do without them. In the end the smallest become zero up to the
sparsity. λ is a layer's own: over all steps a weight that no gradient holds up shrinks by ``strength`` times the mean
size of the layer's weights. No more weights become zero than the sparsity says: a threshold ends at that quantile of
|W| in the layer, or for N:M in every m neighbouring inputs.

The step's descent is AdamW's, and the proximal operator is that of plain distances, decoupled as its weight decay is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from hemorrhage.compress.checks.integrity import zero_share
from hemorrhage.compress.info import MethodInfo, Paper
from hemorrhage.compress.method import Context, Method, Wording
from hemorrhage.compress.methods.unstructured_pruning import magnitude
from hemorrhage.compress.solvers.pruned_training import (
    PrunedSettings,
    Rule,
    total_rate,
    train,
    write_back,
)
from hemorrhage.compress.solvers.sparsity import SHARES, SparsitySettings, check_zeros
from hemorrhage.compress.solvers.training import stored_dtypes
from hemorrhage.models.linears import linears_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Settings(magnitude.Settings, PrunedSettings):
    """Sparsity, how strong the penalty is, and the budget of the training."""

    words: ClassVar[Mapping[str, Wording]] = {
        **SparsitySettings.words, **PrunedSettings.words, "strength": "L1 penalty {}",
    }  # fmt: skip
    always_named: ClassVar[tuple[str, ...]] = ("strength", "steps")

    strength: Annotated[float, Field(ge=0)] = 0.5


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Train and prune ``model`` in place; the whole of it is in float32 while it trains.

    Raises ValueError where groups don't divide a layer's inputs, and where the loss is not finite.
    """
    linears, dtypes = linears_of(model), stored_dtypes(model)
    before = zero_share(linears)
    each_rate = settings.strength / total_rate(settings)
    sizes = {name: each_rate * linear.weight.float().abs().mean().item() for name, linear in linears.items()}
    weights = train(model, Soft(sizes, settings), settings, context)
    pruned = {name: W.masked_fill(magnitude.mask(W, settings, name), 0).add_(0.0) for name, W in weights.items()}
    write_back(model, pruned, dtypes)
    check_zeros(linears, settings, before)


class Soft(Rule):
    """The soft threshold after each step. ``penalties``: λ of each layer."""

    def __init__(self, penalties: Mapping[str, float], settings: SparsitySettings) -> None:
        """Take λ by layer, and the sparsity that no threshold exceeds."""
        self.penalties, self.settings = penalties, settings

    def after_step(self, weights: dict[str, Tensor], learning_rate: float) -> None:
        """Shrink all weights."""
        for name, W in weights.items():
            threshold = highest(W, self.settings).clamp(max=learning_rate * self.penalties[name])
            W.copy_(soft_threshold(W.view(len(threshold), -1), threshold).view_as(W))


def highest(W: Tensor, settings: SparsitySettings) -> Tensor:
    """Return the threshold at which ``W`` [rows, columns] is as sparse as it is to be: [1, 1], or [groups, 1]."""
    groups = W.abs().view(-1, settings.pattern[1]) if settings.pattern else W.abs().view(1, -1)
    return groups.kthvalue(max(1, int(settings.severity * groups.shape[1] + 1e-9)), dim=1, keepdim=True).values


def soft_threshold(W: Tensor, threshold: Tensor) -> Tensor:
    """Return ``sign(W) max(|W| - threshold, 0)``, the proximal operator of ``threshold · Σ |W|``."""
    return W.sign() * (W.abs() - threshold).clamp_(min=0)


METHOD = Method(
    MethodInfo(
        title="Proximal training (L1)",
        summary="trained with an L1 penalty by soft thresholds, then the smallest weights go",
        papers=(Paper("Parikh and Boyd 2014"),),
        examples=({"sparsity": 0.5, "steps": 50}, {"sparsity": "2:4", "strength": 1.0, "steps": 50}),
        values=SHARES,
    ),
    Settings,
    alter,
)
