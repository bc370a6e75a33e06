"""Divergences between three predictions of the same tokens: the base's, our reading of a checkpoint, an engine's.

All are over the whole vocabulary, in float64 from float32 logits, so that nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hemorrhage.models.head import Head

LOGITS = 2**22
"""Logits of each of the three that are compared at once."""

COLUMNS = (
    *("nll", "nll_weights", "base_nll", "kl", "kl_weights", "kl_kernels"),
    *("same_top1", "same_top1_weights", "same_top1_kernels"),
)
"""What is measured of a token: see hemorrhage.evaluate.served_schema."""


@torch.inference_mode()
def compare(base: Tensor, weights: Tensor, engine: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return COLUMNS, [n] each, of logits [n, vocabulary] and the tokens int64 [n] that follow."""
    three = [torch.log_softmax(logits.double(), dim=-1) for logits in (base, weights, engine)]
    of_base, of_weights, of_engine = three
    nll_base, nll_weights, nll = (-each.gather(1, targets[:, None])[:, 0] for each in three)
    top_base, top_weights, top = (each.argmax(-1) for each in three)
    return {
        "nll": nll.float(),
        "nll_weights": nll_weights.float(),
        "base_nll": nll_base.float(),
        "kl": _divergence(of_base, of_engine),
        "kl_weights": _divergence(of_base, of_weights),
        "kl_kernels": _divergence(of_weights, of_engine),
        "same_top1": top == top_base,
        "same_top1_weights": top_weights == top_base,
        "same_top1_kernels": top == top_weights,
    }


def _divergence(first: Tensor, second: Tensor) -> Tensor:
    """Return KL(first ‖ second) in nats, float32 [n], of log-probabilities [n, vocabulary]."""
    return (first.exp() * (first - second)).sum(-1).float()


def compare_tile(
    base: tuple[Head, Tensor], weights: tuple[Head, Tensor], engine: Tensor, targets: Tensor
) -> Iterator[dict[str, Tensor]]:
    """Yield ``compare`` of a few tokens at a time; of base and weights the heads and final states [n, hidden]."""
    at_once = max(1, LOGITS // engine.shape[1])
    for start in range(0, len(targets), at_once):
        part = slice(start, start + at_once)
        of_base, of_weights = (head.logits(states[part]) for head, states in (base, weights))
        yield compare(of_base, of_weights, engine[part], targets[part])
