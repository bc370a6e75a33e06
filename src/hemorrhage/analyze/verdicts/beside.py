"""Texts of the base and of a variant side by side, chosen by where they part and by nothing else.

Of each variant and data set: the greedy texts that part first, at the median, and last, and the number that never do.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

import pandas as pd

from hemorrhage.analyze.rows.survival import find_divergence, greedy_texts

LONGEST = 600
"""Characters of a text that are shown, and of the end of a prompt."""

PIECE = re.compile(r"\s+|\w+|[^\w\s]")


@dataclass(frozen=True)
class Part:
    """A part of a text, and whether the other text has it at this place."""

    text: str
    same: bool


@dataclass(frozen=True)
class Beside:
    """A prompt with both texts; ``at``: the first token that differs, from 1; ``place``: among the parting texts."""

    variant: str
    dataset: str
    item: int
    place: str
    at: int
    parting: int
    texts: int
    prompt: str
    base: list[Part]
    text: list[Part]


def side_by_side(variant: str, dataset: str, base: pd.DataFrame, texts: pd.DataFrame) -> list[Beside]:
    """Choose the prompts of one data set to show; empty where greedy search was not run, or no text parts."""
    pairs = _greedy(base).merge(_greedy(texts), on="item", suffixes=("_base", ""))
    places = []
    for row in pairs.itertuples():
        at, parts = find_divergence(list(row.tokens_base), list(row.tokens))
        if parts:
            places.append((at, int(row.item)))
    places.sort()
    by_item = pairs.set_index("item")
    chosen: dict[int, Beside] = {}
    for place, index in (("first", 0), ("median", (len(places) - 1) // 2), ("last", len(places) - 1)):
        if places and places[index][1] not in chosen:
            at, item = places[index]
            both = by_item.loc[item]
            ours, theirs = differing(both["text_base"][:LONGEST], both["text"][:LONGEST])
            facts = (variant, dataset, item, place, at, len(places), len(pairs))
            chosen[item] = Beside(*facts, _end(both["prompt_base"]), ours, theirs)
    return list(chosen.values())


def _greedy(texts: pd.DataFrame) -> pd.DataFrame:
    return greedy_texts(texts)[["item", "prompt", "text", "tokens"]]


def _end(prompt: str) -> str:
    return prompt if len(prompt) <= LONGEST else f"… {prompt[-LONGEST:]}"


def differing(first: str, second: str) -> tuple[list[Part], list[Part]]:
    """Cut two texts into parts that both have and parts that only one has, by words, signs and whitespace."""
    pieces = PIECE.findall(first), PIECE.findall(second)
    parts: tuple[list[Part], list[Part]] = ([], [])
    for operation, *spans in difflib.SequenceMatcher(None, *pieces, autojunk=False).get_opcodes():
        for side, (low, high) in enumerate((spans[:2], spans[2:])):
            if high > low:
                parts[side].append(Part("".join(pieces[side][low:high]), operation == "equal"))
    return parts
