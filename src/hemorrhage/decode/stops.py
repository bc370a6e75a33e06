"""Strings that end a text: while it is generated, and what of it counts afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Stops:
    """The strings that end a text, and the tokenizer that they are found with."""

    tokenizer: PreTrainedTokenizerBase
    strings: Sequence[str] = ()

    def criteria(self, start: int) -> list[StopsAt]:
        """Return the stopping criteria behind prompts of ``start`` tokens: none where no string ends a text."""
        return [StopsAt(self.tokenizer, self.strings, start)] if self.strings else []


class StopsAt:
    """A stopping criterion of transformers: rows whose newest token completes a stop string are done.

    It only saves time: where a text ends, ``before_stop`` decides. ``start`` is the length of the prompts in tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], start: int) -> None:
        self.tokenizer, self.stops, self.start = tokenizer, stops, start
        # A token has at least one character, but for the first of a decoded text, which may lose a space.
        self.tail = max(map(len, stops)) + 2

    def __call__(self, input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        """Return bool [batch] for sequences int64 [batch, length]."""
        tails = self.tokenizer.batch_decode(
            input_ids[:, max(self.start, input_ids.shape[1] - self.tail) :], clean_up_tokenization_spaces=False
        )
        return torch.tensor([any(stop in text for stop in self.stops) for text in tails], device=input_ids.device)


def before_stop(text: str, stops: Sequence[str]) -> str:
    """Return ``text`` up to where the first of ``stops`` begins."""
    return text[: min((begin for stop in stops if (begin := text.find(stop)) >= 0), default=len(text))]


def stop_position(tokenizer: PreTrainedTokenizerBase, tokens: list[int], stops: Sequence[str]) -> int | None:
    """Count the tokens up to and with the one that completes a stop string; None where none does."""

    def stopped(count: int) -> bool:
        text = str(tokenizer.decode(tokens[:count], clean_up_tokenization_spaces=False))
        return any(stop in text for stop in stops)

    if not stops or not stopped(len(tokens)):
        return None
    without, within = 0, len(tokens)
    while within - without > 1:
        middle = (without + within) // 2
        without, within = (without, middle) if stopped(middle) else (middle, within)
    return within
