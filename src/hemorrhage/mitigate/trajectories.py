"""What a corrected model writes: its own texts, token by token, as the decoding sweep makes them.

Every correction continues the same prompts, greedily and by sampling, and its control does, too. Sampled texts of all
corrections are drawn with the same random numbers (those of ``batching.Chooser``), so that equal distributions give
equal texts. A temperature, also by entropy, and a nucleus leave the top-1 token where it was: their greedy texts are
the variant's by construction and are not made.

A correction is a logits processor of transformers and, for gains, a factor on what the head reads; ``correcting`` puts
both in place, so that texts are made and timed as they would be served.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from hemorrhage.decode import batching
from hemorrhage.decode.answers import extract, flexible_number, is_right, plain_number
from hemorrhage.decode.generation import (
    Decoding,
    check_context,
    continuation,
    end_tokens,
    read,
    special_tokens,
    until_end,
)
from hemorrhage.decode.prompts import Prompt, pad_left
from hemorrhage.decode.stops import before_stop
from hemorrhage.decode.sweep import ANOTHER_QUESTION, decode_continuation, score_continuations
from hemorrhage.mitigate.corrections import LOGITS, Correction
from hemorrhage.mitigate.schema import TEXTS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GREEDY, SAMPLING = "greedy", "sampling"
SEARCHES = (GREEDY, SAMPLING)

BASE, BASE_TOP_P = "base", "base top_p"
"""Names of the base model's own texts: of its whole distribution, and of its nucleus."""

TIMED_TOKENS, ROUNDS = 8, 3
"""New tokens of the text that is timed, and how often: the fastest counts."""

Name = tuple[str, int]
Texts = dict[tuple[str, Name], list[list[int]]]
"""Search and correction -> new tokens of each prompt, with the end-of-sequence token where one ended the text."""


@dataclass(frozen=True)
class Task:
    """Prompts that are continued by at most ``new_tokens``; ``kind``: ``closed_ended`` or ``open_ended``."""

    kind: str
    dataset: str
    prompts: Sequence[Prompt]
    new_tokens: int


def changes_greedy(correction: Correction) -> bool:
    """Whether a correction can change which token is the top-1."""
    return correction.bias is not None or correction.gain is not None


class Corrected:
    """Logits processor: a correction of logits, but for its gain."""

    def __init__(self, correction: Correction) -> None:
        self.correction = correction

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the corrected logits float32 [batch, vocabulary] of ``scores``, those of the head."""
        return self.correction.of_logits(scores)


@contextlib.contextmanager
def multiplied(model: PreTrainedModel, chosen: Sequence[Correction]) -> Iterator[None]:
    """Inside, the head reads states that are multiplied by the gains of ``chosen``, whose rows come in turn."""
    if all(correction.gain is None for correction in chosen):
        yield
        return
    head: Any = model.get_output_embeddings()
    ones = torch.ones(next(correction.gain for correction in chosen if correction.gain is not None).shape)
    gains = torch.stack([ones if each.gain is None else each.gain.cpu() for each in chosen])

    def multiply(_module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = inputs[0]
        rows = gains.to(states.device, states.dtype).repeat(len(states) // len(gains), 1)
        return (states * rows.view(len(states), *[1] * (states.dim() - 2), -1), *inputs[1:])

    handle = head.register_forward_pre_hook(multiply)
    try:
        yield
    finally:
        handle.remove()


def write(
    model: PreTrainedModel, task: Task, corrections: Mapping[Name, Correction], searches: Sequence[str], seed: int
) -> Texts:
    """Continue a task's prompts under every correction by each of ``searches``, greedily only where that can differ."""
    texts: Texts = {}
    check_context(model, max(len(prompt.tokens) for prompt in task.prompts), task.new_tokens, task.dataset)
    for search in searches:
        wanted = {
            name: correction
            for name, correction in corrections.items()
            if search == SAMPLING or name == ("none", 0) or changes_greedy(correction)
        }
        for name in wanted:
            texts[search, name] = [[] for _ in task.prompts]
        # Prompts of one length go together: not every model masks padding.
        by_length = sorted(range(len(task.prompts)), key=lambda row: len(task.prompts[row].tokens))
        for number, (_, same) in enumerate(itertools.groupby(by_length, key=lambda row: len(task.prompts[row].tokens))):
            rows = list(same)
            written = _continued(
                model, [task.prompts[row] for row in rows], task.new_tokens, wanted, search, seed + number
            )
            for name, continued in written.items():
                for row, tokens in zip(rows, continued, strict=True):
                    texts[search, name][row] = tokens
    return texts


