"""Overlap of two files of texts: what is evaluated on should not be what the methods were calibrated on."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemorrhage.data.texts.records import Record, read_records

NGRAM = 13
"""Words that two texts must share in a row to overlap (GPT-3's contamination analysis, arXiv 2005.14165)."""

WORD = re.compile(r"\w+")

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Overlap:
    """Shares of one file that are in another: of its ``documents``, and of its ``ngrams``, runs of NGRAM words."""

    documents: float
    ngrams: float


def overlap(file: Path, other: Path) -> Overlap:
    """Measure how much of a file is in another. Raises InputError where one can't be read."""
    texts, others = ([_text(record) for record in read_records(each)] for each in (file, other))
    ngrams = _ngrams([*texts, *others])
    of_file, of_other = (np.concatenate(each) for each in (ngrams[: len(texts)], ngrams[len(texts) :]))
    shared = float(pd.Series(of_file).isin(of_other).mean()) if len(of_file) else 0.0
    known = set(others)
    return Overlap(sum(text in known for text in texts) / len(texts), shared)


def _text(record: Record) -> str:
    return record.text or "\n".join(str(message["content"]) for message in record.messages)


def _ngrams(texts: Sequence[str]) -> list[Hashes]:
    """Return a number for each run of NGRAM words of each text: of products that wrap around."""
    words = [WORD.findall(text.lower()) for text in texts]
    numbers, _ = pd.factorize(np.array(list(itertools.chain.from_iterable(words)), dtype=object))
    factors = np.random.default_rng(0).integers(2**63, size=NGRAM, dtype=np.uint64)
    ends = np.cumsum([len(each) for each in words])
    ngrams = []
    for part in np.split(numbers.astype(np.uint64) + np.uint64(1), ends[:-1]):
        runs = max(len(part) - NGRAM + 1, 0)
        hashes = np.zeros(runs, dtype=np.uint64)
        for place, factor in enumerate(factors):
            hashes += part[place : place + runs] * factor
        ngrams.append(hashes)
    return ngrams
