"""Files of the user that hold a JSON object a line; every problem is one line that names the file and the line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from hemorrhage.runtime.step import InputError


def decoded(file: Path) -> str:
    """Return the text of a file in UTF-8, with or without a byte order mark. Raises InputError for another encoding."""
    content = file.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{file}: it is in UTF-16; save it as UTF-8")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{file}, line {line}: it is not in UTF-8; save the file as UTF-8") from None


def objects_of(file: Path, what: str, keys: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Yield the objects of a ``.jsonl`` as ``objects`` does; ``what``: what the file is of, in words.

    Raises InputError for another kind of file, and where there is none.
    """
    if file.suffix != ".jsonl":
        raise InputError(f"{file}: a file of {what} is a .jsonl: an object with {keys} on each line")
    if not file.is_file():
        raise InputError(f"{file}: there is no such file")
    yield from objects(file, keys)


def objects(file: Path, keys: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Yield the objects of a file of JSON lines with their lines, counted from 1; ``keys``: what each has, in words.

    Raises InputError for a line that is no object.
    """
    # Only a line feed ends a line: strings of JSON may hold other separators of Unicode.
    for line, content in enumerate(decoded(file).split("\n"), start=1):
        if not content.strip():
            continue
        try:
            parsed = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file}, line {line}: it is not JSON: {error}") from None
        if not isinstance(parsed, dict):
            raise InputError(f"{file}, line {line}: it is not a JSON object with {keys}")
        yield line, parsed


def text_of(where: str, key: str, value: object) -> str:
    """Return a text that says something. Raises InputError, which names ``where`` and ``key``."""
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: {key}: must be a text that says something (got {str(value)[:40]!r})")
    return encodable(f"{where}: {key}", value)


def encodable(where: str, text: str) -> str:
    """Return a text that can be written as UTF-8. Raises InputError, which names ``where``."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: half of a surrogate pair is in it, which is no character") from None
    return text
