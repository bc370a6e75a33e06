"""Questions of a user's file: what is read of them, and one line for each that can't be asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from hemorrhage.data.tasks.questions import read_questions
from hemorrhage.runtime.step import InputError
from tests.chats import write_jsonl

CAPITAL = {"prompt": "The capital of Peru is", "choices": ["Lima", "Quito", "La Paz"], "answer": 0}


def read(tmp_path: Path, *rows: dict[str, object]) -> list[object]:
    return list(read_questions(write_jsonl(tmp_path / "mine.jsonl", rows)))


def test_a_space_is_between_prompt_and_choice_where_neither_has_any(tmp_path: Path) -> None:
    read_rows = read(
        tmp_path,
        {**CAPITAL, "id": 7},
        {"prompt": "A: ", "choices": ["yes", "no"], "answer": "no"},
        {"prompt": "2 + 2 =\n", "choices": ["4", "5"], "answer": 0},
        {"prompt": "Answer:", "choices": [" a", "\tb"], "answer": 1},
    )
    assert read_rows == [
        {"prompt": "The capital of Peru is", "choices": [" Lima", " Quito", " La Paz"], "answer": 0},
        {"prompt": "A:", "choices": [" yes", " no"], "answer": 1},
        {"prompt": "2 + 2 =", "choices": ["\n4", "\n5"], "answer": 0},
        {"prompt": "Answer:", "choices": [" a", "\tb"], "answer": 1},
    ]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"prompt": None}, "prompt: missing; a question has prompt, choices and answer"),
        ({"answer": None}, "answer: missing"),
        ({"prompt": " "}, "prompt: must be a text that says something"),
        ({"choices": ["Lima"]}, "choices: must be a list of 2 to 100 texts"),
        ({"choices": "Lima"}, "choices: must be a list of 2 to 100 texts"),
        ({"choices": ["Lima", 3]}, "choices.1: must be a text that says something"),
        ({"choices": ["Lima", " Lima"]}, "choices: two are the same"),
        ({"choices": ["Lima", "\ud800"]}, "choices.1: half of a surrogate pair"),
        ({"answer": 3}, "answer: must be the number of a choice, 0 to 2, or the text of one"),
        ({"answer": -1}, "answer: must be the number"),
        ({"answer": True}, "answer: must be the number"),
        ({"answer": "lima"}, "answer: must be the number"),
    ],
)
def test_what_cannot_be_asked_is_named_by_file_line_and_key(
    tmp_path: Path, changed: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, CAPITAL, {**CAPITAL, **changed})
    assert str(caught.value).startswith(f"{tmp_path}/mine.jsonl, line 2: {said}")


def test_a_file_that_is_no_list_of_questions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "mine.json").write_text("{}\n")
    for name, said in (("empty.jsonl", "it is empty"), ("mine.json", "is a .jsonl"), ("none.jsonl", "no such file")):
        with pytest.raises(InputError, match=said):
            read_questions(tmp_path / name)
