"""Texts of the user: a file of plain texts or conversations, as documents, tokens and segments.

A segment is what a window stays inside: a conversation, or all plain texts of a category, joined by blank lines. Where
``score: assistant`` is asked for, the tokens that have a character of the assistant's words are scored and no others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd
from safetensors.numpy import save_file

from hemorrhage.data.source import File
from hemorrhage.data.texts.chat import Chat, Rendered
from hemorrhage.data.texts.documents import SPLITS, digest
from hemorrhage.data.texts.documents import Document as Row
from hemorrhage.data.texts.records import Record, read_records
from hemorrhage.data.texts.schema import DOCUMENTS, SEGMENTS
from hemorrhage.data.texts.tokens import check_count, check_ids, tokenizer_of
from hemorrhage.runtime.artifact import MANIFEST, read_manifest, write_manifest, writing
from hemorrhage.runtime.step import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

JOIN = "\n\n"


@dataclass(frozen=True)
class Document:
    """A record as text. ``spans``: the scored characters of a conversation; None: all, also of a plain text."""

    text: str
    category: str
    is_conversation: bool = False
    spans: Sequence[tuple[int, int]] | None = None


@dataclass(frozen=True)
class Segment:
    """Tokens of one category, int32 ``[n]``, and which of them are scored."""

    tokens: npt.NDArray[np.int32]
    scored: npt.NDArray[np.bool_]
    category: str

    def windows(self, text: int, first: int) -> int:
        """Count the windows of ``text`` tokens that have a scored one from their token ``first`` on."""
        filled = np.pad(self.scored, (0, -len(self.scored) % text)).reshape(-1, text)
        return int(filled[:, first:].any(axis=1).sum())


@dataclass(frozen=True)
class OwnText:
    """A user's file as text; ``join``: what is between the documents of a segment."""

    documents: Sequence[Document]
    segments: Sequence[Segment]
    join: str

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        """All segments in a row."""
        return np.concatenate([segment.tokens for segment in self.segments])

    @property
    def scored(self) -> npt.NDArray[np.bool_]:
        """Which of them are scored."""
        return np.concatenate([segment.scored for segment in self.segments])

    @property
    def categories(self) -> dict[str, int]:
        """Documents of each category; empty where the file has none."""
        counts = Counter(document.category for document in self.documents)
        return {} if set(counts) == {""} else dict(counts)


def prepare(corpus: str, base: Path, data: File, needs: Mapping[str, int], out: Path) -> None:
    """Write the documents, tokens and segments of a file into ``out``.

    ``needs``: tokens of the split, or ``windows`` of ``window`` tokens. Raises InputError where it has fewer, and for
    the first record that can't be used.
    """
    text, split = read(corpus, base, data), data["split"]
    check_windows(text, base, data, needs)
    check_count(corpus, split, len(text.tokens), needs)
    documents: list[Row] = [
        {"split": split, "document": number, "text": document.text, "category": document.category}
        for number, document in enumerate(text.documents)
    ]
    segments = [
        {"split": split, "segment": number, "tokens": len(segment.tokens), "category": segment.category}
        for number, segment in enumerate(text.segments)
    ]
    tokens = {name: text.tokens if name == split else np.empty(0, dtype=np.int32) for name in SPLITS}
    with writing(out) as folder:
        DOCUMENTS.validate(pd.DataFrame(documents)).to_parquet(folder / "documents.parquet", index=False)
        SEGMENTS.validate(pd.DataFrame(segments)).to_parquet(folder / "segments.parquet", index=False)
        save_file({**tokens, "scored": text.scored}, folder / "tokens.safetensors")
        write_manifest(
            folder,
            corpus=corpus,
            source=data,
            repository=None,
            join=text.join,
            sha256=digest(documents),
            score=data["score"],
            categories=text.categories,
            tokens={name: len(ids) for name, ids in tokens.items()},
            documents={name: len(documents) if name == split else 0 for name in SPLITS},
        )


