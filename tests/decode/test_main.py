"""The decode step: every strategy on every prompt, and what is recorded instead of texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

from hemorrhage.decode import sweep
from hemorrhage.decode.answers import flexible_number, strict_number
from hemorrhage.decode.generation import generate
from hemorrhage.decode.schema import GENERATIONS, HUMAN
from hemorrhage.decode.strategies import fsd, greedy
from hemorrhage.models.checkpoint import load, load_tokenizer
from hemorrhage.runtime.artifact import write_manifest
from tests.decode.sweeps import SPEC, STORY, run


def test_every_strategy_continues_every_prompt(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = run(tmp_path / "out", folders, monkeypatch)
    rows = pd.read_parquet(tmp_path / "out" / "generations.parquet")
    GENERATIONS.validate(rows)
    assert manifest["datasets"] == {"agreement": {"sha256": "b" * 64, "chance": 0.5}, "stories": {"sha256": "a" * 64}}
    assert manifest["seed"] == 11
    assert "failure" not in manifest
    assert not sweep.resume_directory(tmp_path / "out").exists()
    assert list(rows.strategy.unique()) == list(SPEC["strategies"])
    assert rows.groupby(["strategy", "task"]).size().tolist() == [4, 3] * 3
    assert json.loads(rows[rows.strategy == "fsd"].settings.iloc[0]) == {
        "strategy": "fsd",
        "n": 2,
        "k": 3,
        "alpha": 0.6,
        "stop_words": [],
        "stop_word_weight": 0.0,
        "ends": True,
    }
    assert not rows[rows.task == "open_ended"].correct.any()
    assert rows.draw.eq(0).all()
    closed = rows[rows.task == "closed_ended"]
    assert closed.strict_answer.equals(closed.answer)
    assert closed.strict_correct.equals(closed.correct)
    limits = rows.task.map({"closed_ended": 3, "open_ended": 6})
    assert ((rows.finish == "limit") | (rows.tokens.map(len) <= limits)).all()
    assert rows[rows.finish == "limit"].tokens.map(len).equals(limits[rows.finish == "limit"])
    assert rows[rows.finish == "eos"].tokens.map(lambda tokens: tokens[-1]).eq(2).all()

    # Every text again, alone and without any cache of prompts; its likelihood by a plain forward pass.
    model = load(folders["base"])
    tokenizer: Any = load_tokenizer(folders["base"])
    for row in rows.itertuples():
        ids = tokenizer(row.prompt, return_tensors="pt")["input_ids"]
        tokens = list(row.tokens)
        if row.strategy != "warm/1.2":
            module: Any = {"greedy": greedy, "fsd": fsd}[str(row.strategy)]
            settings = module.Settings(**({"alpha": 0.6} if module is fsd else {}))
            limit = 3 if row.task == "closed_ended" else 6
            alone = generate(module, model, ids, torch.ones_like(ids), limit, settings, 0)
            assert alone[0, : len(tokens)].tolist() == tokens
        whole = torch.cat([ids, torch.tensor([tokens])], dim=1)
        assert tokenizer.decode(whole[0], skip_special_tokens=True).endswith(row.text)
        if row.task == "closed_ended":
            assert pd.isna(row.base_nll)
            continue
        with torch.no_grad():
            logp = model(whole).logits[0, ids.shape[1] - 1 : -1].log_softmax(-1)
        expected = -logp.gather(1, torch.tensor(tokens)[:, None]).mean()
        assert row.base_nll == pytest.approx(float(expected), abs=2e-4)


def test_texts_and_their_human_counterparts_have_features(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "LEAST_TEXTS", 3)
    run(tmp_path / "out", folders, monkeypatch)
    rows = pd.read_parquet(tmp_path / "out" / "generations.parquet")
    human = HUMAN.validate(pd.read_parquet(tmp_path / "out" / "human.parquet"))
    features = load_file(tmp_path / "out" / "features.safetensors")
    assert sorted(features) == [
        "stories.human",
        *(f"stories.strategy.{name}" for name in ("fsd", "greedy", "warm/1.2")),
    ]
    greedily = rows[(rows.task == "open_ended") & (rows.strategy == "greedy")]
    assert human.item.tolist() == greedily.item.tolist()
    assert all(STORY.startswith(prompt + text) for prompt, text in zip(greedily.prompt, human.text, strict=True))

    model, tokenizer = load(folders["base"]), load_tokenizer(folders["base"])
    for name, texts in (("stories.human", human), ("stories.strategy.greedy", greedily)):
        for row, (prompt, text) in enumerate(zip(greedily.prompt, texts.itertuples(), strict=True)):
            ids = [*tokenizer(prompt)["input_ids"], *text.tokens]
            alone = [tokenizer.bos_token_id, *text.tokens]
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits
                states = model(torch.tensor([alone]), output_hidden_states=True).hidden_states[-1]
            assert features[name][row] == pytest.approx(states[0, 1:].mean(0).numpy(), abs=2e-4)
            logp = logits[0, len(ids) - len(text.tokens) - 1 : -1].log_softmax(-1)
            nll = -logp.gather(1, torch.tensor(text.tokens)[:, None]).mean()
            assert text.base_nll == pytest.approx(float(nll), abs=2e-4)


def test_features_do_not_hold_the_prompt(folders: dict[str, Path]) -> None:
    """In bfloat16: a text has one feature, whatever it was written behind, alone or among longer ones."""
    model = load(folders["base"]).bfloat16()
    text = [5, 17, 300, 44]
    alone, among = (sweep.text_features(model, texts)[0] for texts in ([text], [text, [9, 8, 7, 6, 5, 4, 3]]))
    assert alone == pytest.approx(among, abs=0.05)
    (other,) = sweep.text_features(model, [[5, 17, 301, 44]])
    assert max(abs(a - b) for a, b in zip(alone, other, strict=True)) > 0.05


def test_few_texts_have_no_features(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "out", folders, monkeypatch)
    assert load_file(tmp_path / "out" / "features.safetensors") == {}


def test_worked_problems_and_summaries_are_swept_like_other_tasks(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, text = tmp_path / "gsm8k", tmp_path / "xsum"
    (task / "gsm8k").mkdir(parents=True)
    text.mkdir()
    problems = [
        (f"Tom has {i} big dogs and buys 2. How many?", f"{i}+2=<<{i}+2={i + 2}>>\n#### {i + 2}") for i in range(5)
    ]
    for split in ("train", "test"):
        pd.DataFrame(problems, columns=["question", "answer"]).to_parquet(task / "gsm8k" / f"{split}.parquet")
    write_manifest(task, task="gsm8k", sha256="c" * 64, chance=0.0)
    articles = [(i, STORY * 2, "Lily plays.") for i in range(3)]
    pd.DataFrame(articles, columns=["item", "document", "summary"]).to_parquet(text / "items.parquet")
    write_manifest(text, task="xsum", sha256="d" * 64)
    closed = [{"task": "gsm8k_worked", "items": 4, "new_tokens": 6, "shots": 2}]
    opened = [{"task": "xsum", "items": 3, "prefix": 6, "new_tokens": 6}]
    places = {**folders, "closed_ended": task, "open_ended": text}
    manifest = run(tmp_path / "out", places, monkeypatch, closed_ended=closed, open_ended=opened)
    assert "failure" not in manifest
    assert set(manifest["datasets"]) == set(manifest["protocol"]) == {"gsm8k_worked", "xsum"}
    rows = pd.read_parquet(tmp_path / "out" / "generations.parquet")
    worked = rows[rows.dataset == "gsm8k_worked"]
    assert worked.prompt.str.count("Question: ").eq(3).all()
    solutions = worked.text.str.partition("Question:")[0]
    assert worked.answer.tolist() == [flexible_number(text) for text in solutions]
    assert worked.strict_answer.tolist() == [strict_number(text) for text in solutions]
    assert manifest["conditions"] == {
        "gsm8k_worked": {"chat_template": None, "shots": 2, "new_tokens": 6},
        "xsum": {"chat_template": None, "shots": 0, "new_tokens": 6},
    }
    assert manifest["protocol"]["gsm8k_worked"].startswith("items=4 new_tokens=6 chat=none shots=2; batch=2")
    human = pd.read_parquet(tmp_path / "out" / "human.parquet")
    assert human.text.str.strip().eq("Lily plays.").all()


def test_the_first_tokens_of_documents_are_the_open_prompts(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "out", folders, monkeypatch, strategies={"greedy": {"strategy": "greedy"}})
    rows = pd.read_parquet(tmp_path / "out" / "generations.parquet")
    tokenizer = load_tokenizer(folders["base"])
    for row in rows[rows.task == "open_ended"].itertuples():
        assert 0 <= row.item < 8
        assert STORY.startswith(row.prompt)
        assert len(tokenizer(row.prompt, add_special_tokens=False)["input_ids"]) == 6


def test_a_broken_checkpoint_becomes_a_row_with_its_reason(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    write_manifest(broken, failure="ValueError: no weights")
    manifest = run(tmp_path / "out", {**folders, "checkpoint": broken}, monkeypatch)
    assert manifest["failure"] == "not decoded: ValueError: no weights"
    assert manifest["variant"] == "v"
