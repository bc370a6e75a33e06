"""The evaluate step: what it writes, and what it records instead of numbers."""

from __future__ import annotations

import copy
import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from hemorrhage.analyze.protocol import tag
from hemorrhage.compress.__main__ import compress
from hemorrhage.evaluate import __main__ as step
from hemorrhage.evaluate import language
from hemorrhage.evaluate.diagnostics import collect
from hemorrhage.evaluate.reference import Spec, reference
from hemorrhage.evaluate.schema import ITEMS, TOKENS, WINDOWS
from hemorrhage.models.checkpoint import load
from hemorrhage.models.reload import write_check
from hemorrhage.models.weights import CHECK, weight_files
from hemorrhage.runtime.artifact import failure, read_manifest, write_manifest
from tests.whole import resealed


def run(study: Path, out: Path, variant: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The step's command line."""
    arguments = [out, "--variant", variant, "--checkpoint", checkpoint, "--base", study / "base"]
    arguments += ["--reference", study / "reference", "--tasks", study / "tasks" / "agreement" / "x"]
    monkeypatch.setattr(sys, "argv", ["step", *map(str, arguments), "--spec", '{"ablate": false}'])
    step.main()
    return out


def test_evaluation_of_a_variant_and_of_the_base(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = run(study, tmp_path / "variant", "v", study / "checkpoint", monkeypatch)
    assert failure(out) is None
    manifest = read_manifest(out)
    assert "noise" not in manifest
    tokens = TOKENS.validate(pd.read_parquet(out / "tokens.parquet"))
    assert tokens.groupby("corpus").size().to_dict() == {"code": 6 * 31, "prose": 6 * 31}
    assert tokens.kl.mean() > 1e-3
    ITEMS.validate(pd.read_parquet(out / "items.parquet"))
    WINDOWS.validate(pd.read_parquet(out / "windows.parquet"))
    assert len(collect.DIAGNOSTICS.validate(pd.read_parquet(out / "diagnostics.parquet")))
    cost = json.loads((out / "cost.json").read_text())
    assert cost["theoretical"] == "nothing gained"
    assert cost["peak_bytes"] > 0

    out = run(study, tmp_path / "base", "base", study / "base", monkeypatch)
    assert failure(out) is None
    assert read_manifest(out)["noise"] == "batches of 3 instead of 6 windows"
    itself = pd.read_parquet(out / "tokens.parquet")
    assert itself.kl.abs().max() < 1e-6
    assert itself.base_nll.equals(tokens.base_nll)
    items = pd.read_parquet(out / "items.parquet")
    assert (items.choice == items.base_choice).all()


def test_a_head_of_its_own_is_compared_with_the_bases(
    study: Path, damaged: Any, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base's logits are computed again where the heads differ, and only there."""
    seen: list[bool] = []

    def watched(*arguments: Any, **named: Any) -> Iterator[pd.DataFrame]:
        seen.append(arguments[3] is None)
        return language.corpus_damage(*arguments, **named)

    monkeypatch.setattr(step, "corpus_damage", watched)
    run(study, tmp_path / "one_head", "v", study / "checkpoint", monkeypatch)
    untied = copy.deepcopy(damaged)
    untied.config.tie_word_embeddings = False
    weight = damaged.lm_head.weight.detach().clone()
    untied.lm_head.weight = torch.nn.Parameter(weight + 0.1 * weight.roll(1, 0))
    untied.save_pretrained(tmp_path / "checkpoint")
    write_check(untied, tmp_path / "checkpoint", seed=0)
    write_manifest(tmp_path / "checkpoint", variant="v")
    out = run(study, tmp_path / "own_head", "v", tmp_path / "checkpoint", monkeypatch)
    assert seen == [True, True, False, False]
    table = pd.read_parquet(out / "tokens.parquet")
    windows = load_file(study / "reference" / "windows.safetensors")["code"].long()
    with torch.no_grad():
        p, q = (each(windows).logits[:, :-1].double().log_softmax(-1) for each in (model, untied))
    expected = (p.exp() * (p - q)).sum(-1).flatten().numpy()
    np.testing.assert_allclose(table[table.corpus == "code"].kl, expected, rtol=1e-5, atol=1e-5)


def copied(study: Path, folder: Path) -> Path:
    shutil.copytree(study / "checkpoint", folder)
    return folder


def reason(study: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Why the checkpoint is recorded as failed: one line."""
    out = run(study, tmp_path / "out", "v", checkpoint, monkeypatch)
    assert sorted(file.name for file in out.iterdir()) == ["manifest.json"]
    found = failure(out)
    assert found is not None
    assert "\n" not in found
    assert set(read_manifest(out)["corpora"]) == {"prose", "code"}
    return found


def test_a_truncated_checkpoint_is_recorded(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = copied(study, tmp_path / "checkpoint")
    (file,) = weight_files(checkpoint)
    file.write_bytes(file.read_bytes()[:5000])
    found = reason(study, checkpoint, tmp_path, monkeypatch)
    assert found.startswith("ValueError:")
    assert f"{file} is damaged" in found
    assert "hemorrhage invalidate v" in found
    resealed(checkpoint)
    assert "can't be loaded" in reason(study, checkpoint, tmp_path, monkeypatch)
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()
    write_manifest(checkpoint)
    assert "can't be loaded" in reason(study, checkpoint, tmp_path, monkeypatch)


def test_a_checkpoint_that_was_not_made_is_recorded(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoint").mkdir()
    write_manifest(tmp_path / "checkpoint", failure="singular")
    assert "not made: singular" in reason(study, tmp_path / "checkpoint", tmp_path, monkeypatch)


def test_a_checkpoint_altered_after_it_was_made_is_recorded(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = copied(study, tmp_path / "checkpoint")
    (file,) = weight_files(checkpoint)
    tensors = load_file(file)
    tensors["model.layers.2.mlp.up_proj.weight"] *= 0.9
    save_file(tensors, file, metadata={"format": "pt"})
    resealed(checkpoint)
    assert "reload differs" in reason(study, checkpoint, tmp_path, monkeypatch)
    tensors["model.layers.2.mlp.up_proj.weight"][0] = math.nan
    save_file(tensors, file, metadata={"format": "pt"})
    resealed(checkpoint)
    assert "reload differs by nan" in reason(study, checkpoint, tmp_path, monkeypatch)
    (checkpoint / CHECK).unlink()
    resealed(checkpoint)
    assert "no check.safetensors" in reason(study, checkpoint, tmp_path, monkeypatch)


def test_another_models_checkpoint_is_recorded(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = load(study / "base")
    foreign.resize_token_embeddings(600)
    foreign.save_pretrained(tmp_path / "checkpoint")
    write_check(foreign, tmp_path / "checkpoint", seed=0)
    write_manifest(tmp_path / "checkpoint")
    found = reason(study, tmp_path / "checkpoint", tmp_path, monkeypatch)
    assert "has a vocabulary of 600 tokens, and the base model of 512" in found


def test_another_tokenizer_is_recorded(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = copied(study, tmp_path / "checkpoint")
    content = json.loads((study / "base" / "tokenizer.json").read_text())
    (checkpoint / "tokenizer.json").write_text(json.dumps(content, indent=7))
    resealed(checkpoint)
    step.same_tokenizer(checkpoint, study / "base")
    content["decoder"] = None
    (checkpoint / "tokenizer.json").write_text(json.dumps(content))
    assert "tokenizer.json differs from the base model's" in reason(study, checkpoint, tmp_path, monkeypatch)


def test_products_in_bfloat16_are_another_protocol_and_near(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides in bfloat16: the same damage within its rounding, none for the base, and no name in common."""
    spec: Spec = {"dtype": "bfloat16", "window": 32, "windows": 6, "diagnostics": {"windows": 2, "window": 24}}
    texts, tasks = [study / "prose", study / "code"], [study / "tasks" / "agreement" / "x"]
    reference(tmp_path / "reference", study / "base", texts, tasks, spec)
    exact = pd.read_parquet(run(study, tmp_path / "f32", "v", study / "checkpoint", monkeypatch) / "tokens.parquet")
    shutil.copytree(study, tmp_path / "study")
    shutil.rmtree(tmp_path / "study/reference")
    (tmp_path / "reference").rename(tmp_path / "study/reference")
    out = run(tmp_path / "study", tmp_path / "bf16", "v", study / "checkpoint", monkeypatch)
    rounded = pd.read_parquet(out / "tokens.parquet")
    assert not np.array_equal(exact.nll, rounded.nll)
    assert rounded.kl.mean() == pytest.approx(exact.kl.mean(), rel=0.05)
    assert rounded.nll.mean() == pytest.approx(exact.nll.mean(), rel=0.01)
    facts = read_manifest(out)
    assert facts["dtype"] == "bfloat16"
    assert all(entry["protocol"].endswith("dtype=bfloat16") for entry in facts["corpora"].values())
    assert tag(facts["corpora"]["prose"]["protocol"]).endswith("-bf16")
    own = run(tmp_path / "study", tmp_path / "own", "base", study / "base", monkeypatch)
    assert pd.read_parquet(own / "tokens.parquet").kl.abs().mean() < 0.01 * exact.kl.mean()


def test_a_killed_evaluation_goes_on_behind_the_last_windows(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language, "ROWS", 60)
    monkeypatch.setattr(language, "TOKENS_PER_BATCH", 64)
    whole = run(study, tmp_path / "whole", "v", study / "checkpoint", monkeypatch)
    passes: list[int] = []
    states = language.hidden_states

    def counted(model: Any, tokens: torch.Tensor) -> torch.Tensor:
        passes.append(len(tokens))
        if len(passes) == 5:
            raise KeyboardInterrupt
        return states(model, tokens)

    monkeypatch.setattr(language, "hidden_states", counted)
    with pytest.raises(KeyboardInterrupt):
        run(study, tmp_path / "out", "v", study / "checkpoint", monkeypatch)
    # Three batches of two windows make the first corpus; of the second one was written.
    kept = tmp_path / "out.resume"
    assert sorted(file.name for file in kept.iterdir()) == [
        "code.0.parquet",
        "code.1.parquet",
        "code.2.parquet",
        "prose.0.parquet",
    ]
    assert not (tmp_path / "out").exists()
    passes.extend([0] * 5)
    out = run(study, tmp_path / "out", "v", study / "checkpoint", monkeypatch)
    assert passes[10:] == [2, 2]
    assert not kept.exists()
    for name in ("tokens.parquet", "items.parquet", "diagnostics.parquet"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_an_evicted_cache_is_damage_that_grows_with_what_is_gone(study: Path, tmp_path: Path) -> None:
    damage = {}
    for ratio in (0.0, 0.25, 0.75):
        settings = {"score": "expected_attention", "ratio": ratio, "future": 64}
        spec = {"sweep": "s", "method": "eviction", "settings": settings, "seed": 0}
        compress(tmp_path / f"v{ratio}", "v", study / "base", None, None, [], spec)
        out = tmp_path / f"e{ratio}"
        tasks = [study / "tasks" / "agreement" / "x"]
        step.evaluate(out, "v", tmp_path / f"v{ratio}", study / "base", study / "reference", tasks)
        tokens = pd.read_parquet(out / "tokens.parquet")
        # 31 tokens of a window are predicted, 15 of them by its first half but for the last of it.
        assert tokens[tokens.position < 16].kl.abs().max() < 1e-6
        damage[ratio] = float(tokens.kl.mean())
        assert json.loads((out / "cost.json").read_text())["theoretical"].startswith("cache: evicted")
    assert abs(damage[0.0]) < 1e-6
    assert 1e-3 < damage[0.25] < damage[0.75]
