"""Documents of a text, as they are stored and as its digest counts them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import NotRequired, TypedDict

SPLITS = ("calibration", "evaluation")


class Document(TypedDict):
    """A row of ``documents.parquet``; ``category``: of a user's file, and may be empty."""

    split: str
    document: int
    text: str
    category: NotRequired[str]


def digest(rows: Sequence[Document]) -> str:
    """Return the SHA-256 of the splits, numbers and texts of all documents."""
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
