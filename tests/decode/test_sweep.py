"""The sweep: it goes on behind its last batch, and refuses before it generates."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors.numpy import load_file

from hemorrhage.decode import sweep
from hemorrhage.runtime.artifact import write_manifest
from tests.decode.sweeps import run
from tests.families import build


def test_a_killed_job_goes_on_with_the_next_batch(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole", folders, monkeypatch)
    out = tmp_path / "out"
    rows = sweep._ReadBatch.rows
    made: list[tuple[str, str, int]] = []

    def killed(desk: Any, group: Any) -> Any:
        if len(made) == 7:
            raise KeyboardInterrupt
        made.append((group[0].name, desk.batch.task, desk.batch.number))
        return rows(desk, group)

    monkeypatch.setattr(sweep._ReadBatch, "rows", killed)
    with pytest.raises(KeyboardInterrupt):
        run(out, folders, monkeypatch)
    assert not out.exists()
    # Greedy search and the sampler run together, so four groups have two strategies; and what people wrote behind the
    # prompts of two open batches.
    assert len(list(sweep.resume_directory(out).iterdir())) == 7 + 4 + 2

    def counted(desk: Any, group: Any) -> Any:
        made.append((group[0].name, desk.batch.task, desk.batch.number))
        return rows(desk, group)

    monkeypatch.setattr(sweep._ReadBatch, "rows", counted)
    run(out, folders, monkeypatch)
    assert len(made) == len(set(made)) == 2 * (2 + 2)
    resumed, whole = (pd.read_parquet(tmp_path / name / "generations.parquet") for name in ("out", "whole"))
    pd.testing.assert_frame_equal(resumed.drop(columns="seconds"), whole.drop(columns="seconds"))
    resumed, whole = (pd.read_parquet(tmp_path / name / "human.parquet") for name in ("out", "whole"))
    pd.testing.assert_frame_equal(resumed, whole)
    resumed, whole = (load_file(tmp_path / name / "features.safetensors") for name in ("out", "whole"))
    assert resumed.keys() == whole.keys()
    assert all((resumed[name] == whole[name]).all() for name in whole)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"closed_ended": [{"task": "agreement", "items": 50, "new_tokens": 4}]}, "closed_ended.items: 50 wanted"),
        (
            {"open_ended": [{"task": "stories", "items": 9, "prefix": 6, "new_tokens": 10}]},
            "has 8 evaluation documents of at least",
        ),
        ({"chat": True}, "no chat template"),
        ({"closed_ended": [{"task": "agreement", "items": 5, "new_tokens": 600}]}, "exceed the model's context of 512"),
        ({"strategies": {"k": {"strategy": "top_k", "k": 0}}}, "greater than or equal to 1"),
        ({"strategies": {"b": {"strategy": "top_k", "k": 10**6}}}, "strategies.b: k: 1000000 is more than the vocab"),
        ({"strategies": {"b": {"strategy": "assisted", "layers": 99}}}, "strategies.b: layers: 99, between 1 and"),
        ({"strategies": {"k": {"k": 3}}}, "strategies.k: the key strategy is missing"),
    ],
)
def test_impossible_specs_are_refused_before_generation(
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    reason: str,
) -> None:
    monkeypatch.setattr(sweep, "_ReadBatch", None)
    assert reason in run(tmp_path / "out", folders, monkeypatch, **changes)["failure"]


def test_an_empty_prompt_is_refused(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tmp_path / "task"
    shutil.copytree(folders["closed_ended"], task)
    items = pd.read_parquet(task / "items.parquet").assign(prompt=" ")
    items.to_parquet(task / "items.parquet")
    manifest = run(tmp_path / "out", {**folders, "closed_ended": task}, monkeypatch)
    assert "has an empty prompt" in manifest["failure"]


def test_a_strategy_that_does_not_go_with_a_model_is_a_gap_and_the_others_are_whole(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = build(tmp_path / "gpt2", "gpt2")
    write_manifest(base, variant="base")
    strategies = {"greedy": {"strategy": "greedy"}, "drafted": {"strategy": "assisted"}, "fsd": {"strategy": "fsd"}}
    given = {**folders, "base": base, "checkpoint": base}
    manifest = run(tmp_path / "out", given, monkeypatch, strategies=strategies)
    assert manifest["gaps"] == {
        "drafted": "a draft is made by the first blocks, and GPT2LMHeadModel always runs all of them"
    }
    rows = pd.read_parquet(tmp_path / "out" / "generations.parquet")
    assert rows.groupby("strategy").size().to_dict() == {"greedy": 7, "fsd": 7}
    alone = run(tmp_path / "alone", given, monkeypatch, strategies={"drafted": {"strategy": "assisted"}})
    assert "strategies.drafted: a draft is made by the first blocks" in alone["failure"]
