"""Multiple-choice tasks: the choice with the highest log-likelihood after the prompt is the answer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from tqdm import tqdm

from hemorrhage.evaluate.language import TOKENS_PER_BATCH, hidden_states
from hemorrhage.evaluate.trie import Trie, accepts_trie
from hemorrhage.models.emulation import eviction
from hemorrhage.models.head import Head, head_of
from hemorrhage.models.stream import rows_at_once

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Row = tuple[int, list[int], list[list[int]]]
"""Item, the tokens read, and for each choice scored from it the tokens that must follow the prompt."""


def choice_rows(item: int, prompt: str, choices: list[str], tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """Return the rows that are read to score an item.

    Tokens that all choices begin with are read as part of the prompt: they add the same to every choice.
    Where each choice is then one token, a single pass over the prompt scores them all; else each choice is
    read after the prompt. Raises ValueError where a choice changes how the prompt itself is tokenised.
    """
    start = tokenizer(prompt).input_ids
    endings = []
    for choice in choices:
        whole = tokenizer(prompt + choice).input_ids
        if whole[: len(start)] != start or len(whole) == len(start):
            raise ValueError(
                f"item {item}: choice {choice!r} merges with the last prompt token (tokenization boundary)"
            )
        endings.append(whole[len(start) :])
    alike = itertools.takewhile(lambda tokens: len(set(tokens)) == 1, zip(*endings, strict=False))
    shared = min(len(list(alike)), min(map(len, endings)) - 1)
    start, endings = start + endings[0][:shared], [ending[shared:] for ending in endings]
    if all(len(ending) == 1 for ending in endings):
        return [(item, start, endings)]
    return [(item, start + ending[:-1], [ending]) for ending in endings]


def log_likelihoods(
    model: PreTrainedModel, rows: list[Row], pad: int, tokens_per_batch: int = TOKENS_PER_BATCH
) -> dict[int, list[float]]:
    """Return item -> summed log-likelihoods (nats) of its choices, without what they have in common, in order.

    Raises ValueError where one is not finite.
    """
    head = head_of(model).float()
    scores: dict[int, list[float]] = {}
    for batch, read in tqdm(_passes(model, rows, pad, tokens_per_batch), desc="items", mininterval=5):
        # Choices of a row are of one length, since they are several only where each is one token.
        lengths = [len(endings[0]) for _, _, endings in batch]
        states = torch.cat([each[len(each) - length :] for each, length in zip(read, lengths, strict=True)])
        wanted = [list(targets) for _, _, endings in batch for targets in zip(*endings, strict=True)]
        picked = iter(_log_p(states, head, wanted))
        for (item, _, endings), length in zip(batch, lengths, strict=True):
            steps = [next(picked) for _ in range(length)]
            sums = [sum(step[choice] for step in steps) for choice in range(len(endings))]
            if not all(map(math.isfinite, sums)):
                raise ValueError(f"item {item}: the likelihoods of its choices are not finite")
            scores.setdefault(item, []).extend(sums)
    return scores


def _log_p(states: torch.Tensor, head: Head, wanted: list[list[int]]) -> list[list[float]]:
    """Return log-probabilities of each state's ``wanted`` tokens; ``states`` [n, hidden] are read a few at a time."""
    picked = []
    at_once = rows_at_once(len(head))
    for start in range(0, len(states), at_once):
        log_p = torch.log_softmax(head.logits(states[start : start + at_once]), dim=-1)
        targets = wanted[start : start + at_once]
        row = torch.tensor([index for index, tokens in enumerate(targets) for _ in tokens], device=log_p.device)
        token = torch.tensor([token for tokens in targets for token in tokens], device=log_p.device)
        values = iter(log_p[row, token].tolist())
        picked += [[next(values) for _ in tokens] for tokens in targets]
    return picked


def _passes(
    model: PreTrainedModel, rows: list[Row], pad: int, tokens_per_batch: int
) -> Iterator[tuple[list[Row], list[torch.Tensor]]]:
    """Yield rows in the order given, some at a time, with the final hidden states of each [its length, hidden].

    A pass reads at most ``tokens_per_batch``, padding included, or half of it where attention goes over all of them,
    but always a row.
    """
    if accepts_trie(model):
        for batch, trie in _tries(rows, tokens_per_batch // 2):
            hidden = hidden_states(
                model,
                torch.tensor([trie.tokens], device=model.device),
                attention_mask=trie.mask()[None, None].to(model.device),
                position_ids=torch.tensor([trie.depths], device=model.device),
            )[0]
            yield batch, [hidden[path] for path in trie.paths]
        return
    for batch in _batches(rows, tokens_per_batch):
        longest = max(len(tokens) for _, tokens, _ in batch)
        padded = torch.tensor([tokens + [pad] * (longest - len(tokens)) for _, tokens, _ in batch])
        # Causal attention: what is padded on the right of a row cannot reach it. The last token of a prompt asks.
        with eviction.prompts(model, [len(tokens) - len(endings[0]) for _, tokens, endings in batch]):
            states = hidden_states(model, padded.to(model.device))
        yield batch, [each[: len(tokens)] for each, (_, tokens, _) in zip(states, batch, strict=True)]


def _tries(rows: list[Row], most: int) -> Iterator[tuple[list[Row], Trie]]:
    """Yield the rows in the order given, together until what they don't share would pass ``most`` tokens."""
    batch: list[Row] = []
    trie = Trie()
    for row in rows:
        if batch and len(trie.tokens) + trie.would_add(row[1]) > most:
            yield batch, trie
            batch, trie = [], Trie()
        batch.append(row)
        trie.add(row[1])
    yield batch, trie


def _batches(rows: list[Row], tokens_per_batch: int) -> list[list[Row]]:
    """Return the rows in the order given, a batch until its padded size would pass ``tokens_per_batch``."""
    batches: list[list[Row]] = []
    longest = 0
    for row in rows:
        longest = max(longest, len(row[1])) if batches else len(row[1])
        if not batches or longest * (len(batches[-1]) + 1) > tokens_per_batch:
            batches.append([])
            longest = len(row[1])
        batches[-1].append(row)
    return batches


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Path,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> pd.DataFrame:
    """Return a model's answers to a prepared task: ``item``, ``group``, ``choice``, ``correct``, ``margin`` (nats)."""
    items = pd.read_parquet(task / "items.parquet")
    rows = [
        row
        for item in items.itertuples()
        for row in choice_rows(int(item.item), str(item.prompt), list(item.choices), tokenizer)
    ]
    scores = log_likelihoods(model, rows, pad=0, tokens_per_batch=tokens_per_batch)
    chosen = []
    for item in items.itertuples():
        score = scores[int(item.item)]
        right = int(item.answer)
        choice = max(range(len(score)), key=score.__getitem__)
        margin = score[right] - max(value for index, value in enumerate(score) if index != right)
        numbers = {"item": int(item.item), "group": int(item.group)}
        chosen.append({**numbers, "choice": choice, "correct": choice == right, "margin": margin})
    return pd.DataFrame(chosen)
