"""Mirostat 2 (arXiv 2007.14966): draw so that the mean surprise of the text comes near a target.

Of every text a bound mu, at first 2 tau: tokens with a surprise -log2 p(v) above mu are dropped, the most
probable one excepted; a token is drawn from the rest, and mu falls by rate times what its surprise under the
whole distribution exceeds tau. Bits; temperature 1. Defaults tau = 3, rate = 1, the authors'; arXiv 2402.06925
sweeps tau in 2.5, 3, 4, 5. Version 1 of the paper finds the bound by way of a fit of Zipf's law to the
100 most probable tokens. A logits processor for sampling, usable outside the bench:

    model.generate(**prompts, do_sample=True, top_k=0, logits_processor=[Mirostat(tau=3.0, rate=1.0)])
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from hemorrhage.decode.generation import Decoding, Prompts
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Settings(BaseModel):
    """Settings of mirostat."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    deterministic: ClassVar[bool] = False

    tau: float = Field(3.0, gt=0, description="Target of the mean surprise, bits per token.")
    rate: float = Field(1.0, gt=0, description="How much of its error a token corrects.")

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        return f"mirostat τ {self.tau:g}"


def parameters(_model: PreTrainedModel, settings: Settings, _prompts: Prompts) -> Decoding:
    """Return how generation.continuation decodes."""
    return Decoding({"do_sample": True}, processors=[Mirostat(settings.tau, settings.rate)])


class Mirostat:
    """Logits processor with a state for every text of one batch: a new one for every call of ``generate``."""

    def __init__(self, tau: float = 3.0, rate: float = 1.0) -> None:
        self.tau, self.rate = tau, rate
        self.bound: torch.Tensor | None = None
        self.surprise: torch.Tensor | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        """``scores`` [batch, vocabulary] with -inf for what ``input_ids`` [batch, length] may not go on with."""
        if self.bound is None or self.surprise is None:
            self.bound = scores.new_full((len(scores), 1), 2 * self.tau)
        else:
            drawn = self.surprise.gather(1, input_ids[:, -1:])
            self.bound = self.bound - self.rate * (drawn - self.tau)
        self.surprise = -scores.log_softmax(-1) / math.log(2)
        dropped = (self.surprise > self.bound) & (scores < scores.amax(-1, keepdim=True))
        return scores.masked_fill(dropped, -torch.inf)
