"""A user's file as documents, tokens, scored tokens and segments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from hemorrhage.data.source import File
from hemorrhage.data.texts.__main__ import prepare
from hemorrhage.data.texts.file import Segment
from hemorrhage.data.texts.repositories import identity, reachable
from hemorrhage.runtime.artifact import read_manifest, write_manifest
from hemorrhage.runtime.step import InputError
from tests.chats import ANSWERS, QUESTIONS, conversation, with_template, write_jsonl


@pytest.fixture(scope="module")
def base(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = with_template(tiny, tmp_path_factory.mktemp("base") / "base")
    write_manifest(folder, leading=[1], vocabulary=512)
    return folder


def source(file: Path, score: str = "all", split: str = "evaluation") -> File:
    return File(source="file", path=str(file), split=split, score=score)  # type: ignore[typeddict-item]


def prepared(base: Path, data: File, out: Path, **needs: int) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    prepare("support", base, data, needs, out)
    return load_file(out / "tokens.safetensors"), pd.read_parquet(out / "segments.parquet")


def test_plain_texts_are_joined_by_category(base: Path, tmp_path: Path) -> None:
    rows = [{"text": f"{QUESTIONS[i % 4]} {i}", "category": "ab"[i % 2]} for i in range(6)]
    tokens, segments = prepared(base, source(write_jsonl(tmp_path / "a.jsonl", rows)), tmp_path / "out")
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    joined = ["\n\n".join(str(row["text"]) for row in rows if row["category"] == name) for name in "ab"]
    expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in joined]
    assert tokens["evaluation"].tolist() == expected[0] + expected[1]
    assert tokens["evaluation"].dtype == np.int32
    assert tokens["scored"].all()
    assert len(tokens["calibration"]) == 0
    assert segments["tokens"].tolist() == [len(ids) for ids in expected]
    assert segments["category"].tolist() == ["a", "b"]
    documents = pd.read_parquet(tmp_path / "out" / "documents.parquet")
    assert documents["text"].tolist() == [row["text"] for row in rows]
    manifest = read_manifest(tmp_path / "out")
    assert manifest["categories"] == {"a": 3, "b": 3}
    assert (manifest["join"], manifest["score"]) == ("\n\n", "all")
    assert manifest["tokens"] == {"calibration": 0, "evaluation": len(tokens["evaluation"])}


def test_of_a_conversation_the_assistants_tokens_are_scored(base: Path, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [conversation(number, turns=2) for number in range(3)])
    tokens, segments = prepared(base, source(file, "assistant"), tmp_path / "out")
    assert len(segments) == 3
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    ids, scored = tokens["evaluation"], tokens["scored"]
    first = slice(0, int(segments["tokens"][0]))
    # The window's own first token is not written twice.
    assert ids[0] != 1
    said = tokenizer.decode(ids[first][scored[first]].tolist(), skip_special_tokens=False)
    answers = [str(conversation(0, 2)["messages"][place]["content"]) for place in (1, 3)]  # type: ignore[index]
    assert said.split("</s>")[0].strip() == answers[0]
    assert said.split("</s>")[1].strip() == answers[1]
    assert said.count("</s>") == 2
    unsaid = tokenizer.decode(ids[first][~scored[first]].tolist(), skip_special_tokens=False)
    assert not any(answer in unsaid for answer in ANSWERS)
    assert "</s>" not in unsaid
    everything, _ = prepared(base, source(file), tmp_path / "all")
    assert everything["evaluation"].tolist() == ids.tolist()
    assert everything["scored"].all()


def test_a_calibration_file_is_the_other_split(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(" ".join(ANSWERS))
    tokens, _ = prepared(base, source(file, split="calibration"), tmp_path / "out", calibration=20)
    assert len(tokens["evaluation"]) == 0
    with pytest.raises(InputError, match=r"^corpus support: calibration has \d+ tokens, but 9999 are needed$"):
        prepared(base, source(file, split="calibration"), tmp_path / "more", calibration=9999)


def test_what_can_not_be_text_names_file_and_line(base: Path, tiny: Path, tmp_path: Path) -> None:
    plain = write_jsonl(tmp_path / "plain.jsonl", [conversation(0), {"text": "plain"}])
    with pytest.raises(InputError, match=r"plain\.jsonl, line 2: score: assistant needs messages, and this is text$"):
        prepared(base, source(plain, "assistant"), tmp_path / "out")
    with pytest.raises(InputError, match=r"plain\.jsonl, line 1: the base model has no chat template"):
        prepared(tiny, source(plain), tmp_path / "out")
    silent = write_jsonl(tmp_path / "silent.jsonl", [{"messages": [{"role": "user", "content": "hello"}]}])
    with pytest.raises(InputError, match=r"silent\.jsonl: no message is the assistant's"):
        prepared(base, source(silent, "assistant"), tmp_path / "out")
    raising = with_template(tiny, tmp_path / "raising", "{{ raise_exception('no') }}")
    with pytest.raises(InputError, match=r"silent\.jsonl, line 1: the chat template raises TemplateError: no$"):
        prepared(raising, source(silent), tmp_path / "out")
    talk = write_jsonl(tmp_path / "talk.jsonl", [conversation(number) for number in range(4)])
    with pytest.raises(InputError) as caught:
        prepared(base, source(talk, "assistant"), tmp_path / "out", windows=99, window=32)
    assert "tokens of the assistant's are in" in str(caught.value)
    assert "windows of 32 tokens, but 99 are needed: add text, or lower evaluate.windows" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_windows_are_counted_where_something_is_scored() -> None:
    scored = np.array([0, 0, 0, 0, 1, 0, 0, 0, 0, 1], dtype=bool)
    segment = Segment(np.zeros(10, dtype=np.int32), scored, "")
    assert segment.windows(4, 0) == 2
    # The first token of a window without one in front of it is not predicted.
    assert segment.windows(4, 1) == 1


def test_identity_is_the_content_and_how_it_is_read(tmp_path: Path) -> None:
    memory = tmp_path / "memory.json"
    files = [tmp_path / name for name in ("a.txt", "b.txt", "c.jsonl", "d.txt")]
    for file, content in zip(files, ("x", "x", "x", "y"), strict=True):
        file.write_text(content)
    same, other, lines, changed = (identity("support", source(file), memory) for file in files)
    assert same == other
    others = [
        lines,
        changed,
        *(identity("support", source(files[0], *how), memory) for how in (("assistant",), ("all", "calibration"))),
    ]
    assert all(same != each for each in others)
    assert str(tmp_path) not in str(same)
    assert reachable("support", source(files[0])) is None
    assert (
        reachable("support", source(files[2]))
        == f"{files[2]}, line 1: it is not JSON: Expecting value: line 1 column 1 (char 0)"
    )
