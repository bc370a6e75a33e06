"""Depth pruning: whole decoder blocks are taken out.

``order: influence`` is ShortGPT (Men et al., arXiv 2403.03853): the blocks with the lowest influence
``BI_i = 1 - E_t cos(x_i,t, x_{i+1},t)`` go, all ranked once in the dense model. ``order: random`` takes the
same number of blocks by lot, the control.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from hemorrhage.compress.blocks import blocks
from hemorrhage.compress.stack import count, rearrange
from hemorrhage.compress.statistics import Statistics
from hemorrhage.lazy import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Settings(BaseModel):
    """The share of blocks to take out, rounded to whole blocks, and how they are chosen."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    axis: ClassVar[str] = "removed"

    removed: Annotated[float, Field(gt=0, lt=1)]
    order: Literal["influence", "random"]

    @property
    def severity(self) -> float:
        """Share of blocks taken out."""
        return self.removed

    @property
    def label(self) -> str:
        """For people."""
        return f"{100 * self.removed:g} % of layers"

    @property
    def curve(self) -> str:
        """What the points of one damage curve have in common."""
        return self.order

    @property
    def statistics(self) -> tuple[str, ...]:
        """The blocks' influence, unless they are drawn by lot."""
        return ("influence",) if self.order == "influence" else ()

    def check(self, config: dict[str, Any]) -> str | None:
        """Why these settings can't be for a model with this config.json, or None."""
        return _problem(self.removed, config["num_hidden_layers"])


def alter(
    model: PreTrainedModel, settings: Settings, statistics: Statistics | None, seed: int, dtype: torch.dtype
) -> None:
    """Take blocks out of ``model`` in place."""
    number = len(blocks(model))
    problem = _problem(settings.removed, number)
    if problem:
        raise ValueError(problem)
    removed = count(settings.removed, number)
    if settings.order == "random":
        gone = set(random.Random(seed).sample(range(number), removed))
    else:
        assert statistics is not None
        influence = statistics.block_influence()
        gone = set(sorted(range(number), key=lambda index: influence[index])[:removed])
    rearrange(model, [index for index in range(number) if index not in gone])


def _problem(share: float, number: int) -> str | None:
    removed = count(share, number)
    if not 0 < removed < number:
        return f"removed {share} of {number} layers takes out {removed}; at least 1 must go and 1 must stay"
    return None
