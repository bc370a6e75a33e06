"""Records of a user's file of texts: read, and checked completely, before any work.

- ``.txt``: the whole file is one text.
- ``.jsonl``: a JSON object a line; ``.parquet``: a row. Each has ``text``, or ``messages`` as OpenAI's chat API takes
  them (and ``tools``, where the template is to name some), and, in all records or none, ``category``.

Every problem is one line that names the file and the line (of Parquet the row).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hemorrhage.data.lines import decoded, encodable, objects
from hemorrhage.runtime.step import InputError

SUFFIXES = (".txt", ".jsonl", ".parquet")

ROLES = ("system", "developer", "user", "assistant", "tool")

MOST_CATEGORIES = 50
"""More are no kinds of text but an identifier of each."""

LONGEST_CATEGORY = 60
RESERVED = "[]{}"
"""Characters that separate the parts of a metric's name, in which the category is."""

Message = Mapping[str, object]
"""A message as a chat template reads it: ``role``, ``content`` and what else the API knows."""


@dataclass(frozen=True)
class Record:
    """A text, or a conversation with the tools that it names; ``line`` counts from 1, an empty ``category`` is none."""

    line: int
    text: str = ""
    messages: tuple[Message, ...] = ()
    tools: tuple[Mapping[str, object], ...] = ()
    category: str = ""


def problem(file: Path) -> str | None:
    """Say in one line what is wrong with a file of texts; None where nothing is."""
    try:
        read_records(file)
    except InputError as error:
        return str(error)
    return None


def read_records(file: Path) -> list[Record]:
    """Read all records of a file. Raises InputError for the first that can't be used."""
    if file.suffix not in SUFFIXES:
        raise InputError(f"{file}: a file of texts is one of {', '.join(SUFFIXES)}")
    if not file.is_file():
        raise InputError(f"{file}: there is no such file")
    if file.suffix == ".txt":
        text = decoded(file)
        records = [Record(1, text)] if text.strip() else []
    else:
        unit = "row" if file.suffix == ".parquet" else "line"
        rows = _rows(file) if file.suffix == ".parquet" else objects(file, "text or messages")
        records = [_record(f"{file}, {unit} {line}", line, content) for line, content in rows]
        _check_categories(file, unit, records)
    if not records:
        raise InputError(f"{file}: it is empty: no text is in it")
    return records


def _rows(file: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as table:
            columns = [name for name in ("text", "messages", "tools", "category") if name in table.schema_arrow.names]
            if not {"text", "messages"} & set(columns):
                raise InputError(f"{file}: it has no column text or messages")
            line = 0
            for batch in table.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    line += 1
                    yield line, row
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file}: it can't be read as Parquet: {' '.join(str(error).split())}") from None


def _record(where: str, line: int, content: Mapping[str, object]) -> Record:
    text, messages = content.get("text"), content.get("messages")
    if (text is None) == (messages is None):
        raise InputError(f"{where}: it needs either text or messages{', not both' if text is not None else ''}")
    category = _category(where, content.get("category"))
    if text is not None:
        if not isinstance(text, str):
            raise InputError(f"{where}: text is not a string")
        if not text.strip():
            raise InputError(f"{where}: text is empty")
        return Record(line, encodable(where, text.replace("\r\n", "\n")), category=category)
    tools = _mappings(where, "tools", content.get("tools") or [])
    return Record(line, messages=_messages(where, messages), tools=tuple(tools), category=category)


def _messages(where: str, content: object) -> tuple[Message, ...]:
    messages = tuple(
        _message(f"{where}: message {number}", each)
        for number, each in enumerate(_mappings(where, "messages", content), start=1)
    )
    if not messages:
        raise InputError(f"{where}: messages is empty")
    if not any(str(message["content"]).strip() for message in messages):
        raise InputError(f"{where}: no message says anything")
    return messages


def _message(where: str, message: Mapping[str, object]) -> Message:
    role, calls = message.get("role"), message.get("tool_calls")
    if role not in ROLES:
        raise InputError(f"{where}: role {role!r} is unknown; allowed: {', '.join(ROLES)}")
    content = message.get("content")
    if content is None and not (role == "assistant" and calls):
        raise InputError(f"{where}: it has no content")
    # Parquet gives every message the fields of all.
    rest = {key: value for key, value in message.items() if value is not None}
    return {**rest, "role": role, "content": encodable(where, _content(where, content))}


def _content(where: str, content: object) -> str:
    """Return the text of a message, which may be in parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content.replace("\r\n", "\n")
    texts = []
    for part in _mappings(where, "content", content):
        text = part.get("text")
        if part.get("type") != "text" or not isinstance(text, str):
            raise InputError(f"{where}: content of type {part.get('type')!r} is not read; allowed: text")
        texts.append(text.replace("\r\n", "\n"))
    return "".join(texts)


def _mappings(where: str, key: str, content: object) -> Sequence[Mapping[str, object]]:
    if not isinstance(content, list) or not all(isinstance(each, dict) for each in content):
        raise InputError(f"{where}: {key} is not a list of objects")
    return content


def _category(where: str, category: object) -> str:
    if category is None:
        return ""
    if not isinstance(category, str | int):
        raise InputError(f"{where}: category is not a string")
    name = encodable(where, str(category).strip())
    if not name or len(name) > LONGEST_CATEGORY or not name.isprintable() or set(name) & set(RESERVED):
        raise InputError(
            f"{where}: category {name[:LONGEST_CATEGORY]!r}: allowed are 1 to {LONGEST_CATEGORY} printable characters "
            f"without {' '.join(RESERVED)}"
        )
    return name


def _check_categories(file: Path, unit: str, records: Sequence[Record]) -> None:
    names = {record.category for record in records}
    if len(names) > 1 and "" in names:
        lacking = next(record for record in records if not record.category)
        raise InputError(
            f"{file}, {unit} {lacking.line}: it has no category, and others have one: give each one or none"
        )
    if len(names) > MOST_CATEGORIES:
        raise InputError(f"{file}: it has {len(names)} categories; allowed are {MOST_CATEGORIES}")
