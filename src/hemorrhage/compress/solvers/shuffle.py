"""The control of a method that uses information: the same numbers in random places.

A mitigation helps by what it knows (gradients, scales, sensitivities) or by what it does besides (another grid, zeros
in other places). With ``shuffled`` a method does the same work with its information shuffled by the variant's seed: the
values keep their distribution and lose their places. What the control recovers, the information did not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def shuffler(shuffled: bool, seed: int) -> torch.Generator | None:
    """Return the generator that shuffles, or None where nothing is to be shuffled."""
    return torch.Generator().manual_seed(seed) if shuffled else None


def shuffle(values: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return ``values``, of any shape, in random places; as they are without a ``generator``."""
    if generator is None:
        return values
    order = torch.randperm(values.numel(), generator=generator).to(values.device)
    return values.flatten()[order].view_as(values)
