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


def encodable(where: str, text: str) -> str:
    """Return a text that can be written as UTF-8. Raises InputError, which names ``where``."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: half of a surrogate pair is in it, which is no character") from None
    return text
