"""Code tasks: greedy completions, and the step as it is run."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from hemorrhage.data.benchmarks import code_tasks as data
from hemorrhage.data.source import Embedded
from hemorrhage.decode.generation import masks_padding
from hemorrhage.decode.prompts import Prompt
from hemorrhage.decode.stops import before_stop
from hemorrhage.decode.sweep import resume_directory
from hemorrhage.evaluate import code_tasks
from hemorrhage.evaluate.code_tasks_schema import PROGRAMS
from hemorrhage.models.checkpoint import load, load_tokenizer
from hemorrhage.runtime.artifact import read_manifest, write_manifest
from hemorrhage.sandbox import runner as sandbox

EMBEDDED: Embedded = {"source": "embedded"}


needs_sandbox = pytest.mark.skipif(sandbox.missing() is not None, reason=str(sandbox.missing()))


SPEC: dict[str, Any] = {
    "tasks": ["humaneval"],
    "items": 5,
    "new_tokens": 12,
    "seconds": 5,
    "memory_mb": 256,
    "batch": 2,
    "seed": 3,
}


@pytest.fixture(scope="module")
def humaneval(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HumanEval's problems with short prompts, which fit the tiny model."""
    out = tmp_path_factory.mktemp("benchmarks") / "humaneval" / "address"
    data.prepare("humaneval", EMBEDDED, out)
    problems = pd.read_parquet(out / "items.parquet")
    problems[problems.prompt.str.len() < 200].to_parquet(out / "items.parquet", index=False)
    return out


