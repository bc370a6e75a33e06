"""Penalties on what a text already holds, as logits processors that know where the prompts' padding is.

transformers' processors count padding on the left as text, so that a text would depend on the prompts beside it.
``attention_mask`` int64 [batch, length] is that of the prompts; what follows them is generated.
"""

from __future__ import annotations

from hemorrhage.runtime.lazy import torch


class RepetitionPenalty:
    """Divide positive logits of tokens of the prompt and the text by ``penalty``, and multiply negative ones.

    arXiv 1909.05858, as transformers and vLLM have it.
    """

    def __init__(self, penalty: float, attention_mask: torch.Tensor) -> None:
        self.penalty, self.mask = penalty, attention_mask

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores float [batch, vocabulary] of what follows ``input_ids`` [batch, length]."""
        seen = _counts(input_ids, _inside(input_ids, self.mask), scores) > 0
        return torch.where(seen, torch.where(scores < 0, scores * self.penalty, scores / self.penalty), scores)


class CountPenalty:
    """Subtract ``frequency`` for each time that a token was generated, and ``presence`` once if it was.

    OpenAI's definition, as vLLM has it. The prompt is not counted.
    """

    def __init__(self, frequency: float, presence: float, attention_mask: torch.Tensor) -> None:
        self.frequency, self.presence, self.start = frequency, presence, attention_mask.shape[1]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores float [batch, vocabulary] of what follows ``input_ids`` [batch, length]."""
        generated = input_ids[:, self.start :]
        counts = _counts(generated, torch.ones_like(generated), scores)
        return scores - self.frequency * counts - self.presence * (counts > 0)


class NGramBlocking:
    """Forbid tokens that would make an ``n``-gram of prompt and text occur twice (arXiv 1705.04304)."""

    def __init__(self, n: int, attention_mask: torch.Tensor) -> None:
        self.n, self.mask = n, attention_mask

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores float [batch, vocabulary] with -inf for what would repeat."""
        length = input_ids.shape[1]
        if length < self.n:
            return scores
        grams = input_ids.unfold(1, self.n, 1)
        newest = input_ids[:, length - self.n + 1 :]
        begun = (grams[..., :-1] == newest[:, None]).all(-1)
        # An n-gram that begins in the padding is none of the text's.
        begun &= _inside(input_ids, self.mask)[:, : begun.shape[1]] != 0
        return scores.masked_fill(_counts(grams[..., -1], begun, scores) > 0, -torch.inf)


def _inside(input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return which of ``input_ids`` [batch, length] are text: 1, and 0 for the prompts' padding."""
    generated = mask.new_ones(len(mask), input_ids.shape[1] - mask.shape[1])
    return torch.cat([mask, generated], dim=1)


def _counts(tokens: torch.Tensor, counted: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Return how often each token of the vocabulary is among ``tokens`` [batch, n], in the dtype of ``scores``."""
    return torch.zeros_like(scores).scatter_add_(1, tokens, counted.to(scores.dtype))
