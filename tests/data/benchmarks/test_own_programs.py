"""Problems of a user's file: what is read of them, and what passes in the sandbox."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest

from hemorrhage.data.benchmarks import own_programs
from hemorrhage.evaluate.code_tasks import program_of
from hemorrhage.evaluate.code_tasks_schema import PROBLEMS
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.runtime.step import InputError
from hemorrhage.sandbox import runner as sandbox
from tests.chats import write_jsonl

needs_sandbox = pytest.mark.skipif(sandbox.missing() is not None, reason=str(sandbox.missing()))

ADD: dict[str, object] = {
    "prompt": "# The sum\ndef add(a, b):\n",
    "prefix": "def add(a, b):\n",
    "tests": "import math\ncases = [(1, 2)]\nfor a, b in cases:\n    assert math.isclose(add(a, b), sum([a, b]))",
}
ORDER: dict[str, object] = {"prompt": "As JSON:", "checker": "import json\nassert json.loads(answer)['id'] == 17"}


@pytest.fixture
def problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """What the step writes of a program and a checked text."""
    file = write_jsonl(tmp_path / "mine.jsonl", [ADD, ORDER])
    options = ["--task", "mine", "--file", str(file), "--stop", '["\\n\\n"]']
    monkeypatch.setattr(sys, "argv", ["own_programs", str(tmp_path / "out"), *options])
    own_programs.main()
    return PROBLEMS.validate(pd.read_parquet(tmp_path / "out" / "items.parquet"))


def test_tests_ask_for_what_nothing_in_them_defines(problems: pd.DataFrame, tmp_path: Path) -> None:
    assert problems["asked"].map(list).tolist() == [["add"], ["answer"]]
    assert problems["prompt"].tolist() == [ADD["prompt"], ORDER["prompt"]]
    manifest = read_manifest(tmp_path / "out")
    assert (manifest["items"], manifest["stop"], manifest["shots"], manifest["chance"]) == (2, ["\n\n"], 0, 0.0)


def test_a_file_of_checkers_alone_has_texts_in_every_column(tmp_path: Path) -> None:
    own_programs.prepare("mine", write_jsonl(tmp_path / "mine.jsonl", [ORDER]), [], tmp_path / "out")
    PROBLEMS.validate(pd.read_parquet(tmp_path / "out" / "items.parquet"))


@needs_sandbox
@pytest.mark.parametrize(
    ("place", "completion", "status"),
    [
        (0, "    return a + b\n", "passed"),
        (0, "    return a - b\n", "failed"),
        (1, '{"id": 17}', "passed"),
        (1, '{"id": 18}', "failed"),
        (1, 'answer = {"id": 17}\n"""', "error"),
    ],
)
def test_what_passes_is_what_the_tests_say(problems: pd.DataFrame, place: int, completion: str, status: str) -> None:
    problem = problems.iloc[place]
    checks = sandbox.Checks(problem["tests"], tuple(problem["asked"]), problem["given"])
    assert sandbox.run(program_of(problem["prefix"], completion), 10, 512, checks).status == status


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        ({"tests": "assert f(1)"}, "prompt: missing; a problem has prompt, and tests or checker"),
        ({"prompt": "a"}, "it needs either tests or checker"),
        ({**ADD, "checker": "assert answer"}, "it needs either tests or checker, not both"),
        ({"prompt": "a", "tests": "assert f(1"}, "tests: it is not Python"),
        ({"prompt": "a", "tests": "assert sum([1]) == 1"}, "tests: they use nothing that a program could define"),
        ({"prompt": "a", "checker": "assert True"}, "checker: it does not read answer"),
        ({"prompt": "a", "checker": "assert answer", "prefix": "b"}, "prefix: stands before a program"),
        ({**ADD, "prefix": 3}, "prefix: must be a text"),
        ({**ADD, "tests": ""}, "tests: must be a text that says something"),
    ],
)
def test_what_cannot_be_posed_is_named_by_file_line_and_key(
    tmp_path: Path, problem: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError) as caught:
        own_programs.read_problems(write_jsonl(tmp_path / "mine.jsonl", [ADD, problem]))
    assert str(caught.value).startswith(f"{tmp_path}/mine.jsonl, line 2: {said}")
