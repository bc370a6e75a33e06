"""How much cached tokens are worth: one score for each token of a key-value head, of which the lowest are evicted.

Queries are those of the tokens that were read, after the rotary embedding: ``queries`` [heads, tokens, channels],
``keys`` and ``values`` [key-value heads, tokens, channels] of one text, without padding. All scores are float32
[key-value heads, tokens].

- ``streaming_llm``: the first ``sinks`` tokens and the newest (Xiao et al., arXiv 2309.17453).
- ``snapkv``: the attention that the last ``window`` queries pay, averaged over them, smoothed over ``kernel``
  neighbours and averaged over the heads that share a key; the window itself stays (Li et al., arXiv 2404.14469).
- ``key_norm``: the smaller a key, the more attention it gets (Devoto et al., arXiv 2406.11430).
- ``expected_attention``: the attention that queries of the next ``future`` positions will pay, were they normal with
  the mean and covariance of the queries so far, times the size of the value; sinks stay (arXiv 2510.00636, and its
  authors' library kvpress).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from hemorrhage.models.emulation.evicted import evicted_tokens


def streaming_llm(keys: Tensor, sinks: int) -> Tensor:
    """Return scores that grow with the position, those of the first ``sinks`` tokens above all others.

    Of a prompt of which fewer tokens stay, the first sinks do.
    """
    tokens = keys.shape[1]
    scores = torch.arange(tokens, device=keys.device, dtype=torch.float32)
    scores[:sinks] = 2 * tokens - scores[:sinks]
    return scores.expand(len(keys), -1)


def snapkv(queries: Tensor, keys: Tensor, scaling: float, window: int, kernel: int) -> Tensor:
    """Return the smoothed attention of the last ``window`` queries, infinite for their own tokens."""
    tokens = keys.shape[1]
    window = min(window, tokens)
    observed, groups = queries[:, tokens - window :].float(), len(queries) // len(keys)
    logits = observed @ keys.float().repeat_interleave(groups, 0).transpose(1, 2) * scaling
    positions = torch.arange(tokens, device=keys.device)
    weights = logits.masked_fill(positions > positions[tokens - window :, None], -math.inf).softmax(-1)
    attention = weights[..., : tokens - window].mean(1)
    if tokens > window:
        attention = functional.avg_pool1d(attention, kernel, stride=1, padding=kernel // 2)
    scores: Tensor = attention.unflatten(0, (-1, groups)).mean(1)
    return functional.pad(scores, (0, window), value=math.inf)


def key_norm(keys: Tensor) -> Tensor:
    """Return the keys' negative L2 norms."""
    norms: Tensor = torch.linalg.vector_norm(keys.float(), dim=-1)
    return -norms


def expected_attention(
    queries: Tensor, keys: Tensor, values: Tensor, rotation: Tensor, scaling: float, sinks: int
) -> Tensor:
    """Return the attention that is expected of later queries, times the values' norms; infinite for ``sinks`` tokens.

    ``queries`` are here those before the rotary embedding; ``rotation`` [channels, channels] is the mean over later
    positions of what it multiplies a query with.
    """
    groups, seen = len(queries) // len(keys), queries[:, sinks:].float()
    if seen.shape[1] == 0:
        return torch.full(keys.shape[:2], math.inf, device=keys.device)
    mean = seen.mean(1, keepdim=True)
    centred = seen - mean
    covariance = rotation @ (centred.transpose(1, 2) @ centred / seen.shape[1]) @ rotation.T
    later, every_key = keys[:, sinks:].float(), keys[:, sinks:].float().repeat_interleave(groups, 0)
    logits = (every_key @ (mean @ rotation.T).transpose(1, 2))[..., 0] * scaling
    logits = logits + (every_key @ covariance * every_key).sum(-1) * scaling**2 / 2
    expected = logits.softmax(-1).unflatten(0, (len(later), groups)).mean(1)
    scores = expected * torch.linalg.vector_norm(values[:, sinks:].float(), dim=-1)
    return functional.pad(scores, (sinks, 0), value=math.inf)


def lowest(scores: Tensor, ratio: float) -> Tensor:
    """Return which tokens are evicted: of each head the share ``ratio`` with the lowest scores, bool [heads, tokens].

    Rounded down to whole tokens; of equal scores the older token goes.
    """
    number = evicted_tokens(scores.shape[1], ratio)
    order = scores.argsort(dim=-1, stable=True)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order[:, :number], value=True)
