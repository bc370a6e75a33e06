"""LLaMA-Pro block expansion (Wu et al., arXiv 2401.02415), before the new blocks are trained.

Copies of blocks are put in behind every ``layers / added`` blocks, each a copy of the block before it with
the output projections of attention and MLP set to zero. The new blocks add nothing to the residual stream:
the model is the base exactly. It is the control of the expansion family.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hemorrhage.compress.info import MethodInfo, Paper
from hemorrhage.compress.method import Alteration, Context, Method
from hemorrhage.compress.solvers.residual import find_writers, scale_writes
from hemorrhage.compress.solvers.stack import MORE, AddedSettings, rearrange, sources
from hemorrhage.models.blocks import blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Settings(AddedSettings):
    """Settings of LLaMA-Pro; the paper adds 8 blocks to 32."""

    added: Annotated[float, Field(gt=0, le=1)] = 0.25

    def order(self, blocks: int) -> list[int]:
        """Return the place that each block is made from: the last of every group comes twice."""
        return sorted([*range(blocks), *self.copied(blocks)])

    def copied(self, blocks: int) -> list[int]:
        """Return the places of the blocks that come twice, in order."""
        added = self.number(blocks)
        return [(index + 1) * blocks // added - 1 for index in range(added)]

    def check_model(self, model: PreTrainedModel) -> str | None:
        """Raise RefusedError where blocks depend on their place, or a copy's output can't be taken out."""
        find_writers(model, self.copied(len(blocks(model))))
        return super().check_model(model)


def alter(model: PreTrainedModel, settings: Settings, _context: Context) -> Alteration:
    """Put new blocks into ``model`` in place."""
    number = len(blocks(model))
    writers = find_writers(model, settings.copied(number))
    stack = rearrange(model, settings.order(number))
    for index, (place, names) in enumerate(writers.items()):
        scale_writes(stack[place + index + 1], names, 0.0)
    return Alteration(blocks=sources(model))


METHOD = Method(
    MethodInfo(
        title="LLaMA-Pro block expansion",
        summary="copies of blocks that add nothing: the control of expansion",
        papers=(Paper("Wu et al.", "2401.02415"),),
        examples=({"added": 0.2},),
        values=MORE,
        unchanged=True,
        by_blocks=True,
    ),
    Settings,
    alter,
)
