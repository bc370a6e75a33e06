"""A user's file is read whole or refused in one line that names the file and the line."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from hemorrhage.data.texts.records import Record, problem, read_records
from tests.chats import conversation, write_jsonl

USER = {"role": "user", "content": "hello"}


def test_every_form_of_a_file_gives_its_records(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_bytes("\ufeffone\r\ntwo\u2028three\n".encode())
    assert read_records(text) == [Record(1, "one\ntwo\u2028three\n")]
    lines = tmp_path / "a.jsonl"
    lines.write_text(
        '{"text": "one\u2028two", "category": 7}\n\n{"messages": [' + json.dumps(USER) + '], "category": "a b"}'
    )
    first, second = read_records(lines)
    assert first == Record(1, "one\u2028two", category="7")
    assert (second.line, second.messages, second.category) == (3, (USER,), "a b")
    rows = [{"text": None, "messages": conversation(0)["messages"]}, {"text": "plain", "messages": None}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    first, second = read_records(tmp_path / "a.parquet")
    assert first.messages == tuple(conversation(0)["messages"])  # type: ignore[arg-type]
    assert second == Record(2, "plain")


def test_contents_in_parts_and_calls_of_tools_are_read(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    answer = {"role": "tool", "content": "4"}
    tools = [{"type": "function", "function": {"name": "f"}}]
    file = write_jsonl(
        tmp_path / "a.jsonl", [{"messages": [{"role": "user", "content": parts}, call, answer], "tools": tools}]
    )
    (record,) = read_records(file)
    assert record.messages == (USER, {**call, "content": ""}, answer)
    assert record.tools == tuple(tools)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "it is not JSON: Expecting property name"),
        ("[" * 100_000, "it is not JSON: maximum recursion"),
        ('["text"]', "it is not a JSON object with text or messages"),
        ('{"content": "x"}', "it needs either text or messages"),
        ('{"text": "x", "messages": []}', "it needs either text or messages, not both"),
        ('{"text": 3}', "text is not a string"),
        ('{"text": " \\n"}', "text is empty"),
        ('{"text": "\\ud800"}', "half of a surrogate pair is in it"),
        ('{"messages": "x"}', "messages is not a list of objects"),
        ('{"messages": []}', "messages is empty"),
        ('{"messages": [{"role": "user", "content": " "}]}', "no message says anything"),
        ('{"messages": [{"role": "human", "content": "x"}]}', "message 1: role 'human' is unknown; allowed: system, "),
        ('{"messages": [{"role": "user"}]}', "message 1: it has no content"),
        (
            '{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
            "message 1: content of type 'image_url' is not read; allowed: text",
        ),
        ('{"text": "x", "category": ["a"]}', "category is not a string"),
        ('{"text": "x", "category": "a]b"}', "category 'a]b': allowed are 1 to 60 printable characters without"),
        ('{"text": "x"}', "it has no category, and others have one"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_a_line_with_file_and_number(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "fine", "category": "a"}\n' + line + "\n", encoding="utf-8")
    reason = problem(file)
    assert reason is not None
    assert reason.startswith(f"{file}, line 2: {message}")
    assert "\n" not in reason


def test_what_is_wrong_with_a_whole_file(tmp_path: Path) -> None:
    assert problem(tmp_path / "a.csv") == f"{tmp_path}/a.csv: a file of texts is one of .txt, .jsonl, .parquet"
    assert problem(tmp_path / "a.txt") == f"{tmp_path}/a.txt: there is no such file"
    for name, content, message in (
        ("empty.txt", b" \n", ": it is empty: no text is in it"),
        ("empty.jsonl", b"\n", ": it is empty: no text is in it"),
        ("latin.txt", b"one\ncaf\xe9\n", ", line 2: it is not in UTF-8; save the file as UTF-8"),
        ("wide.jsonl", '{"text": "x"}'.encode("utf-16"), ": it is in UTF-16; save it as UTF-8"),
        ("a.parquet", b"PAR1 not really", ": it can't be read as Parquet: "),
    ):
        (tmp_path / name).write_bytes(content)
        assert (problem(tmp_path / name) or "").startswith(f"{tmp_path / name}{message}")
    parquet.write_table(pa.table({"body": ["x"]}), tmp_path / "b.parquet")
    assert problem(tmp_path / "b.parquet") == f"{tmp_path}/b.parquet: it has no column text or messages"
    parquet.write_table(pa.table({"text": ["x", ""]}), tmp_path / "c.parquet")
    assert problem(tmp_path / "c.parquet") == f"{tmp_path}/c.parquet, row 2: text is empty"
    many = write_jsonl(tmp_path / "many.jsonl", [{"text": "x", "category": f"id {i}"} for i in range(51)])
    assert problem(many) == f"{many}: it has 51 categories; allowed are 50"
