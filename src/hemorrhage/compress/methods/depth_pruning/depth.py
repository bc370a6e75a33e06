"""Depth pruning: whole decoder blocks are taken out.

- ``influence``, ShortGPT (Men et al., arXiv 2403.03853): the blocks with the lowest influence
  ``BI_i = 1 - E_t cos(x_i,t, x_{i+1},t)`` go, all ranked once in the dense model.
- ``angular`` (Gromov et al., arXiv 2403.17887): the n blocks in a row ``l .. l + n - 1`` with the smallest
  angular distance ``arccos(cos(x_l, x_{l+n})) / π`` of the last token between what enters and leaves them.
- ``deepest``, that paper's simple baseline: the deepest n blocks before the last.
- ``sleb`` (Song et al., arXiv 2402.09025): one at a time, the block without which the shortened model has the
  lowest loss on calibration text, the first and the last excepted.
- ``random``: as many blocks at random, the control.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from tqdm import tqdm

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.info import MethodInfo, Paper
from hemorrhage.compress.method import Alteration, ConfigJson, Context, Method, Wording, percent
from hemorrhage.compress.method import Settings as Base
from hemorrhage.compress.solvers.stack import FEWER, are_alike, check_order, count, rearrange, sources
from hemorrhage.models.blocks import blocks
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hemorrhage.models.blockwise import BlockArguments

STATISTICS = {"influence": ("influence",), "angular": ("influence",), "sleb": ("tokens",)}
"""What each order reads; the others read nothing."""

STAY = {"influence": 1, "angular": 1, "random": 1, "deepest": 1, "sleb": 2}
"""Blocks that each order leaves at least."""

SAMPLES = 16
"""Calibration windows of ``sleb`` where nothing is said. The paper takes 128; every window costs as much."""

BATCH_TOKENS = 1024
"""Tokens whose logits are in memory at once."""


def layers_removed(share: float) -> str:
    """Return how much is taken out, in words."""
    return f"{percent(share)} of layers"


class Settings(Base):
    """The share of blocks to take out, rounded to whole blocks, and how they are chosen.

    ``samples``: the calibration windows that ``sleb`` measures losses on; the other orders have none.
    """

    axis: ClassVar[str] = "removed"
    severity_field: ClassVar[str] = "removed"
    words: ClassVar[Mapping[str, Wording]] = {"removed": layers_removed, "order": "{}", "samples": "{} windows"}
    controls: ClassVar[Mapping[str, tuple[Any, ...]]] = {"order": ("random",)}

    removed: Annotated[float, Field(gt=0, lt=1)]
    order: Literal["influence", "angular", "deepest", "sleb", "random"]
    samples: Annotated[int, Field(ge=1, strict=True)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _samples(cls, values: Any) -> Any:
        # Written into the settings, so that the manifest says how many there were.
        if isinstance(values, dict) and values.get("order") == "sleb" and values.get("samples") is None:
            return {**values, "samples": SAMPLES}
        return values

    @model_validator(mode="after")
    def _samples_are_for_sleb(self) -> Settings:
        if self.samples is not None and self.order != "sleb":
            raise ValueError(f"samples is for order sleb; order {self.order} measures no losses")
        return self

    @property
    def statistics(self) -> tuple[str, ...]:
        """Measures of the blocks or calibration text, where the order needs them."""
        return STATISTICS.get(self.order, ())

    def check(self, config: ConfigJson) -> str | None:
        """Return the reason why a model with this config.json can't be altered like this, or None."""
        return _problem(self, config["num_hidden_layers"])

    def check_model(self, model: PreTrainedModel) -> str | None:
        """Raise RefusedError where blocks depend on their place; which ones go may be known after calibration only."""
        number = len(blocks(model))
        removed = count(self.removed, number)
        if self.order == "deepest":
            check_order(model, [*range(number - 1 - removed), number - 1])
            return None
        # Of blocks that are alike one choice is as good as another; of others any run of blocks is tried.
        starts = range(1) if are_alike(blocks(model)) else range(number - removed + 1)
        reasons = []
        for first in starts:
            try:
                check_order(model, [*range(first), *range(first + removed, number)])
            except RefusedError as error:
                reasons.append(error)
        if len(reasons) == len(starts):
            raise reasons[0]
        return f"depends on which blocks go: {reasons[0]}" if reasons else None


def alter(model: PreTrainedModel, settings: Settings, context: Context) -> Alteration:
    """Take blocks out of ``model`` in place."""
    number = len(blocks(model))
    problem = _problem(settings, number)
    if problem:
        raise ValueError(problem)
    removed = count(settings.removed, number)
    if settings.order == "random":
        gone = set(random.Random(context.seed).sample(range(number), removed))
    elif settings.order == "deepest":
        gone = set(range(number - 1 - removed, number - 1))
    else:
        gone = _chosen(model, settings, context.calibration, removed)
    rearrange(model, [index for index in range(number) if index not in gone])
    return Alteration(blocks=sources(model))


