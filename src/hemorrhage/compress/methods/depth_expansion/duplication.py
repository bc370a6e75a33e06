"""Naive duplication: every block of a run in the middle of the decoder comes twice.

With L blocks and d = added · L, the blocks (L - d) // 2 and the d - 1 after it are each followed by a copy:
``..., i, i, i+1, i+1, ...``. What a block adds to the residual stream is added twice. The damage control
between LLaMA-Pro, whose copies are silent, and depth up-scaling, which repeats a run as a whole.

Scaled duplication multiplies the output projections of attention and MLP of the copies by ``scale``: 1 is
naive duplication; 0 is silent copies as in LLaMA-Pro (arXiv 2401.02415), in the middle, the base exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from hemorrhage.compress.info import MethodInfo, Paper
from hemorrhage.compress.method import Alteration, Context, Method, Wording
from hemorrhage.compress.solvers.residual import find_writers, refuse_normed_writes, scale_writes
from hemorrhage.compress.solvers.stack import MORE, AddedSettings, rearrange, sources
from hemorrhage.models.blocks import blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Settings(AddedSettings):
    """Settings of duplication: how much of what the copied blocks add the copies add again."""

    words: ClassVar[Mapping[str, Wording]] = {**AddedSettings.words, "scale": "copies scaled by {}"}

    scale: Annotated[float, Field(ge=0, le=1)] = 1.0

    def order(self, blocks: int) -> list[int]:
        """Return the place that each block is made from: a run in the middle comes twice."""
        return sorted([*range(blocks), *self.run(blocks)])

    def run(self, blocks: int) -> range:
        """Return the places of the blocks that come twice."""
        added = self.number(blocks)
        first = (blocks - added) // 2
        return range(first, first + added)

    def check_model(self, model: PreTrainedModel) -> str | None:
        """Raise RefusedError where blocks depend on their place, or can't be scaled."""
        if self.scale != 1:
            refuse_normed_writes(model, self.run(len(blocks(model))))
        return super().check_model(model)


def alter(model: PreTrainedModel, settings: Settings, _context: Context) -> Alteration:
    """Duplicate blocks of ``model`` in place."""
    number = len(blocks(model))
    run = settings.run(number)
    writers = {}
    if settings.scale != 1:
        refuse_normed_writes(model, run)
        writers = find_writers(model, run)
    stack = rearrange(model, settings.order(number))
    for index, names in enumerate(writers.values()):
        scale_writes(stack[run.start + 2 * index + 1], names, settings.scale)
    return Alteration(blocks=sources(model))


METHOD = Method(
    MethodInfo(
        title="Naive duplication",
        summary="blocks of a run in the middle come twice, as they are or scaled",
        papers=(Paper("Wu et al.", "2401.02415"),),
        examples=({"added": 0.2}, {"added": 0.2, "scale": 0.5}),
        values=MORE,
        by_blocks=True,
    ),
    Settings,
    alter,
)
