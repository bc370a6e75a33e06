"""Random windows of a tokenised text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hemorrhage.runtime.lazy import torch
from hemorrhage.runtime.step import InputError

if TYPE_CHECKING:
    from torch import Tensor


def draw(tokens: Tensor, samples: int, length: int, seed: int, bos: int | None) -> Tensor:
    """``samples`` windows of ``length`` tokens at uniformly random places of ``tokens`` [n].

    As in the GPTQ, SparseGPT and Wanda code; windows may overlap. ``bos`` is put in front of every window
    and counts as one of its tokens. Returns int32 [samples, length]. Raises InputError where the text is
    shorter than a window.
    """
    text = length if bos is None else length - 1
    if len(tokens) < text:
        raise InputError(f"calibrate.length: {length} tokens, but the calibration text has only {len(tokens)}")
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(tokens) - text + 1, (samples,), generator=generator)
    windows = torch.stack([tokens[start : start + text] for start in starts.tolist()]).to(torch.int32)
    if bos is not None:
        windows = torch.cat([torch.full((samples, 1), bos, dtype=torch.int32), windows], dim=1)
    return windows
