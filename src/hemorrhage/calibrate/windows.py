"""Random windows of a tokenised text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hemorrhage.runtime.lazy import torch
from hemorrhage.runtime.step import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def draw(tokens: Tensor, samples: int, length: int, seed: int, leading: Sequence[int]) -> Tensor:
    """Return ``samples`` windows of ``length`` tokens at uniformly random places of ``tokens`` [n].

    As in the GPTQ, SparseGPT and Wanda code; windows may overlap. The tokens ``leading`` are put in front of every
    window and count as its tokens. Returns int32 [samples, length]. Raises InputError where the text is
    shorter than a window.
    """
    text = length - len(leading)
    if len(tokens) < text:
        raise InputError(f"calibrate.length: {length} tokens, but the calibration text has only {len(tokens)}")
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(tokens) - text + 1, (samples,), generator=generator)
    windows = torch.stack([tokens[start : start + text] for start in starts.tolist()]).to(torch.int32)
    return torch.cat([torch.tensor(leading, dtype=torch.int32).expand(samples, -1), windows], dim=1)
