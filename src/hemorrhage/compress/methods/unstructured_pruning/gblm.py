"""GBLM-Pruner (Das et al., arXiv 2311.04902): Wanda's score and the gradient of the loss.

Score ``S_ij = |W_ij| · (norm2(X_j) / sqrt(n) + alpha · G_ij)`` over n calibration windows, with ``G_ij =
sqrt(Σ g²)`` and g the gradient of the mean loss of one window; the lowest of every output row become zero,
or the lowest of every m neighbouring inputs for N:M. With windows of ``length`` tokens, the calibration's
root mean square of an input is ``norm2(X_j) / sqrt(n · length)`` and that of a gradient ``G_ij / sqrt(n)``.
So what is added up here is ``sqrt(length) · norms + alpha · sqrt(n) · gradient_rms``, as in the authors'
code, whose ``scale`` is alpha. The first term grows with the windows' length, the second with their number,
so how much the gradient counts depends on the calibration set; the paper's has 128 windows of 2048 tokens.

Gradients are the dense model's, as in the code; activations are, too, unless ``sequential``. ``shuffled`` is the
control: the gradients of a layer in random places.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hemorrhage.compress.checks.integrity import zero_share
from hemorrhage.compress.info import GRADIENTS, Comparison, MethodInfo, Paper
from hemorrhage.compress.method import Context, Method
from hemorrhage.compress.methods.unstructured_pruning import wanda
from hemorrhage.compress.solvers.shuffle import shuffle, shuffler
from hemorrhage.compress.solvers.sparsity import SHARES, check_zeros
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Settings(wanda.Settings):
    """Settings of GBLM; the default is the code's."""

    alpha: Annotated[float, Field(ge=0)] = 100.0
    """Weight of the gradient; 0 is Wanda."""
    shuffled: bool = False

    @property
    def statistics(self) -> tuple[str, ...]:
        """Norms of inputs, gradients of the loss, and the windows they were measured on."""
        return (*super().statistics, "gradients", "tokens")


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Prune ``model`` in place."""
    linears, statistics = linears_of(model), context.calibration
    before = zero_share(linears)
    samples, length = statistics.tokens().shape
    generator = shuffler(settings.shuffled, context.seed)
    with torch.inference_mode():
        for first, names in statistics.shared().items():
            norms = statistics.norms(first)
            for name in names:
                gradient = shuffle(statistics.gradient_rms(name), generator)
                gain = importance(norms, gradient, samples, length, settings.alpha)
                weight = linears[name].weight
                weight.masked_fill_(wanda.mask(weight, gain, settings, name), 0)
    check_zeros(linears, settings, before)


def importance(norms: Tensor, gradient: Tensor, samples: int, length: int, alpha: float) -> Tensor:
    """Return the factors of ``|W|``: float32 [rows, columns].

    ``norms`` [columns] and ``gradient`` [rows, columns] are root mean squares, over all tokens of ``samples``
    windows of ``length``, and over the windows.
    """
    return math.sqrt(length) * norms + alpha * math.sqrt(samples) * gradient


METHOD = Method(
    MethodInfo(
        title="GBLM-Pruner",
        summary="Wanda and the gradient of the loss",
        papers=(Paper("Das et al.", "2311.04902"),),
        examples=({"sparsity": 0.5}, {"sparsity": 0.5, "shuffled": True}),
        improves_on=(Comparison(GRADIENTS, "wanda", ("sparsity", "sequential")),),
        values=SHARES,
    ),
    Settings,
    alter,
)
