"""Paragraphs that stood there before, or in a text that models are measured on: known by runs of words."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

NGRAM = 13
"""Words in a row by which two texts overlap (GPT-3's contamination analysis, arXiv 2005.14165)."""

SHARE = 0.5
"""A paragraph is a near duplicate if more than this share of its runs stood earlier."""

WORD = re.compile(r"\w+")

Flags = npt.NDArray[np.bool_]


class Runs:
    """The runs of NGRAM words of paragraphs that are added one after the other.

    A paragraph with fewer words has one run, of all of them.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._factors = np.random.default_rng(0).integers(2**63, size=NGRAM, dtype=np.uint64) | np.uint64(1)

    def of(self, paragraph: str) -> npt.NDArray[np.uint64]:
        """Return a number for each run: sums of products that wrap around."""
        numbers = self._numbers
        ids = [numbers.setdefault(word, len(numbers) + 1) for word in WORD.findall(paragraph.lower())]
        words = np.array(ids, dtype=np.uint64)
        width = min(NGRAM, len(words))
        runs = np.zeros(len(words) - width + 1 if width else 0, dtype=np.uint64)
        for place in range(width):
            runs += words[place : place + len(runs)] * self._factors[place]
        return runs


def distinct(paragraphs: Sequence[str], measured: Sequence[str], keeps_short: bool) -> Flags:
    """Tell which paragraphs are kept: (len(paragraphs),) of truth.

    One that shares a run of NGRAM words with a text of ``measured`` goes, and so does a near duplicate of earlier ones.
    ``keeps_short``: a paragraph of at most as many words stays where it is a duplicate.
    """
    runs = Runs()
    forbidden = np.unique(np.concatenate([np.zeros(0, dtype=np.uint64), *map(runs.of, measured)]))
    each = [runs.of(paragraph) for paragraph in paragraphs]
    counts = np.array([len(of_one) for of_one in each], dtype=np.int64)
    every = np.concatenate([np.zeros(0, dtype=np.uint64), *each])
    owner = np.repeat(np.arange(len(paragraphs)), counts)
    leaked = np.bincount(owner[np.isin(every, forbidden)], minlength=len(paragraphs))
    again = np.bincount(owner[pd.Series(every).duplicated().to_numpy()], minlength=len(paragraphs))
    repeated = again > SHARE * counts
    if keeps_short:
        # One run is a paragraph of at most NGRAM words.
        repeated &= counts > 1
    kept: Flags = (counts > 0) & (leaked == 0) & ~repeated
    return kept