def read(corpus: str, base: Path, data: File) -> OwnText:
    """Read a file as text of the base model. Raises InputError for the first record that can't be."""
    path = Path(data["path"])
    records = read_records(path)
    tokenizer = tokenizer_of(base)
    documents = _documents(path, base, data, records, _leading(base, tokenizer))
    segments = [segment for segment in _segments(tokenizer, documents) if len(segment.tokens)]
    if not segments:
        raise InputError(f"{path}: the base model's tokenizer makes no token of it")
    check_ids(corpus, base, max(int(segment.tokens.max()) for segment in segments))
    join = "" if all(document.is_conversation for document in documents) else JOIN
    return OwnText(documents, segments, join)


def check_windows(text: OwnText, base: Path, data: File, needs: Mapping[str, int]) -> None:
    """Raise InputError where fewer windows have a scored token than ``needs`` says."""
    if "windows" not in needs:
        return
    leading, window, wanted = len(_leading_ids(base)), needs["window"], needs["windows"]
    windows = sum(segment.windows(window - leading, 0 if leading else 1) for segment in text.segments)
    if windows < wanted:
        whose = " of the assistant's" if data["score"] == "assistant" else ""
        raise InputError(
            f"{data['path']}: its {int(text.scored.sum())} tokens{whose} are in {windows} windows of {window} tokens, "
            f"but {wanted} are needed: add text, or lower evaluate.windows or evaluate.window"
        )


def _leading_ids(base: Path) -> list[int]:
    ids: list[int] = read_manifest(base)["leading"] if (base / MANIFEST).is_file() else []
    return ids


def _leading(base: Path, tokenizer: Tokenizer) -> str:
    """Return the special tokens that every window begins with, as text."""
    return "".join(tokenizer.id_to_token(token) or "" for token in _leading_ids(base))


def _documents(path: Path, base: Path, data: File, records: Sequence[Record], leading: str) -> list[Document]:
    unit = "row" if path.suffix == ".parquet" else "line"
    only_assistant = data["score"] == "assistant"
    chat: Chat | None = None
    documents = []
    for record in records:
        where = f"{path}, {unit} {record.line}"
        if not record.messages:
            if only_assistant:
                raise InputError(f"{where}: score: assistant needs messages, and this is text")
            documents.append(Document(record.text, record.category))
            continue
        try:
            chat = chat or Chat.of(base)
            documents.append(_conversation(chat, record, only_assistant, leading))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    if only_assistant and not any(document.spans for document in documents):
        raise InputError(f"{path}: no message is the assistant's, so that score: assistant leaves nothing")
    return documents


def _conversation(chat: Chat, record: Record, only_assistant: bool, leading: str) -> Document:
    if only_assistant:
        rendered = chat.render_scored(record.messages, record.tools)
    else:
        rendered = Rendered(chat.render(record.messages, record.tools), [])
    # Windows begin with what the tokenizer puts in front of a text; a template writes it, too.
    cut = len(leading) if rendered.text.startswith(leading) else 0
    text = rendered.text[cut:]
    if not text.strip():
        raise InputError("the chat template makes an empty text of it")
    spans = [(max(begin - cut, 0), end - cut) for begin, end in rendered.spans] if only_assistant else None
    return Document(text, record.category, is_conversation=True, spans=spans)


def _segments(tokenizer: Tokenizer, documents: Sequence[Document]) -> Iterator[Segment]:
    """Yield the segments category by category, in the order in which the categories first come."""
    for category in dict.fromkeys(document.category for document in documents):
        members = [document for document in documents if document.category == category]
        plain = [document.text for document in members if not document.is_conversation]
        if plain:
            yield _segment(tokenizer, Document(JOIN.join(plain), category))
        for document in members:
            if document.is_conversation:
                yield _segment(tokenizer, document)


def _segment(tokenizer: Tokenizer, document: Document) -> Segment:
    encoded = tokenizer.encode(document.text, add_special_tokens=False)
    begins, ends = np.array(encoded.offsets, dtype=np.int64).reshape(-1, 2).T
    scored = np.full(len(begins), document.spans is None)
    for begin, end in document.spans or []:
        scored |= (ends > begin) & (begins < end)
    return Segment(np.array(encoded.ids, dtype=np.int32), scored, document.category)
