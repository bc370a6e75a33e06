"""Depth up-scaling (SOLAR; Kim et al., arXiv 2312.15166), before the continued training that the paper needs.

Of n blocks the first n - m and then the last n - m, so the blocks m to n - m - 1 come twice, as a run, and
the model has 2 (n - m): with the paper's n = 32 and m = 8, blocks 0-23 and then 8-31. Nothing is zeroed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from hemorrhage.compress.info import MethodInfo, Paper
from hemorrhage.compress.method import Alteration, ConfigJson, Context, Method, Wording
from hemorrhage.compress.method import Settings as Base
from hemorrhage.compress.solvers.stack import check_order, count, layers_added, rearrange, sources
from hemorrhage.models.blocks import blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def more(overlap: float) -> float:
    """Return the blocks that are added, over the model's blocks: 1 - 2 m / n."""
    return round(1 - 2 * overlap, 12)


def layers_more(overlap: float) -> str:
    """Return how many blocks an overlap adds, in words."""
    return layers_added(more(overlap))


class Settings(Base):
    """The blocks left out at each side of the seam, m / n, rounded to whole blocks; the paper's is 0.25."""

    axis: ClassVar[str] = "added"
    severity_field: ClassVar[str] = "overlap"
    words: ClassVar[Mapping[str, Wording]] = {"overlap": layers_more}

    overlap: Annotated[float, Field(gt=0, lt=0.5)] = 0.25

    @property
    def severity(self) -> float:
        """Blocks more, over the model's blocks: 1 - 2 m / n."""
        return more(self.overlap)

    def check(self, config: ConfigJson) -> str | None:
        """Return the reason why a model with this config.json can't be altered like this, or None."""
        return _problem(self.overlap, config["num_hidden_layers"])

    def order(self, blocks: int) -> list[int]:
        """Return the place that each block is made from: the first ones, then the last ones."""
        left_out = count(self.overlap, blocks)
        return [*range(blocks - left_out), *range(left_out, blocks)]

    def check_model(self, model: PreTrainedModel) -> str | None:
        """Raise RefusedError where blocks depend on their place."""
        check_order(model, self.order(len(blocks(model))))
        return None


def alter(model: PreTrainedModel, settings: Settings, _context: Context) -> Alteration:
    """Scale ``model`` up in place."""
    number = len(blocks(model))
    problem = _problem(settings.overlap, number)
    if problem:
        raise ValueError(problem)
    rearrange(model, settings.order(number))
    return Alteration(blocks=sources(model))


def _problem(share: float, number: int) -> str | None:
    left_out = count(share, number)
    if left_out < 1 or 2 * left_out >= number:
        return f"overlap {share} of {number} layers leaves out {left_out} a side; no layer would come twice"
    return None


METHOD = Method(
    MethodInfo(
        title="Depth up-scaling (SOLAR)",
        summary="the first and the last blocks with an overlap that comes twice",
        papers=(Paper("Kim et al.", "2312.15166"),),
        examples=({"overlap": 0.25},),
    ),
    Settings,
    alter,
)
