"""The information-loss cascade: an alteration's error arises, is carried on and amplified from block to block.

All functions compare states ``x`` of the base with ``y`` of a variant, float32 ``[n, T, d]``, and give a value for each
of the n windows, float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hemorrhage.models import blockwise

ROWS = 256
"""States whose logits are made at once by the logit lens."""

EXACT = 20 * math.log10(2**24)
"""SQNR in dB at which all that is left is the rounding of float32; no error at all is reported as this."""


def relative_error(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean over tokens of ``‖x_t - y_t‖ / ‖x_t‖``: [n].

    Token by token, because the few tokens that attention sinks into have states that are hundreds of times larger.
    Tokens whose ``x_t`` is zero, such as padding's embedding, are left out.
    """
    size: Tensor = x.norm(dim=-1)
    error: Tensor = (x - y).norm(dim=-1)
    return (error / size.where(size > 0, torch.nan)).double().nanmean(-1)


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean over tokens of the cosine between ``x_t`` and ``y_t``: [n]. A state of zeros has cosine 0."""
    return torch.nn.functional.cosine_similarity(x.double(), y.double(), dim=-1).mean(-1)


def sqnr(signal: Tensor, noise: Tensor) -> Tensor:
    """Return ``10 log10(var(signal) / var(noise))`` over tokens and channels, dB, EXACT at most: [n].

    NaN where there is no signal.
    """
    power, error = (x.double().flatten(1).var(1) for x in (signal, noise))
    return torch.where(power > 0, 10 * (power / error).log10().clamp_max(EXACT / 10), torch.nan)


def cka(x: Tensor, y: Tensor) -> Tensor:
    """Return linear centred kernel alignment (Kornblith et al., arXiv 1905.00414): [n]; ``y`` may have another width.

    ``‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖)`` in Frobenius norms, columns centred. With fewer tokens than channels that is near 1 for
    anything, so the unbiased estimate of each of the three is taken then (Song et al. 2012; Nguyen et al., arXiv
    2010.15327). No rotation of either changes it. NaN where a window's states are all alike, or fewer than 4.
    """
    if x.shape[1] < max(x.shape[2], y.shape[2]):
        k, l = (_without_diagonal(z @ z.transpose(1, 2)) for z in (x, y))  # noqa: E741
        kl, kk, ll = _hsic(k, l), _hsic(k, k), _hsic(l, l)
        return torch.where((kk > 0) & (ll > 0), kl / (kk * ll).clamp_min(0).sqrt(), torch.nan)
    a, b = ((z - z.mean(1, keepdim=True)).double() for z in (x, y))
    aa: Tensor
    bb: Tensor
    aa, bb = ((z.transpose(1, 2) @ z).norm(dim=(1, 2)) for z in (a, b))
    ba: Tensor = (b.transpose(1, 2) @ a).norm(dim=(1, 2))
    return ba.square() / (aa * bb)


def lens(model: PreTrainedModel, tokens: Tensor, states: list[Tensor], log_p: Tensor) -> list[Tensor]:
    """Return the logit lens: ``KL(p ‖ softmax(W_U norm(x)))`` of each of ``states``, mean over positions, nats: [n].

    ``states``: [n, positions, d] each, ``log_p`` [n, positions, vocabulary], the base's final log-probabilities there.
    Norm and output embedding are those of ``model``; ``tokens`` int64 [n, T] only lead to them.
    """
    # As many texts as there are states, so that no position is beyond a text.
    (normed,) = blockwise.final_norm(model, (tokens,), [torch.cat(states)])
    p = log_p.exp()
    divergences: list[Tensor] = []
    layers = normed.split(len(log_p))
    # One product of all windows' positions in several layers: small ones take several times as long.
    at_once = max(1, ROWS // log_p[..., 0].numel())
    for start in range(0, len(layers), at_once):
        some = torch.stack(layers[start : start + at_once])
        log_q = log_probabilities(model, some.flatten(0, 2)).view(-1, *log_p.shape)
        divergences += log_q.neg_().add_(log_p).mul_(p).sum(-1).double().mean(-1).unbind()
    return divergences


def log_probabilities(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Return log-probabilities float32 [..., vocabulary] of final hidden states [..., d] after the last norm."""
    return torch.log_softmax(blockwise.logits(model, hidden), dim=-1)


def _without_diagonal(gram: Tensor) -> Tensor:
    return gram.double() * (1 - torch.eye(gram.shape[-1], dtype=torch.float64, device=gram.device))


def _hsic(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
    """Return the unbiased Hilbert-Schmidt independence criterion of kernels with empty diagonals: [n]."""
    n = k.shape[-1]
    if n < 4:
        return torch.full(k.shape[:1], torch.nan, dtype=k.dtype, device=k.device)
    sums = k.sum(2), l.sum(2)
    means = sums[0].sum(1) * sums[1].sum(1) / ((n - 1) * (n - 2))
    cross = 2 / (n - 2) * (sums[0] * sums[1]).sum(1)
    return ((k * l).sum((1, 2)) + means - cross) / (n * (n - 3))
