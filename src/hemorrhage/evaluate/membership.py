"""Membership inference: does a model know the evaluation split better than unmeasured text of the same corpus.

Min-K%++ (Zhang et al., arXiv 2404.02936): of each predicted token (ln p(x) - mu) / sigma, where mu and sigma are mean
and standard deviation of ln p(z) for z drawn from p; a window's value is the mean over the fifth of its tokens with the
lowest. The calibration split is the control: windows of the same length and the same source. ``overlap``: share of the
n-grams of the evaluation windows that are in the calibration split, too.
"""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hemorrhage.models import blockwise

WINDOWS = 8
"""Of each split."""

LOWEST = 0.2
"""Share of a window's tokens that Min-K%++ averages."""

NGRAM = 13
"""Tokens that two texts must share in a row to overlap (GPT-3's contamination analysis, arXiv 2005.14165)."""

ROWS = 128
"""Tokens whose distributions are in memory at once."""


class Scores(TypedDict):
    """``nll`` (nats per token) and ``min_k`` of each window."""

    nll: list[float]
    min_k: list[float]


class Membership(TypedDict):
    """The scores of some windows of each split, and the share of n-grams that both have."""

    overlap: float
    evaluation: Scores
    calibration: Scores


def membership_scores(model: PreTrainedModel, evaluation: Tensor, calibration: Tensor) -> Membership:
    """Score both splits, int32 ``[windows, window]``."""
    overlapping = overlap(evaluation, calibration)
    evaluated, control = (
        scores(model, windows[:: max(1, len(windows) // WINDOWS)][:WINDOWS].long())
        for windows in (evaluation, calibration)
    )
    return {"overlap": overlapping, "evaluation": evaluated, "calibration": control}


def scores(model: PreTrainedModel, windows: Tensor) -> Scores:
    """Return ``nll`` (nats per token) and ``min_k`` of each of the windows int64 ``[n, window]``."""
    states = blockwise.forward_blockwise(model, windows.to(model.device))
    result: Scores = {"nll": [], "min_k": []}
    with torch.inference_mode():
        for hidden, tokens in zip(states[:, :-1], windows[:, 1:], strict=True):
            parts = [
                min_k_terms(blockwise.logits(model, rows), targets.to(rows.device))
                for rows, targets in zip(hidden.split(ROWS), tokens.split(ROWS), strict=True)
            ]
            ln_p, term = (torch.cat(column) for column in zip(*parts, strict=True))
            lowest = term.sort().values[: max(1, int(LOWEST * len(term)))]
            result["nll"].append(-ln_p.mean().item())
            result["min_k"].append(lowest.mean().item())
    return result


def min_k_terms(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return ln p(x) and (ln p(x) - mu) / sigma of each token; logits ``[n, vocabulary]``, targets int64 ``[n]``."""
    ln = logits.log_softmax(-1)
    p = ln.exp()
    mean = (p * ln).sum(-1)
    spread = ((p * ln.square()).sum(-1) - mean.square()).clamp_min(1e-12).sqrt()
    ln_p = ln.gather(-1, targets[:, None])[:, 0]
    return ln_p, (ln_p - mean) / spread


def overlap(evaluation: Tensor, calibration: Tensor) -> float:
    """Return the share of the evaluation windows' n-grams that are in a window of the calibration split."""
    evaluated, control = (_fingerprints(windows) for windows in (evaluation, calibration))
    if not len(evaluated) or not len(control):
        return 0.0
    return torch.isin(evaluated, control.unique()).double().mean().item()


def _fingerprints(windows: Tensor) -> Tensor:
    """Return a number for each n-gram of the windows: int64, of products that wrap around."""
    if windows.shape[1] < NGRAM:
        return torch.empty(0, dtype=torch.int64)
    factors = torch.randint(2**62, (NGRAM,), generator=torch.Generator().manual_seed(0))
    # A few windows at a time: n-grams take as many times the room of their text.
    parts = [(part.long().unfold(1, NGRAM, 1) * factors).sum(-1).flatten() for part in windows.split(1024)]
    return torch.cat(parts)
