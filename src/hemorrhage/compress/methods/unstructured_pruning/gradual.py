"""Pruning while the model trains: by size, by loss, or by the movement of weights (arXiv 2005.07683).

Of each layer the weights of the lowest score S become zero, a share that grows over the first four fifths of the steps
as ``s_t = s (1 - (1 - t / (0.8 N))³)`` (Zhu and Gupta, arXiv 1710.01878) and then stays. A weight that was pruned may
come back. With ``g = ∂L/∂W'`` of the weights ``W' = M ⊙ W`` that a step computes with, pruned ones included:

    by: magnitude    S = |W|                    size (Zhu and Gupta)
    by: taylor       S = Σ_t (g W)²             loss: what it costs to prune a weight, to first order (arXiv 1906.10771)
    by: movement     S = -Σ_t g W               regularization of masks: weights that move away from zero stay

The last is gradient descent on scores, straight through the choice of the highest (``∂L/∂S = g W``); its rate changes
no order. Weights learn by ``M ⊙ g``. For N:M the n highest of every m neighbouring inputs are never pruned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from hemorrhage.compress.checks.integrity import zero_share
from hemorrhage.compress.info import MethodInfo, Paper
from hemorrhage.compress.method import Context, Method, Wording
from hemorrhage.compress.solvers.pruned_training import PrunedSettings, Rule, train, write_back
from hemorrhage.compress.solvers.sparsity import SHARES, SparsitySettings, check_zeros, lowest, lowest_of_groups
from hemorrhage.compress.solvers.training import stored_dtypes
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

GROWING = 0.8
"""Share of the steps over which sparsity grows."""


class Settings(SparsitySettings, PrunedSettings):
    """Sparsity, what weights are ranked by, and the budget of the training."""

    words: ClassVar[Mapping[str, Wording]] = {**SparsitySettings.words, **PrunedSettings.words, "by": "by {}"}
    always_named: ClassVar[tuple[str, ...]] = ("by", "steps")

    by: Literal["magnitude", "taylor", "movement"] = "movement"


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Train and prune ``model`` in place; the whole of it is in float32 while it trains.

    Raises ValueError where groups don't divide a layer's inputs, and where the loss is not finite.
    """
    before, dtypes = zero_share(linears_of(model)), stored_dtypes(model)
    scores = {name: torch.zeros_like(each.weight, dtype=torch.float32) for name, each in linears_of(model).items()}
    rule = Gradual(scores, settings)
    weights = train(model, rule, settings, context)
    # Zeros of negative weights are negative zeros; a stored mask knows one kind of zero.
    pruned = {name: W.masked_fill(rule.mask(name, W, settings.severity), 0).add_(0.0) for name, W in weights.items()}
    write_back(model, pruned, dtypes)
    check_zeros(linears_of(model), settings, before)


def share_at(step: int, settings: Settings) -> float:
    """Return the share of weights that is pruned in ``step``, counted from 0."""
    done = min(1.0, (step + 1) / (GROWING * settings.steps))
    return settings.severity * (1 - (1 - done) ** 3)


class Gradual(Rule):
    """Scores and masks. ``scores`` float32 [rows, columns] by layer, zeros at first."""

    def __init__(self, scores: dict[str, Tensor], settings: Settings) -> None:
        """Take the scores, which the training changes in place."""
        self.scores, self.settings = scores, settings
        self.state = tuple(scores.values())
        self.masks: dict[str, Tensor] = {}

    def compute_with(self, step: int, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return M ⊙ W, through which gradients pass as if M were not there."""
        share = share_at(step, self.settings)
        self.masks = {name: self.mask(name, W.detach(), share) for name, W in weights.items()}
        return {name: W - (W.detach() * self.masks[name]) for name, W in weights.items()}

    def see_gradients(self, weights: dict[str, Tensor]) -> None:
        """Add to the scores, and keep gradients of pruned weights from the optimizer."""
        for name, W in weights.items():
            assert W.grad is not None
            change = W.grad * W
            if self.settings.by == "taylor":
                self.scores[name] += change.square()
            elif self.settings.by == "movement":
                self.scores[name] -= change
            W.grad.masked_fill_(self.masks[name], 0)

    def mask(self, name: str, W: Tensor, share: float) -> Tensor:
        """Return the mask of ``W`` [rows, columns] to prune: the ``share`` of the lowest scores."""
        # Before the first gradient all scores are alike, and size decides.
        scored = self.settings.by != "magnitude" and bool(self.scores[name].any())
        S = self.scores[name].clone() if scored else W.abs()
        if self.settings.pattern:
            S.masked_fill_(~lowest_of_groups(S, *self.settings.pattern, name), torch.inf)
        return lowest(S, share)


METHOD = Method(
    MethodInfo(
        title="Gradual pruning (movement, size, loss)",
        summary="pruned while it trains: by movement of weights, by size, or by loss; one budget for all",
        papers=(
            Paper("Sanh et al.", "2005.07683"),
            Paper("Zhu and Gupta", "1710.01878"),
            Paper("Molchanov et al.", "1906.10771"),
        ),
        examples=(
            {"sparsity": 0.5, "steps": 50},
            {"sparsity": "2:4", "by": "magnitude", "steps": 50},
            {"sparsity": 0.5, "by": "taylor", "steps": 50},
        ),
        values=SHARES,
    ),
    Settings,
    alter,
)
