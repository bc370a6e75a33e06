"""Wanda++ (Yang et al., arXiv 2503.04992): Wanda's score and the gradient of the decoder block's own output.

Regional gradient score ``S_ij = |W_ij| · (alpha · G_ij + norm2(X_j))``, with norm2(X_j) over all calibration
tokens and ``G_ij`` the root mean square over the windows of d‖f(X_n)‖₂/dW_ij, f being the dense decoder
block. The lowest of every output row become zero, or the lowest of every m neighbouring inputs for N:M. The
calibration has norm2(X_j) as ``sqrt(tokens) · norms``.

Regional optimization, ``optimize`` rounds of it (the reproduction's number is 5): the pruned block takes an
RMSprop step on ``‖f(X_n) - f̂(X_n)‖²`` for each of 32 windows drawn anew, then is pruned again by the score
of its new weights. X_n leaves the altered blocks before, f is the dense block; G and the norms stay those of
the dense model (norms: unless ``sequential``). No code of the authors is public; the constants, the sum of
squares as the loss and a step a window are those of the reproduction that the paper names.

The steps are taken in float32. What is stored has the weight's own dtype, and at a rate of 3e-7 most of what
a weight moves is below the spacing of bfloat16, so in a bfloat16 model it rounds away.

``shuffled`` is the control of the score: the gradients of a layer in random places.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

from pydantic import Field
from tqdm import tqdm

from hemorrhage.compress.checks.integrity import zero_share
from hemorrhage.compress.info import GRADIENTS, Comparison, MethodInfo, Paper
from hemorrhage.compress.method import Context, Method, Wording
from hemorrhage.compress.methods.unstructured_pruning import wanda
from hemorrhage.compress.solvers.shuffle import shuffle, shuffler
from hemorrhage.compress.solvers.sparsity import SHARES, check_zeros
from hemorrhage.models.blocks import blocks
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

LEARNING_RATE = 3e-7
"""Of RMSprop, whose other constants are torch's."""

WINDOWS = 32
"""Windows of one round, or all where there are fewer."""


class Settings(wanda.Settings):
    """Settings of Wanda++; alpha is the paper's."""

    words: ClassVar[Mapping[str, Wording]] = {**wanda.Settings.words, "optimize": "{} rounds"}

    alpha: Annotated[float, Field(ge=0)] = 100.0
    """Weight of the gradient; 0 is Wanda."""
    optimize: Annotated[int, Field(ge=0, strict=True)] = 0
    """Rounds of regional optimization."""
    shuffled: bool = False

    @property
    def statistics(self) -> tuple[str, ...]:
        """Norms of inputs, gradients of the blocks' outputs, and the windows."""
        return (*super().statistics, "local_gradients", "tokens")


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> None:
    """Prune ``model`` in place."""
    linears, statistics = linears_of(model), context.calibration
    before = zero_share(linears)
    tokens = statistics.tokens()
    groups = statistics.shared()
    generator = shuffler(settings.shuffled, context.seed)
    regional = Regional(model, tokens, context.seed) if settings.optimize else None
    for block in tqdm(blocks(model), desc="wanda++", unit="block", mininterval=5, leave=False):
        inside = set(block.modules())
        gains = (
            Gain(
                name,
                linears[name].weight,
                importance(norms, shuffle(statistics.local_gradient(name), generator), tokens.numel(), settings.alpha),
            )
            for first, names in groups.items()
            if linears[first] in inside
            for norms in [statistics.norms(first)]
            for name in names
        )
        if regional:
            regional.advance(block, list(gains), settings)
        else:
            prune(gains, settings)
    check_zeros(linears, settings, before)


class Gain(NamedTuple):
    """A layer's weight [rows, columns], and what its absolute value is multiplied with."""

    name: str
    weight: Tensor
    gain: Tensor


def importance(norms: Tensor, gradient: Tensor, tokens: int, alpha: float) -> Tensor:
    """Return the factors of ``|W|``: float32 [rows, columns].

    ``norms`` [columns] and ``gradient`` [rows, columns] are root mean squares, over ``tokens`` tokens and
    over the windows.
    """
    return alpha * gradient + math.sqrt(tokens) * norms


def prune(gains: Iterable[Gain], settings: Settings) -> None:
    """Zero the weights of the lowest score of each layer."""
    with torch.no_grad():
        for name, weight, gain in gains:
            weight.masked_fill_(wanda.mask(weight, gain, settings, name), 0)


class Regional:
    """Regional optimization of one block after the other."""

    def __init__(self, model: PreTrainedModel, tokens: Tensor, seed: int) -> None:
        """``tokens`` int64 [samples, length]; ``seed`` draws the windows of each round."""
        from hemorrhage.models import blockwise

        self._blockwise = blockwise
        self._generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self._states, arguments = blockwise.embed(model, tokens.split(1))
        self._arguments = iter(arguments)

    def advance(self, block: nn.Module, gains: list[Gain], settings: Settings) -> None:
        """Prune and optimize ``block``, the next one, and take the windows through it."""
        arguments = next(self._arguments)
        dense = copy.deepcopy(block).float().requires_grad_(False)
        altered = copy.deepcopy(dense)
        twins: dict[Tensor, Tensor] = dict(zip(block.parameters(), altered.parameters(), strict=True))
        of_twin = [Gain(name, twins[weight].requires_grad_(), gain) for name, weight, gain in gains]
        optimizer = torch.optim.RMSprop([weight for _, weight, _ in of_twin], lr=LEARNING_RATE)
        prune(of_twin, settings)
        for _ in range(settings.optimize):
            for sample in torch.randperm(len(self._states), generator=self._generator)[:WINDOWS].tolist():
                states = self._states[sample]
                error = self._blockwise.run_block(altered, states, arguments) - self._blockwise.run_block(
                    dense, states, arguments
                )
                optimizer.zero_grad()
                error.square().sum().backward()
                optimizer.step()
            prune(of_twin, settings)
        with torch.no_grad():
            for _, weight, _ in gains:
                weight.copy_(twins[weight])
            with self._blockwise.in_float32(block):
                self._states = [self._blockwise.run_block(block, states, arguments) for states in self._states]


METHOD = Method(
    MethodInfo(
        title="Wanda++",
        summary="Wanda and the gradient of the block's output",
        papers=(Paper("Yang et al.", "2503.04992"),),
        examples=({"sparsity": 0.5}, {"sparsity": 0.5, "shuffled": True}),
        improves_on=(Comparison(GRADIENTS, "wanda", ("sparsity", "sequential")),),
        values=SHARES,
    ),
    Settings,
    alter,
)