def _continued(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    new_tokens: int,
    corrections: Mapping[Name, Correction],
    search: str,
    seed: int,
) -> dict[Name, list[list[int]]]:
    ids, mask = _batch(model, prompts)
    reading, last = read(model, ids, mask), end_tokens(model)
    names = list(corrections)
    size = max(1, batching.TOKENS // (len(prompts) * (ids.shape[1] + new_tokens)))
    continued: dict[Name, list[list[int]]] = {}
    for start in range(0, len(names), size):
        group = names[start : start + size]
        chosen = [corrections[name] for name in group]
        with multiplied(model, chosen):
            sequences = batching.continuations(
                model,
                ids,
                mask,
                new_tokens,
                [_decoding(each, search) for each in chosen],
                [seed] * len(chosen),
                reading,
            )
        for name, tokens in zip(group, sequences, strict=True):
            continued[name] = [until_end(text, last) for text in tokens.tolist()]
    return continued


def _batch(model: PreTrainedModel, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
    ids, mask = pad_left(prompts, special_tokens(model)["pad_token_id"])
    return ids.to(model.device), mask.to(model.device)


def _decoding(correction: Correction, search: str) -> Decoding:
    return Decoding(options={"do_sample": True} if search == SAMPLING else {}, processors=[Corrected(correction)])


def agreement(tokens: Sequence[int], base: Sequence[int]) -> int:
    """Return the number of tokens at the beginning that two texts have in common."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(tokens, base, strict=False)))


def table(
    task: Task,
    texts: Mapping[tuple[str, Name], list[list[int]]],
    base_texts: Mapping[tuple[str, Name], list[list[int]]],
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> pd.DataFrame:
    """Return the rows of TEXTS of a task: the corrected variant's texts, and the base's own.

    ``base_texts``: of the base under ``none`` and ``top_p``.
    """
    of_base = {(search, (_base_name(name[0]), 0)): rows for (search, name), rows in base_texts.items()}
    surprise = _surprise(base, task, {**texts, **of_base})
    rows = []
    for (search, (name, control)), continued in {**texts, **of_base}.items():
        truth = of_base[search, (reference_of(name), 0)]
        for prompt, tokens, compared, nll in zip(
            task.prompts, continued, truth, surprise[search, (name, control)], strict=True
        ):
            text = decode_continuation(tokenizer, prompt.tokens, tokens)
            answer, correct = _judged(prompt, text)
            rows.append(
                {
                    "correction": name,
                    "shuffled": control,
                    "search": search,
                    "task": task.kind,
                    "dataset": task.dataset,
                    "item": prompt.item,
                    "text": text,
                    "tokens": tokens,
                    "answer": answer,
                    "correct": correct,
                    "base_nll": nll,
                    "agreement": agreement(tokens, compared),
                    "base_length": len(compared),
                }
            )
    return pd.DataFrame(rows)


def no_texts() -> pd.DataFrame:
    """Return TEXTS without rows."""
    numbers = {name: str(column.dtype) for name, column in TEXTS.columns.items()}
    typed = ("int64", "float64", "bool")
    return pd.DataFrame({name: pd.Series(dtype=of if of in typed else object) for name, of in numbers.items()})


def _base_name(name: str) -> str:
    return BASE_TOP_P if name == "top_p" else BASE


def reference_of(name: str) -> str:
    """Return whose texts of the base those of a correction are compared with."""
    return BASE_TOP_P if name in ("top_p", "nucleus", BASE_TOP_P) else BASE


def _judged(prompt: Prompt, text: str) -> tuple[str, bool]:
    if prompt.right is None:
        return "", False
    if prompt.worked:
        # A model that was shown examples goes on with a question of its own.
        answer = flexible_number(before_stop(text, ANOTHER_QUESTION))
        return answer, plain_number(answer) == prompt.right
    answer = extract(text, prompt.right)
    return answer, is_right(answer, prompt.right)


def _surprise(base: PreTrainedModel, task: Task, texts: Texts) -> dict[tuple[str, Name], list[float]]:
    """Return nats a token of each text under the base, NaN where closed-ended. Equal texts are read once."""
    if task.kind != "open_ended":
        return {key: [math.nan] * len(task.prompts) for key in texts}
    known: dict[tuple[int, tuple[int, ...]], float] = {}
    for continued in texts.values():
        new = {(row, tuple(tokens)): None for row, tokens in enumerate(continued) if (row, tuple(tokens)) not in known}
        known |= dict(zip(new, _scored(base, task, list(new)), strict=True))
    return {key: [known[row, tuple(tokens)] for row, tokens in enumerate(rows)] for key, rows in texts.items()}


def _scored(base: PreTrainedModel, task: Task, texts: Sequence[tuple[int, tuple[int, ...]]]) -> list[float]:
    """Return nats a token of texts behind the prompts with their numbers; some at a time, of one length."""
    vocabulary = base.config.get_text_config(decoder=True).vocab_size
    at_once = max(1, LOGITS // (vocabulary * task.new_tokens))
    by_length: dict[int, list[int]] = {}
    for index, (row, _) in enumerate(texts):
        by_length.setdefault(len(task.prompts[row].tokens), []).append(index)
    values = [math.nan] * len(texts)
    for indices in by_length.values():
        for start in range(0, len(indices), at_once):
            chosen = indices[start : start + at_once]
            ids, mask = _batch(base, [task.prompts[texts[index][0]] for index in chosen])
            continued = [list(texts[index][1]) for index in chosen]
            nll = score_continuations(base, ids, mask, continued, read(base, ids, mask))
            for index, value in zip(chosen, nll, strict=True):
                values[index] = value
    return values


def seconds_per_token(
    model: PreTrainedModel, prompt: Prompt, corrections: Mapping[str, Correction]
) -> dict[str, float]:
    """Time a greedy text under each correction alone: seconds a token, reading the prompt not counted.

    One text at a time, as a single user waits for it. The corrections take turns: a busy machine slows them all.
    """
    ids, mask = _batch(model, [prompt])
    reading = read(model, ids, mask)
    fastest = dict.fromkeys(corrections, math.inf)
    for _ in range(ROUNDS):
        for name, correction in corrections.items():
            decoding = Decoding(processors=[] if name == "none" else [Corrected(correction)])
            with multiplied(model, [correction]):
                start = time.perf_counter()
                tokens = continuation(model, ids, mask, TIMED_TOKENS, decoding, seed=0, reading=reading)
                seconds = time.perf_counter() - start
            fastest[name] = min(fastest[name], seconds / tokens.shape[1])
    return fastest
