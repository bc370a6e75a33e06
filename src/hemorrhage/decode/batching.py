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

from hemorrhage.decode.generation import UNTRUNCATED, Decoding, Option, Reading, continuation
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 16_384
"""Texts times their lengths that run together: keys and values of a token take tens of kilobytes."""


def is_batchable(decoding: Decoding) -> bool:
    """Return whether a strategy says no more than how a token is taken from logits."""
    return (
        decoding.search is None
        and not decoding.drafting
        and not decoding.one_by_one
        and not decoding.shipped
        and decoding.options.keys() <= {"do_sample", *UNTRUNCATED}
    )


def continuations(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    new_tokens: int,
    strategies: Sequence[Decoding],
    seeds: Sequence[int],
    reading: Reading | None = None,
    stopping: Sequence[Callable[..., torch.Tensor] | None] = (),
) -> list[torch.Tensor]:
    """Return continuations int64 [batch, <= new_tokens] by each of ``strategies``, which ``is_batchable`` holds for.

    ``seeds`` and ``stopping`` criteria are one of each; no criterion at all where the latter are empty.

    They are those of ``continuation`` for each alone, but for what a product of more rows rounds otherwise.
    """
    number = len(strategies)
    choosers = [Chooser(decoding, seed, input_ids.device) for decoding, seed in zip(strategies, seeds, strict=True)]
    sequences = continuation(
        model,
        input_ids.repeat_interleave(number, 0),
        attention_mask.repeat_interleave(number, 0),
        new_tokens,
        Decoding(processors=[BatchedStrategies(choosers)]),
        seed=seeds[0],
        reading=reading and reading.repeated(number),
        stopping=[StopsInTurn(stopping)] if any(stopping) else [],
    )
    return [sequences[turn::number] for turn in range(number)]


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


class StopsInTurn:
    """Stopping criterion: of rows that belong to strategies in turn, asks each strategy's own criterion."""

    def __init__(self, criteria: Sequence[Callable[..., torch.Tensor] | None]) -> None:
        self.criteria = criteria

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Return bool [batch] for sequences int64 [batch, length]."""
        done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for turn, criterion in enumerate(self.criteria):
            if criterion is not None:
                rows = slice(turn, None, len(self.criteria))
                done[rows] = criterion(input_ids[rows], scores)
        return done


class Chooser:
    """A strategy's way of taking the next tokens."""

    def __init__(self, decoding: Decoding, seed: int, device: torch.device) -> None:
        self.processors = [*decoding.processors, *warpers(decoding.options)]
        self.generator = torch.Generator(device).manual_seed(seed) if decoding.options.get("do_sample") else None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return tokens int64 [batch, 1] that follow ``input_ids`` [batch, length] by logits [batch, vocabulary]."""
        for processor in self.processors:
            scores = processor(input_ids, scores)
        if self.generator is None:
            return scores.argmax(-1, keepdim=True)
        return torch.multinomial(scores.softmax(-1), 1, generator=self.generator)


def warpers(options: Mapping[str, Option]) -> list[Callable[..., torch.Tensor]]:
    """Return transformers' processors of the sampling options that are given, in the order of ``generate``."""
    from transformers.generation import logits_process

    classes: dict[str, Callable[..., Any]] = {
        "temperature": logits_process.TemperatureLogitsWarper,
        "top_k": logits_process.TopKLogitsWarper,
        "top_p": logits_process.TopPLogitsWarper,
        "min_p": logits_process.MinPLogitsWarper,
        "typical_p": logits_process.TypicalLogitsWarper,
        "epsilon_cutoff": logits_process.EpsilonLogitsWarper,
        "eta_cutoff": logits_process.EtaLogitsWarper,
    }
    given = {name: value for name, value in options.items() if name in classes and value != UNTRUNCATED[name]}
    return [warper(given[name]) for name, warper in classes.items() if name in given]
