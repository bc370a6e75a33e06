"""Strategies that need one forward pass a token, run in one batch.

A model of 135 million parameters reads all its weights for a token of one text; for a hundred texts it reads them
once. Greedy search, logits processors and samplers differ only in how they take a token from the same kind of
logits, so their copies of a batch of prompts go through the model together. Every strategy takes its own tokens:
its processors see its rows only, and its draws come from a generator of its own, in the order in which
``generate`` would draw them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hemorrhage.decode.generation import UNTRUNCATED, Reading, continuation
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 16_384
"""Texts times their lengths that run together: keys and values of a token take tens of kilobytes."""


def is_batchable(parameters: Mapping[str, Any]) -> bool:
    """Return whether a strategy's arguments of ``continuation`` say no more than how a token is taken from logits."""
    return parameters.keys() <= {"do_sample", "processors", *UNTRUNCATED}


def continuations(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    new_tokens: int,
    strategies: Sequence[Mapping[str, Any]],
    seed: int,
    reading: Reading | None = None,
    stopping: Sequence[Callable[..., torch.Tensor]] = (),
) -> list[torch.Tensor]:
    """Return continuations int64 [batch, <= new_tokens] by each of ``strategies``, which ``is_batchable`` holds for.

    They are those of ``continuation`` for each alone, but for what a product of more rows rounds otherwise.
    """
    number = len(strategies)
    choosers = [Chooser(parameters, seed, input_ids.device) for parameters in strategies]
    found = continuation(
        model,
        input_ids.repeat_interleave(number, 0),
        attention_mask.repeat_interleave(number, 0),
        new_tokens,
        seed=seed,
        reading=reading and reading.repeated(number),
        processors=[BatchedStrategies(choosers)],
        stopping=stopping,
    )
    return [found[turn::number] for turn in range(number)]


class BatchedStrategies:
    """Logits processor: of rows that belong to strategies in turn, leaves each the token that its strategy takes."""

    def __init__(self, choosers: Sequence[Chooser]) -> None:
        self.choosers = choosers

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``scores`` [batch, vocabulary]: 0 for the chosen token, -inf for all others."""
        chosen = torch.full_like(scores, -torch.inf)
        for turn, choose in enumerate(self.choosers):
            rows = slice(turn, None, len(self.choosers))
            chosen[rows] = chosen[rows].scatter(1, choose(input_ids[rows], scores[rows]), 0.0)
        return chosen


class Chooser:
    """How one strategy takes the next tokens."""

    def __init__(self, parameters: Mapping[str, Any], seed: int, device: torch.device) -> None:
        self.processors = [*parameters.get("processors", ()), *warpers(parameters)]
        self.generator = torch.Generator(device).manual_seed(seed) if parameters.get("do_sample") else None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return tokens int64 [batch, 1] that follow ``input_ids`` [batch, length] by logits [batch, vocabulary]."""
        for processor in self.processors:
            scores = processor(input_ids, scores)
        if self.generator is None:
            return scores.argmax(-1, keepdim=True)
        return torch.multinomial(scores.softmax(-1), 1, generator=self.generator)


def warpers(parameters: Mapping[str, Any]) -> list[Callable[..., torch.Tensor]]:
    """Return transformers' processors of the sampling parameters that are given, in the order of ``generate``."""
    from transformers import generation

    kinds: dict[str, Any] = {
        "temperature": generation.TemperatureLogitsWarper,
        "top_k": generation.TopKLogitsWarper,
        "top_p": generation.TopPLogitsWarper,
        "min_p": generation.MinPLogitsWarper,
        "typical_p": generation.TypicalLogitsWarper,
        "epsilon_cutoff": generation.EpsilonLogitsWarper,
        "eta_cutoff": generation.EtaLogitsWarper,
    }
    given = {name: value for name, value in parameters.items() if name in kinds and value != UNTRUNCATED[name]}
    return [kind(given[name]) for name, kind in kinds.items() if name in given]
