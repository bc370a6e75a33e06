"""The base model's tokenizer as the text step uses it: nothing is cut, nothing padded, nothing added."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hemorrhage.runtime.artifact import MANIFEST, read_manifest
from hemorrhage.runtime.step import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def tokenizer_of(base: Path) -> Tokenizer:
    """Read the tokenizer in ``base``."""
    # The library itself: transformers would import torch, seconds for nothing.
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    # A file that was saved while it trained cuts and pads every text.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def tokenize(base: Path, text: str) -> list[int]:
    """Return the token ids of ``text`` as one piece, without special tokens, by the tokenizer in ``base``."""
    ids: list[int] = tokenizer_of(base).encode(text, add_special_tokens=False).ids
    return ids


def check_ids(corpus: str, base: Path, largest: int) -> None:
    """Raise InputError where a text holds a token that the base model has no embedding of."""
    rows = read_manifest(base).get("vocabulary") if (base / MANIFEST).is_file() else None
    if rows is not None and largest >= rows:
        raise InputError(f"corpus {corpus} has the token {largest}, and the model's embedding has {rows} rows")


def check_count(corpus: str, split: str, tokens: int, needs: Mapping[str, int]) -> None:
    """Raise InputError where a split has fewer tokens than ``needs`` says."""
    if tokens < needs.get(split, 0):
        raise InputError(f"corpus {corpus}: {split} has {tokens} tokens, but {needs[split]} are needed")