@pytest.fixture(scope="module")
def base(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "base"
    shutil.copytree(tiny, folder)
    write_manifest(folder, variant="base")
    return folder


def run(out: Path, base: Path, benchmark: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> dict[str, Any]:
    options = ["--variant", "base", "--checkpoint", base, "--base", base, "--benchmarks", benchmark]
    spec = json.dumps({**SPEC, **changes})
    monkeypatch.setattr(sys, "argv", ["code_tasks", *map(str, [out, *options]), "--spec", spec])
    code_tasks.main()
    return read_manifest(out)


def literal(model: Any, tokenizer: Any, tokens: list[int], new_tokens: int, stops: list[str]) -> str:
    """A completion one token after the other, without cache, batch or padding."""
    written: list[int] = []
    before = tokenizer.decode(tokens)
    while len(written) < new_tokens:
        with torch.no_grad():
            logits = model(torch.tensor([tokens + written])).logits[0, -1]
        written.append(int(logits.argmax()))
        if written[-1] == tokenizer.eos_token_id:
            written.pop()
            break
    text: str = tokenizer.decode(tokens + written).removeprefix(before)
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]


@pytest.mark.parametrize("stopped", [0, 2, 4])
def test_completions_are_greedy_and_end_before_a_stop(base: Path, stopped: int) -> None:
    """With stops that come early in the first ``stopped`` of four texts."""
    model, tokenizer = load(base), load_tokenizer(base)
    beginnings = ["Once upon a time", "Tom and Lily went to the park. They", "The", "A dog saw a cat. It said:"]
    prompts = [Prompt(number, text, tokenizer(text)["input_ids"]) for number, text in enumerate(beginnings)]
    free = [literal(model, tokenizer, prompt.tokens, 24, []) for prompt in prompts]
    stops = [text[place : place + 4] for place, text in enumerate(free[:stopped], start=6)] or ["nothing"]
    assert masks_padding(model)
    read: list[int] = []
    model.register_forward_pre_hook(lambda *_: read.append(1))
    found = code_tasks.complete(model, tokenizer, prompts, 24, stops)
    steps = len(read)
    assert found == [literal(model, tokenizer, prompt.tokens, 24, stops) for prompt in prompts]
    assert all(stop not in text for stop in stops for text in found)
    assert [
        text for [text] in (code_tasks.complete(model, tokenizer, [prompt], 24, stops) for prompt in prompts)
    ] == found
    assert (found == free) == (not stopped)
    # Who stops early saves the steps: the batch runs as long as its longest row.
    assert steps < 24 if stopped == 4 else steps <= 24


def test_text_ends_where_the_first_stop_begins() -> None:
    assert before_stop("a\ndef b\nclass", ["\nclass", "\ndef"]) == "a"
    assert before_stop("[DONE]", ["[DONE]"]) == ""
    assert before_stop("a\nde", ["\ndef"]) == "a\nde"


def test_the_seed_draws_the_problems(humaneval: Path) -> None:
    every = code_tasks.draw_problems(humaneval, "all", 0)
    five, again, other = (list(code_tasks.draw_problems(humaneval, 5, seed).item) for seed in (0, 0, 1))
    assert five == again == sorted(five)
    assert five != other
    assert set(five) < set(every.item)
    with pytest.raises(ValueError, match="items: 1000 wanted"):
        code_tasks.draw_problems(humaneval, 1000, 0)


@needs_sandbox
def test_the_step_writes_what_became_of_every_program(
    base: Path, humaneval: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = run(tmp_path / "out", base, humaneval, monkeypatch)
    rows = PROGRAMS.validate(pd.read_parquet(tmp_path / "out" / "programs.parquet"))
    assert "failure" not in manifest
    assert manifest["variant"] == "base"
    told = manifest["tasks"]["humaneval"]
    assert (told["chance"], told["sha256"]) == (0.0, read_manifest(humaneval)["sha256"])
    for part in ("pass@1 greedy", "items=5/164 seed=3", "shots=0", "new_tokens=12", "batch=2", "memory_mb=256"):
        assert part in told["protocol"]
    drawn = code_tasks.draw_problems(humaneval, 5, 3)
    assert list(rows.item) == list(drawn.item)
    # A model of children's stories writes no program.
    assert not rows.correct.any()
    assert set(rows.status) <= {"error", "failed"}
    assert (rows.detail != "").all()
    model, tokenizer = load(base), load_tokenizer(base)
    for row, problem in zip(rows.itertuples(), drawn.itertuples(), strict=True):
        tokens = tokenizer(problem.prompt)["input_ids"]
        assert row.completion == literal(model, tokenizer, tokens, 12, read_manifest(humaneval)["stop"])
    assert not resume_directory(tmp_path / "out").exists()


@needs_sandbox
def test_a_right_completion_is_correct(
    base: Path, humaneval: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solutions = code_tasks.draw_problems(humaneval, "all", 0).set_index("item").solution

    def solved(model: Any, tokenizer: Any, prompts: Any, new_tokens: int, stops: Any) -> list[str]:
        return [solutions[prompt.item] if prompt.item % 2 else "\n    pass" for prompt in prompts]

    monkeypatch.setattr(code_tasks, "complete", solved)
    run(tmp_path / "out", base, humaneval, monkeypatch)
    rows = pd.read_parquet(tmp_path / "out" / "programs.parquet")
    assert list(rows.correct) == list(rows.item % 2 == 1) == list(rows.status == "passed")
    assert 0 < rows.correct.sum() < 5


@needs_sandbox
def test_a_killed_job_goes_on_with_the_next_batch(
    base: Path, humaneval: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole", base, humaneval, monkeypatch)
    out, rows = tmp_path / "out", code_tasks._rows
    made: list[int] = []

    def killed(batch: Any, *rest: Any) -> Any:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(batch.number)
        return rows(batch, *rest)

    monkeypatch.setattr(code_tasks, "_rows", killed)
    with pytest.raises(KeyboardInterrupt):
        run(out, base, humaneval, monkeypatch)
    assert not out.exists()
    assert len(list(resume_directory(out).iterdir())) == 2

    def counted(batch: Any, *rest: Any) -> Any:
        made.append(batch.number)
        return rows(batch, *rest)

    monkeypatch.setattr(code_tasks, "_rows", counted)
    run(out, base, humaneval, monkeypatch)
    assert made == [0, 1, 2]
    resumed, whole = (pd.read_parquet(tmp_path / name / "programs.parquet") for name in ("out", "whole"))
    clocks = ["seconds", "cpu_seconds"]
    pd.testing.assert_frame_equal(resumed.drop(columns=clocks), whole.drop(columns=clocks))


@needs_sandbox
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"items": 150}, "items: 150 wanted"),
        ({"new_tokens": 500}, "prompts of humaneval"),
    ],
)
def test_what_can_t_be_done_is_recorded(
    base: Path,
    humaneval: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    reason: str,
) -> None:
    monkeypatch.setattr(code_tasks, "complete", None)
    manifest = run(tmp_path / "out", base, humaneval, monkeypatch, **changes)
    assert reason in manifest["failure"]
    assert manifest["tasks"]["humaneval"]["protocol"]


@needs_sandbox
def test_a_broken_checkpoint_becomes_a_row_with_its_reason(
    base: Path, humaneval: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    write_manifest(broken, failure="ValueError: no weights")
    assert run(tmp_path / "out", broken, humaneval, monkeypatch)["failure"] == "not evaluated: ValueError: no weights"


@needs_sandbox
def test_benchmarks_are_those_of_the_spec(
    base: Path, humaneval: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="tasks: mbpp wanted, the benchmarks are humaneval"):
        run(tmp_path / "out", base, humaneval, monkeypatch, tasks=["mbpp"])


def test_without_a_sandbox_nothing_is_written(
    base: Path, humaneval: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "missing", lambda: "programs need bwrap")
    monkeypatch.setattr(code_tasks, "evaluate", None)
    with pytest.raises(SystemExit, match="programs need bwrap"):
        run(tmp_path / "out", base, humaneval, monkeypatch)
    assert list(tmp_path.iterdir()) == []


def test_a_sandbox_that_goes_away_is_no_failure_of_the_variant(
    base: Path, humaneval: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*given: Any) -> None:
        raise sandbox.UnavailableError("gone")

    monkeypatch.setattr(sandbox, "missing", lambda: None)
    monkeypatch.setattr(sandbox, "run", gone)
    with pytest.raises(SystemExit, match="gone"):
        run(tmp_path / "out", base, humaneval, monkeypatch)
    assert not (tmp_path / "out").exists()
