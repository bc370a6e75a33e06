"""Depth up-scaling (SOLAR; Kim et al., arXiv 2312.15166), before the continued training that the paper needs.

Of n blocks the first n - m and then the last n - m, so the blocks m to n - m - 1 come twice, as a run, and
the model has 2 (n - m): with the paper's n = 32 and m = 8, blocks 0-23 and then 8-31. Nothing is zeroed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.solvers.stack import count, rearrange, sources
from hemorrhage.models.blocks import blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Settings(BaseModel):
    """The blocks left out at each side of the seam, m / n, rounded to whole blocks; the paper's is 0.25."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    axis: ClassVar[str] = "added"

    overlap: Annotated[float, Field(gt=0, lt=0.5)] = 0.25

    @property
    def severity(self) -> float:
        """Blocks more, over the model's blocks: 1 - 2 m / n."""
        return round(1 - 2 * self.overlap, 12)

    @property
    def label(self) -> str:
        """For people."""
        return f"+{100 * self.severity:g} % of layers"

    @property
    def curve(self) -> str:
        """All points lie on one curve."""
        return ""

    @property
    def statistics(self) -> tuple[str, ...]:
        """None."""
        return ()

    def check(self, config: dict[str, Any]) -> str | None:
        """Why these settings can't be for a model with this config.json, or None."""
        return _problem(self.overlap, config["num_hidden_layers"])


def alter(model: PreTrainedModel, settings: Settings, statistics: Statistics | None, seed: int) -> None:
    """Scale ``model`` up in place."""
    number = len(blocks(model))
    problem = _problem(settings.overlap, number)
    if problem:
        raise ValueError(problem)
    left_out = count(settings.overlap, number)
    rearrange(model, [*range(number - left_out), *range(left_out, number)])


def facts(model: PreTrainedModel, settings: Settings) -> dict[str, Any]:
    """The block of the model that was altered which each block was made from."""
    return {"blocks": sources(model)}


def _problem(share: float, number: int) -> str | None:
    left_out = count(share, number)
    if left_out < 1 or 2 * left_out >= number:
        return f"overlap {share} of {number} layers leaves out {left_out} a side; no layer would come twice"
    return None
