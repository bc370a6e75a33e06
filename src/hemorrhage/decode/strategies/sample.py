"""Sampling as people set it: temperature, truncations, penalties and stop strings, composed in an engine's order.

``{temperature: 0.6, top_p: 0.95}`` is such a composition; what is not given changes nothing. Each part is the one of
its engine, and the order is

- ``transformers`` (5.17, ``GenerationMixin._get_logits_processor``): repetition penalty, n-gram blocking, frequency and
  presence penalty (which transformers lacks; it would run them there, as processors of the caller), temperature, top-k,
  top-p, min-p, typical, epsilon, eta;
- ``vllm`` (``v1/sample/sampler.py``): repetition, frequency and presence penalty, temperature, min-p, top-k, top-p. It
  has none of the others.

Where more than one truncation is given, each works on what the ones before it have left, scaled to 1. Temperature 0 is
greedy search under the penalties. A text ends with the token that completes a stop string, which stays in the text, as
in transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hemorrhage.decode.generation import Decoding, Prompts, check_vocabulary
from hemorrhage.decode.penalties import CountPenalty, NGramBlocking, RepetitionPenalty
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    Processor = Callable[..., torch.Tensor]
    """A logits processor: tokens int64 [batch, length], scores float [batch, vocabulary] -> scores."""

ORDERS = {
    "transformers": (
        "repetition_penalty",
        "no_repeat_ngram",
        "frequency_penalty",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "typical",
        "epsilon",
        "eta",
    ),
    "vllm": ("repetition_penalty", "frequency_penalty", "temperature", "min_p", "top_k", "top_p"),
}
"""Engine -> its parts in their order; the presence penalty goes with the frequency penalty."""


class Settings(BaseModel):
    """Settings of a composition; the defaults change nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperature: float = Field(1.0, ge=0, le=10, description="Divides the logits; 0 is greedy search.")
    top_k: int = Field(0, ge=0, description="Tokens kept; 0 is all.")
    top_p: float = Field(1.0, gt=0, le=1, description="Probability mass kept.")
    min_p: float = Field(0.0, ge=0, le=1, description="Share of the top probability that a token needs.")
    typical: float = Field(1.0, gt=0, le=1, description="Mass kept of the tokens whose surprise is near the entropy.")
    epsilon: float = Field(0.0, ge=0, lt=1, description="Probability below which a token is dropped.")
    eta: float = Field(0.0, ge=0, lt=1, description="eps of the cutoff of eta sampling.")
    repetition_penalty: float = Field(1.0, gt=0, le=10, description="Of tokens of prompt and text; 1 is none.")
    frequency_penalty: float = Field(0.0, ge=-2, le=2, description="For each time that a token was generated.")
    presence_penalty: float = Field(0.0, ge=-2, le=2, description="For a token that was generated.")
    no_repeat_ngram: int = Field(0, ge=0, description="Length of the n-grams that may occur once; 0 is any.")
    stop: tuple[str, ...] = Field((), description="Strings that end a text.")
    seed: int | None = Field(None, ge=0, lt=2**32, description="Of its draws, in place of the sweep's.")
    order: Literal["transformers", "vllm"] = "transformers"

    @model_validator(mode="after")
    def _check(self) -> Settings:
        if "" in self.stop:
            raise ValueError("stop: an empty string ends every text")
        lacking = [name for name in self.given if name not in (*ORDERS[self.order], "presence_penalty")]
        if lacking:
            raise ValueError(f"order: vllm has no {lacking[0]}")
        truncating = [name for name in TRUNCATIONS if name in self.given]
        if self.temperature == 0 and truncating:
            raise ValueError(f"temperature: 0 is greedy search, where {truncating[0]} does nothing")
        return self

    @property
    def given(self) -> list[str]:
        """Names of the parts that change something."""
        fields = type(self).model_fields
        parts = (name for name in fields if name not in ("stop", "seed", "order"))
        return [name for name in parts if getattr(self, name) != fields[name].default]

    @property
    def deterministic(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        parts = [f"{name.replace('_', ' ')} {getattr(self, name):g}" for name in self.given]
        return ", ".join(parts) or "the model's own distribution"


TRUNCATIONS = ("top_k", "top_p", "min_p", "typical", "epsilon", "eta")
"""Parts that drop tokens before one is drawn."""


def describe(_model: PreTrainedModel, settings: Settings) -> dict[str, str]:
    """Return a label for tables: a composition has more settings than it uses."""
    return {"label": settings.label}


def parameters(model: PreTrainedModel, settings: Settings, prompts: Prompts) -> Decoding:
    """Return how generation.continuation decodes."""
    check_vocabulary(model, "top_k", settings.top_k)
    return Decoding(
        {"do_sample": not settings.deterministic},
        processors=processors(settings, prompts.attention_mask),
        stop=settings.stop,
    )


def processors(settings: Settings, attention_mask: torch.Tensor) -> Sequence[Processor]:
    """Return the parts that are given as logits processors in their order; ``attention_mask`` is the prompts'."""
    from transformers.generation import logits_process

    parts: dict[str, Callable[[], Processor]] = {
        "repetition_penalty": lambda: RepetitionPenalty(settings.repetition_penalty, attention_mask),
        "no_repeat_ngram": lambda: NGramBlocking(settings.no_repeat_ngram, attention_mask),
        "frequency_penalty": lambda: CountPenalty(
            settings.frequency_penalty, settings.presence_penalty, attention_mask
        ),
        "temperature": lambda: logits_process.TemperatureLogitsWarper(settings.temperature),
        "top_k": lambda: logits_process.TopKLogitsWarper(settings.top_k),
        "top_p": lambda: logits_process.TopPLogitsWarper(settings.top_p),
        "min_p": lambda: logits_process.MinPLogitsWarper(settings.min_p),
        "typical": lambda: logits_process.TypicalLogitsWarper(settings.typical),
        "epsilon": lambda: logits_process.EpsilonLogitsWarper(settings.epsilon),
        "eta": lambda: logits_process.EtaLogitsWarper(settings.eta),
    }
    given = {"frequency_penalty" if name == "presence_penalty" else name for name in settings.given}
    if settings.deterministic:
        given.discard("temperature")
    return [parts[name]() for name in ORDERS[settings.order] if name in given]
