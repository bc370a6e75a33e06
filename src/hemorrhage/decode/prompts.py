"""What the strategies continue: task items with a right answer, and beginnings of documents."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from tqdm import tqdm

from hemorrhage.decode.spec import Closed, Open
from hemorrhage.lazy import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prompt:
    """One prompt. ``right`` is the right answer of a closed task, None where there is none."""

    item: int
    text: str
    tokens: list[int]
    right: str | None = None


def closed_prompts(task: Path, tokenizer: PreTrainedTokenizerBase, spec: Closed, seed: int) -> list[Prompt]:
    """``spec.items`` items of a prepared task, drawn with ``seed``, in the order of their items.

    Raises ValueError when the task has fewer, or one of them has an empty prompt.
    """
    items = pd.read_parquet(task / "items.parquet", columns=["item", "prompt", "choices", "answer"])
    if len(items) < spec.items:
        raise ValueError(f"closed.items: {spec.items} wanted, the task at {task} has {len(items)}")
    drawn = items.sort_values("item").iloc[sorted(random.Random(seed).sample(range(len(items)), spec.items))]
    prompts = []
    for item, prompt, choices, answer in drawn.itertuples(index=False, name=None):
        if not prompt.strip():
            raise ValueError(f"item {item} of the task at {task} has an empty prompt")
        tokens = [*leading_tokens(tokenizer), *_tokens(tokenizer, prompt)]
        prompts.append(Prompt(int(item), prompt, tokens, choices[answer].strip()))
    return prompts


def open_prompts(text: Path, tokenizer: PreTrainedTokenizerBase, spec: Open, seed: int) -> list[Prompt]:
    """The first ``spec.prefix`` tokens of ``spec.items`` evaluation documents, drawn with ``seed``.

    A document must hold prefix and new tokens, so that the continuation its author wrote is there to
    compare with. Raises ValueError when too few do.
    """
    documents = pd.read_parquet(text / "documents.parquet", filters=[("split", "==", "evaluation")])
    order = list(documents.sort_values("document")[["document", "text"]].itertuples(index=False, name=None))
    random.Random(seed).shuffle(order)
    enough = spec.prefix + spec.new_tokens
    prompts: list[Prompt] = []
    for document, content in tqdm(order, desc="documents", mininterval=5):
        if len(prompts) == spec.items:
            break
        # No token is longer than 64 characters on average; a book need not be tokenised for its first page.
        tokens = _tokens(tokenizer, content[: 64 * enough])
        if len(tokens) >= enough:
            prefix = tokens[: spec.prefix]
            shown = str(tokenizer.decode(prefix, clean_up_tokenization_spaces=False))
            prompts.append(Prompt(int(document), shown, [*leading_tokens(tokenizer), *prefix]))
    if len(prompts) < spec.items:
        raise ValueError(
            f"open.items: {spec.items} wanted, the text at {text} has {len(prompts)} evaluation documents "
            f"of at least prefix + new_tokens = {enough} tokens"
        )
    return sorted(prompts, key=lambda prompt: prompt.item)


def leading_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning-of-sequence token where the tokenizer puts it in front by default, else nothing."""
    ids = tokenizer("a")["input_ids"]
    return [ids[0]] if tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id else []


def left_padded(prompts: Sequence[Prompt], padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``input_ids`` and ``attention_mask``, int64 [prompts, longest], padding on the left."""
    longest = max(len(prompt.tokens) for prompt in prompts)
    ids = torch.full((len(prompts), longest), padding, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt.tokens) :] = torch.tensor(prompt.tokens)
        mask[row, longest - len(prompt.tokens) :] = 1
    return ids, mask


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
