"""Frustratingly simple decoding, discrete form (arXiv 2305.12675): an anti-model that counts the text's n-grams.

V = the k most probable tokens; y = argmax over v in V of (1 - alpha) p(v) - alpha pen(v). pen is a smoothed
n-gram model of the text so far, the prompt's included. From the longest context to none, i = n - 1 .. 0
tokens, with c_i the times that v followed the last i tokens and t_i the times that anything did: where c_i is
not 0, pen grows by r beta c_i / (t_i + 1), by r c_0 / t_0 for i = 0, and r, at first 1, is multiplied by
1 - beta. 0 where the text is shorter than n - 1. Defaults n = 3, beta = 0.9, k = 5, alpha = 0.6 (arXiv
2402.06925). Stop words and ``ends`` are those of ``fsd``. A token costs n entries in a
table and k n looks into it, however long the text is. A logits processor for greedy search, usable outside
the bench:

    model.generate(**prompts, logits_processor=[NGramPenalty(alpha=0.6, candidates=5, order=3, beta=0.9)])
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from hemorrhage.decode.generation import Decoding, Prompts, check_vocabulary
from hemorrhage.decode.search import (
    Alpha,
    Candidates,
    Ends,
    Exceptions,
    StopWords,
    StopWordWeight,
)
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Settings(BaseModel):
    """Settings of discrete FSD."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    deterministic: ClassVar[bool] = True

    n: int = Field(3, ge=2, le=8, description="Length of the n-grams.")
    k: Candidates = 5
    alpha: Alpha = 0.6
    beta: float = Field(0.9, ge=0, le=1, description="How much of the rest each shorter context leaves to the next.")
    stop_words: StopWords = ()
    stop_word_weight: StopWordWeight = 0.0
    ends: Ends = True

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        return f"FSD-d n {self.n}, k {self.k}, α {self.alpha:g}"


def parameters(model: PreTrainedModel, settings: Settings, prompts: Prompts) -> Decoding:
    """Return how generation.continuation decodes."""
    check_vocabulary(model, "k", settings.k)
    penalty = NGramPenalty(
        settings.alpha,
        settings.k,
        settings.n,
        settings.beta,
        prompts.attention_mask,
        Exceptions.of(model, settings, prompts),
    )
    return Decoding(processors=[penalty])


class NGramPenalty:
    """Logits processor with an n-gram table for every text of one batch: a new one for every call of ``generate``.

    ``attention_mask`` int64 [batch, length] of the prompts says where their padding is; without it there is none.
    """

    def __init__(
        self,
        alpha: float = 0.6,
        candidates: int = 5,
        order: int = 3,
        beta: float = 0.9,
        attention_mask: torch.Tensor | None = None,
        exceptions: Exceptions | None = None,
    ) -> None:
        self.exceptions = exceptions or Exceptions()
        self.alpha, self.candidates, self.order, self.beta = alpha, candidates, order, beta
        self.attention_mask = attention_mask
        self.tables: list[NGrams] = []
        self.length = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        """Return the scores [batch, vocabulary] whose argmax is the next token; -inf for all but the candidates."""
        self._read(input_ids)
        p, tokens = self.exceptions.candidates(scores.softmax(-1), self.candidates)
        penalty = p.new_tensor(
            [[table.penalty(token) for token in row] for table, row in zip(self.tables, tokens.tolist(), strict=True)]
        )
        penalty = self.exceptions.weigh(penalty, tokens)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens, (1 - self.alpha) * p - self.alpha * penalty)

    def _read(self, input_ids: torch.Tensor) -> None:
        new = input_ids[:, self.length :].tolist()
        if not self.tables:
            self.tables = [NGrams(self.order, self.beta) for _ in new]
            if self.attention_mask is not None:
                new = [tokens[-count:] for tokens, count in zip(new, self.attention_mask.sum(1).tolist(), strict=True)]
        for table, tokens in zip(self.tables, new, strict=True):
            table.extend(tokens)
        self.length = input_ids.shape[1]


class NGrams:
    """What followed every context of up to ``order`` - 1 tokens, at least one, in a text that grows."""

    def __init__(self, order: int, beta: float) -> None:
        self.span, self.beta = order - 1, beta
        self.recent: tuple[int, ...] = ()
        self.followers: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        self.totals: Counter[tuple[int, ...]] = Counter()

    def extend(self, tokens: Sequence[int]) -> None:
        """Add ``tokens`` to the text."""
        for token in tokens:
            for start in range(len(self.recent) + 1):
                context = self.recent[start:]
                self.followers[context][token] += 1
                self.totals[context] += 1
            self.recent = (*self.recent, token)[-self.span :]

    def penalty(self, token: int) -> float:
        """Probability of ``token`` as the next one under the smoothed n-gram model."""
        penalty, rest = 0.0, 1.0
        if len(self.recent) < self.span:
            return penalty
        for start in range(self.span + 1):
            context = self.recent[start:]
            count = self.followers[context][token] if context in self.followers else 0
            if count and context:
                penalty += rest * self.beta * count / (self.totals[context] + 1)
            elif count:
                penalty += rest * count / self.totals[context]
            if count:
                rest *= 1 - self.beta
        return penalty
