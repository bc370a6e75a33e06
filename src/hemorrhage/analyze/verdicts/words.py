"""Words that a variant writes more often than the base does after the same prompts, such as those of hesitation.

A word's frequency is per 100 words of a prompt's texts, all strategies and draws together. If the alteration does
nothing, a prompt's two sets of texts are exchangeable. The largest studentized difference of all words, under random
exchanges, is what each word is compared with (Westfall and Young 1993, single-step max T): that any word is named where
nothing changed has a chance of 1 - confidence.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import significance

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")

LEAST_PROMPTS = 3
"""Prompts in whose texts a word must be."""

LEAST_WORDS = 20
"""Words of a prompt's texts, on average, below which frequencies are not compared."""


@dataclass(frozen=True)
class RaisedWord:
    """A word that a variant writes more often: times per 100 words before and after, and the corrected p-value."""

    variant: str
    dataset: str
    word: str
    base: float
    raised: float
    p: float
    prompts: int


def raised_words(variant: str, dataset: str, base: pd.DataFrame, texts: pd.DataFrame, spec: Spec) -> list[RaisedWord]:
    """Name the words of one data set's texts that a variant writes more often, the surest first."""
    theirs, ours = (_counts(side) for side in (base, texts))
    items = [item for item in ours if item in theirs]
    seen = Counter(word for item in items for word in {*ours[item], *theirs[item]})
    words = sorted(word for word, prompts in seen.items() if prompts >= LEAST_PROMPTS)
    total = sum(side[item].total() for side in (ours, theirs) for item in items)
    if not words or total < 2 * LEAST_WORDS * len(items):
        return []
    before, after = (np.array([_frequencies(side[item], words) for item in items]) for side in (theirs, ours))
    p = significance.largest_differences(after - before, spec.seed, "greater")
    named = [
        RaisedWord(variant, dataset, word, float(low), float(high), float(each), len(items))
        for word, low, high, each in zip(words, before.mean(axis=0), after.mean(axis=0), p, strict=True)
        if each <= 1 - spec.confidence
    ]
    return sorted(named, key=lambda each: (each.p, each.base - each.raised))


def _counts(texts: pd.DataFrame) -> Mapping[int, Counter[str]]:
    """Count the words of each prompt's texts."""
    counted: dict[int, Counter[str]] = {}
    for item, text in zip(texts["item"], texts["text"], strict=True):
        counted.setdefault(int(item), Counter()).update(word.casefold() for word in WORD.findall(text))
    return counted


def _frequencies(counted: Counter[str], words: list[str]) -> list[float]:
    total = max(counted.total(), 1)
    return [100 * counted[word] / total for word in words]
