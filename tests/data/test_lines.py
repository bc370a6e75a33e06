"""JSON lines of the user: objects with their lines, and one line for what is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from hemorrhage.data.lines import encodable, objects
from hemorrhage.runtime.step import InputError


def test_lines_are_counted_from_one_and_empty_ones_are_passed(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes('\ufeff{"a": "\u2028"}\r\n\r\n{"b": 1}\n'.encode())
    assert list(objects(file, "a or b")) == [(1, {"a": "\u2028"}), (3, {"b": 1})]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": 1}\n[1]\n', "line 2: it is not a JSON object with a or b"),
        (b'{"a": 1}\n{"a"\n', "line 2: it is not JSON"),
        (b'{"a": 1}\n\xe9\n', "line 2: it is not in UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "it is in UTF-16"),
    ],
)
def test_what_is_no_object_is_named_by_its_line(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(content)
    with pytest.raises(InputError, match=said):
        list(objects(file, "a or b"))


def test_half_a_character_is_none() -> None:
    with pytest.raises(InputError, match=r"a.jsonl, line 3: half of a surrogate pair"):
        encodable("a.jsonl, line 3", "\ud800")
