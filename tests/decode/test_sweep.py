"""The sweep: it goes on behind its last batch, and refuses before it generates."""

from __future__ import annotations

import json
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


def texts_of(out: Path) -> pd.DataFrame:
    rows = pd.read_parquet(out / "generations.parquet")
    return rows.assign(tokens=rows.tokens.map(tuple))


WARM = {"strategy": "sample", "temperature": 1.3}


def test_samplers_draw_several_texts_of_a_prompt_and_independently_of_one_another(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategies = {"greedy": {"strategy": "greedy"}, "one": WARM, "two": WARM}
    manifest = run(tmp_path / "out", folders, monkeypatch, strategies=strategies, draws=3)
    rows = texts_of(tmp_path / "out")
    assert rows.groupby("strategy").draw.unique().map(sorted).to_dict() == {
        "greedy": [0],
        "one": [0, 1, 2],
        "two": [0, 1, 2],
    }
    assert not rows.duplicated(["strategy", "dataset", "item", "draw"]).any()
    opened = rows[rows.dataset == "stories"]
    assert opened.groupby("item").size().eq(1 + 3 + 3).all()
    counted = {"texts": len(opened), "distinct": len(opened[["item", "tokens"]].drop_duplicates())}
    assert manifest["distinct"]["stories"] == counted
    # Two strategies that shared their draws would have three texts at most; two of six may be alike by chance.
    assert opened[opened.strategy != "greedy"].groupby("item").tokens.nunique().gt(3).all()


def test_common_random_numbers_are_a_setting(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategies = {"one": WARM, "two": WARM, "own": {**WARM, "seed": 3}}
    run(tmp_path / "out", folders, monkeypatch, strategies=strategies, random_numbers="common")
    one, two, own = (texts.tokens.tolist() for _, texts in texts_of(tmp_path / "out").groupby("strategy", sort=False))
    assert one == two != own


def test_a_stop_string_of_a_strategy_ends_its_texts_alone(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedily = {"strategy": "sample", "temperature": 0}
    strategies = {"greedy": {"strategy": "greedy"}, "stopped": {**greedily, "stop": ["e"]}}
    opened = [{"task": "stories", "items": 3, "prefix": 6, "new_tokens": 12}]
    run(tmp_path / "out", folders, monkeypatch, strategies=strategies, open_ended=opened)
    rows = texts_of(tmp_path / "out").query("dataset == 'stories'").set_index("item")
    free, stopped = (rows[rows.strategy == name] for name in strategies)
    assert free.text.str.contains("e").all()
    assert stopped.finish.eq("stop").all()
    for item, row in stopped.iterrows():
        assert free.tokens[item][: len(row.tokens)] == row.tokens
        assert "e" in row.text
        assert len(row.tokens) < 12


def test_a_variant_is_decoded_as_its_base_is_shipped(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, variant = tmp_path / "base", tmp_path / "variant"
    for folder in (base, variant):
        shutil.copytree(folders["base"], folder)
        for name in ("generation_config.json", "manifest.json"):
            (folder / name).unlink(missing_ok=True)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "do_sample": True, "temperature": 0.5}
    (base / "generation_config.json").write_text(json.dumps(ids))
    for folder in (base, variant):
        write_manifest(folder, variant=folder.name)
    given = {**folders, "base": base, "checkpoint": variant}
    run(tmp_path / "out", given, monkeypatch, strategies={"shipped": {"strategy": "as_shipped"}}, draws=2)
    rows = texts_of(tmp_path / "out")
    said = json.loads(rows.settings[0])
    assert said["label"] == "as shipped: do_sample True, temperature 0.5"
    assert sorted(rows.draw.unique()) == [0, 1]
