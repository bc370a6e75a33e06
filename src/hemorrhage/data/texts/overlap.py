"""Overlap of two files of texts: what is evaluated on should not be what the methods were calibrated on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

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
    known = set(others)
    ids: dict[str, int] = {}
    ngrams, of_other = (np.concatenate([_ngrams(text, ids) for text in each]) for each in (texts, others))
    shared = np.isin(ngrams, of_other).mean() if len(ngrams) else 0.0
    return Overlap(sum(text in known for text in texts) / len(texts), float(shared))


def _text(record: Record) -> str:
    return record.text or "\n".join(str(message["content"]) for message in record.messages)


def _ngrams(text: str, ids: dict[str, int]) -> Hashes:
    """Return a number for each run of words, of products that wrap around; ``ids`` numbers the words of all texts."""
    words = [ids.setdefault(word, len(ids) + 1) for word in _words(text)]
    if len(words) < NGRAM:
        return np.empty(0, dtype=np.uint64)
    factors = np.random.default_rng(0).integers(2**63, size=NGRAM, dtype=np.uint64)
    runs = np.lib.stride_tricks.sliding_window_view(np.array(words, dtype=np.uint64), NGRAM)
    hashes: Hashes = (runs * factors).sum(axis=1, dtype=np.uint64)
    return hashes


def _words(text: str) -> Iterable[str]:
    return (match[0] for match in WORD.finditer(text.lower()))
