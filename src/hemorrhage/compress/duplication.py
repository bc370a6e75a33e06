"""Naive duplication: every block of a run in the middle of the decoder comes twice, nothing is zeroed.

With L blocks and d = added · L, the blocks (L - d) // 2 and the d - 1 after it are each followed by a copy:
``..., i, i, i+1, i+1, ...``. What a block adds to the residual stream is added twice. The damage control
between LLaMA-Pro, whose copies are silent, and depth up-scaling, which repeats a run as a whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hemorrhage.compress.blocks import blocks
from hemorrhage.compress.stack import AddedSettings, rearrange
from hemorrhage.compress.statistics import Statistics
from hemorrhage.lazy import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Settings(AddedSettings):
    """Settings of duplication."""


def alter(
    model: PreTrainedModel, settings: Settings, statistics: Statistics | None, seed: int, dtype: torch.dtype
) -> None:
    """Duplicate blocks of ``model`` in place."""
    number = len(blocks(model))
    added = settings.number(number)
    first = (number - added) // 2
    run = range(first, first + added)
    rearrange(model, sorted([*range(number), *run]))
