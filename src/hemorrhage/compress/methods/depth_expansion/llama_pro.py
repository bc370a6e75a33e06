"""LLaMA-Pro block expansion (Wu et al., arXiv 2401.02415), before the new blocks are trained.

Copies of blocks are put in behind every ``layers / added`` blocks, each a copy of the block before it with
the output projections of attention and MLP set to zero. The new blocks add nothing to the residual stream:
the model is the base exactly. It is the control of the expansion family.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from hemorrhage.compress.info import MethodInfo, Paper
from hemorrhage.compress.method import Alteration, Context, Method
from hemorrhage.compress.solvers.stack import MORE, AddedSettings, rearrange, scale_writes, sources, writes_of
from hemorrhage.models.blocks import blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Settings(AddedSettings):
    """Settings of LLaMA-Pro; the paper adds 8 blocks to 32."""

    added: Annotated[float, Field(gt=0, le=1)] = 0.25

    def order(self, blocks: int) -> list[int]:
        """Return the place that each block is made from: the last of every group comes twice."""
        added = self.number(blocks)
        copied = {(index + 1) * blocks // added - 1 for index in range(added)}
        return [origin for index in range(blocks) for origin in ([index, index] if index in copied else [index])]

    def check_model(self, model: PreTrainedModel) -> str | None:
        """Raise RefusedError where blocks depend on their place, or a copy's output can't be taken out."""
        stack = blocks(model)
        for before, origin in itertools.pairwise(self.order(len(stack))):
            if origin == before:
                writes_of(stack[origin])
        return super().check_model(model)


def alter(model: PreTrainedModel, settings: Settings, _context: Context) -> Alteration:
    """Put new blocks into ``model`` in place."""
    order = settings.order(len(blocks(model)))
    stack = rearrange(model, order)
    for before, (origin, block) in zip(order, zip(order[1:], stack[1:], strict=True), strict=False):
        if origin == before:
            scale_writes(block, 0.0)
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
