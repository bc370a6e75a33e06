"""The divergence of one model from another, written out: what methods are compared by."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel


def kl(base: Tensor, other: Tensor) -> float:
    """Mean over tokens of KL(base ‖ other) in nats, of logits [..., vocabulary]."""
    p, q = base.log_softmax(-1), other.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean().item()


def divergence(base: PreTrainedModel, other: PreTrainedModel, tokens: Tensor) -> float:
    """``kl`` of two models on ``tokens`` int64 [n, length]."""
    with torch.no_grad():
        return kl(base(tokens).logits, other(tokens).logits)