def _chosen(model: PreTrainedModel, settings: Settings, statistics: Statistics, removed: int) -> set[int]:
    """Return the blocks that go by the calibration's measures."""
    if settings.order == "angular":
        return nearest_run(statistics.angular_distance(), removed)
    if settings.order == "influence":
        influence = statistics.block_influence()
        return set(sorted(range(len(influence)), key=lambda index: influence[index])[:removed])
    assert settings.samples is not None
    tokens = statistics.tokens()
    if len(tokens) < settings.samples:
        raise ValueError(f"samples is {settings.samples}; the calibration set has {len(tokens)} windows")
    return least_loss(model, tokens[: settings.samples], removed)


def nearest_run(distance: Tensor, removed: int) -> set[int]:
    """Return the ``removed`` blocks in a row with the smallest distance between what enters and what leaves them.

    ``distance`` [L+1, L+1]: entry [i, j] of the states that enter blocks i and j; L leaves the last.
    """
    first = int(distance.diagonal(removed).argmin())
    return set(range(first, first + removed))


def least_loss(model: PreTrainedModel, tokens: Tensor, removed: int) -> set[int]:
    """SLEB's greedy choice of ``removed`` blocks on the windows ``tokens`` int64 [samples, length].

    A candidate is tried with one pass from its place to the end: what enters it is carried along from
    candidate to candidate. Computed in float32, one block's weights at a time; ``model`` stays as it is.
    """
    from hemorrhage.models.blockwise import embed

    number = len(blocks(model))
    batches = tokens.to(model.device).split(batch_size(*tokens.shape))
    gone: set[int] = set()
    with (
        torch.inference_mode(),
        tqdm(
            total=sum(number - 2 - done for done in range(removed)),
            desc="sleb",
            unit="pass",
            mininterval=5,
            leave=False,
        ) as progress,
    ):
        states, arguments = embed(model, batches)
        after_first = pass_blocks(model, [0], states, arguments)
        for _ in range(removed):
            states = after_first
            losses = {}
            for candidate in [index for index in range(1, number - 1) if index not in gone]:
                rest = [index for index in range(candidate + 1, number) if index not in gone]
                losses[candidate] = mean_loss(model, batches, pass_blocks(model, rest, states, arguments))
                states = pass_blocks(model, [candidate], states, arguments)
                progress.update()
            gone.add(min(losses, key=lambda index: losses[index]))
    return gone


def batch_size(samples: int, length: int) -> int:
    """Windows per batch: a divisor of ``samples``, so that all batches have one shape and one mask."""
    fitting = max(1, BATCH_TOKENS // length)
    return max(size for size in range(1, min(fitting, samples) + 1) if samples % size == 0)


def pass_blocks(
    model: PreTrainedModel, indices: list[int], states: list[Tensor], arguments: list[BlockArguments]
) -> list[Tensor]:
    """Return the states that leave the blocks at ``indices``, run one after the other on ``states``."""
    from hemorrhage.models.blockwise import in_float32, run_block

    for index in indices:
        block = blocks(model)[index]
        with in_float32(block):
            states = [run_block(block, state, arguments[index]) for state in states]
    return states


def mean_loss(model: PreTrainedModel, batches: tuple[Tensor, ...], states: list[Tensor]) -> float:
    """Return the mean loss per predicted token, in nats, of ``states`` that left the last block."""
    from hemorrhage.models.blockwise import final_norm, logits

    total = 0.0
    for batch, state in zip(batches, states, strict=True):
        (hidden,) = final_norm(model, (batch,), [state])
        predicted = logits(model, hidden[:, :-1]).flatten(0, 1)
        total += torch.nn.functional.cross_entropy(predicted, batch[:, 1:].flatten(), reduction="sum").item()
    return total / sum(batch[:, 1:].numel() for batch in batches)


def _problem(settings: Settings, number: int) -> str | None:
    removed = count(settings.removed, number)
    stay = STAY[settings.order]
    if not 0 < removed <= number - stay:
        return (
            f"removed {settings.removed} of {number} layers takes out {removed}; "
            f"at least 1 must go and {stay} must stay"
        )
    return None


METHOD = Method(
    MethodInfo(
        title="Depth pruning (ShortGPT, SLEB)",
        summary="whole blocks, by influence, angle, SLEB's search, from the end, or at random",
        papers=(
            Paper("Men et al.", "2403.03853"),
            Paper("Gromov et al.", "2403.17887"),
            Paper("Song et al.", "2402.09025"),
        ),
        examples=(
            {"order": "influence", "removed": 0.2},
            {"order": "random", "removed": 0.2},
            {"order": "sleb", "removed": 0.2, "samples": 4},
        ),
        values=FEWER,
        by_blocks=True,
    ),
    Settings,
    alter,
)
