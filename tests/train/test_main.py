"""The train step: a folder that is a model, and the same bits however often the job is killed."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel

from hemorrhage.models.checkpoint import load, load_tokenizer
from hemorrhage.models.sources.path import refusal
from hemorrhage.runtime import lacking
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.runtime.step import InputError
from hemorrhage.train import __main__ as step
from hemorrhage.train import loop, state
from tests.train.made import VOCABULARY, spec


@pytest.fixture(scope="module")
def unbroken(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained in one go."""
    out = tmp_path_factory.mktemp("unbroken") / "model"
    step.raise_model(tokens, spec(keep=[1000]), out)
    return out


def test_the_folder_is_a_model_that_learned(unbroken: Path) -> None:
    assert refusal(unbroken) is None
    model, tokenizer = load(unbroken, "float32"), load_tokenizer(unbroken)
    assert model.config.vocab_size == VOCABULARY == len(tokenizer)
    manifest, curve = read_manifest(unbroken), pd.read_parquet(unbroken / "curve.parquet")
    assert list(curve["tokens"]) == [128 * number for number in range(1, 25)]
    # A token of 288 that nothing is known of costs ln 288 nats.
    assert curve["loss"].iloc[0] == pytest.approx(math.log(288), abs=0.3)
    assert manifest["heldout_loss"] == curve["heldout_loss"].iloc[-1] < curve["heldout_loss"].iloc[2]
    assert curve["heldout_loss"].notna().sum() == loop.MEASUREMENTS
    assert manifest["tokens"] == 24 * 128
    assert not unbroken.with_name("model.resume").exists()


def test_weights_and_operations_are_counted_as_by_hand(unbroken: Path) -> None:
    manifest = read_manifest(unbroken)
    # Four square matrices of attention and three of the MLP in each block, two gains each, and the last gain.
    weights = 2 * (4 * 16 * 16 + 3 * 16 * 24 + 2 * 16) + 16
    assert manifest["weights"] == weights
    assert manifest["parameters"] == weights + 288 * 16
    assert manifest["operations"] == 6 * 24 * 128 * (weights + 288 * 16)


def test_a_model_along_the_way_is_a_model(unbroken: Path) -> None:
    kept = unbroken / "snapshots" / "1000"
    assert refusal(kept) is None
    early, late = (dict(load(folder, "float32").named_parameters()) for folder in (kept, unbroken))
    assert not torch.equal(early["model.norm.weight"], late["model.norm.weight"])


@pytest.mark.parametrize("killed", [1, 9, 24])
def test_a_killed_training_ends_with_the_same_bits(
    tokens: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: int
) -> None:
    out, updates = tmp_path / "model", []
    update = loop._update

    def until_killed(*arguments: object) -> tuple[float, float]:
        updates.append(arguments[-1])
        if len(updates) == killed:
            raise KeyboardInterrupt
        return update(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(state, "SECONDS", 0.0)
    monkeypatch.setattr(loop, "_update", until_killed)
    with pytest.raises(KeyboardInterrupt):
        step.raise_model(tokens, spec(keep=[1000]), out)
    assert not out.exists()
    torch.manual_seed(99)
    step.raise_model(tokens, spec(keep=[1000]), out)
    # The step that was cut short is taken again, and none before it.
    assert updates == [*range(killed), *range(killed - 1, 24)]
    for name in ("model.safetensors", "curve.parquet", "snapshots/1000/model.safetensors", "config.json"):
        assert (out / name).read_bytes() == (unbroken / name).read_bytes(), name


def test_a_seed_decides_the_weights(tokens: Path, unbroken: Path, tmp_path: Path) -> None:
    step.raise_model(tokens, spec(seed=1), tmp_path / "model")
    assert (tmp_path / "model/model.safetensors").read_bytes() != (unbroken / "model.safetensors").read_bytes()


def test_products_and_weights_in_bfloat16(tokens: Path, tmp_path: Path) -> None:
    step.raise_model(tokens, spec(dtype="bfloat16", store="bfloat16"), tmp_path / "model")
    assert load(tmp_path / "model", "bfloat16").dtype == torch.bfloat16
    assert refusal(tmp_path / "model") is None


def test_a_training_that_diverges_says_at_which_step(tokens: Path, tmp_path: Path) -> None:
    wild = {**spec()["optimizer"], "learning_rate": 1e30, "clip": 1e30}
    with pytest.raises(FloatingPointError, match=r"the loss of step \d+ is (nan|inf)"):
        step.raise_model(tokens, spec(optimizer=wild), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_training_that_diverges_is_a_gap_with_its_reason(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wild = spec(optimizer={**spec()["optimizer"], "learning_rate": 1e30, "clip": 1e30})
    training, child = tmp_path / "wild" / "0123456789ab", tmp_path / "child"
    arguments = [str(training), "--tokenizer", str(tokens), "--spec", json.dumps(wild)]
    monkeypatch.setattr(sys, "argv", ["hemorrhage.train", *arguments])
    step.main()
    why = lacking.reason(training)
    assert why is not None
    assert re.fullmatch(r"wild: the (held-out )?loss of step \d+ is (nan|inf): the training has diverged", why)
    assert lacking.inherit("hemorrhage.train", [str(child), "--parent", str(training), "--spec", "{}"])
    assert lacking.reason(child) == why


def test_a_model_that_the_last_step_spoils_has_diverged(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = loop._update

    def spoil(model: PreTrainedModel, *others: Any) -> tuple[float, float]:
        made = update(model, *others)
        if others[-1] == 23:
            with torch.no_grad():
                next(model.parameters()).fill_(math.inf)
        return made

    monkeypatch.setattr(loop, "_update", spoil)
    with pytest.raises(FloatingPointError, match="the held-out loss of step 24 is nan"):
        step.raise_model(tokens, spec(), tmp_path / "model")


def test_a_text_too_short_for_a_window_is_named(tokens: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="recipes: corpus code has"):
        step.raise_model(tokens, spec(length=100_000), tmp_path / "model")


KILLED_AS_IT_SAVES = """
import json, os, signal, sys
from pathlib import Path
from hemorrhage.train import state
from hemorrhage.train.__main__ import raise_model

left = iter(range(6))
rename = Path.rename

def until_killed(file, target):
    if Path(target).name == state.FILE and next(left, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(file, target)

state.SECONDS = 0.0
Path.rename = until_killed
raise_model(Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3]))
"""


def test_a_kill_while_the_state_is_written_leaves_the_one_before(tokens: Path, unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    arguments = [str(tokens), json.dumps(spec(keep=[1000])), str(out)]
    done = subprocess.run([sys.executable, "-c", KILLED_AS_IT_SAVES, *arguments], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = [file.name for file in out.with_name("model.resume").iterdir()]
    assert state.FILE in kept
    assert len(kept) == 2, "the state before, and the one that was being written"
    step.raise_model(tokens, spec(keep=[1000]), out)
    assert (out / "model.safetensors").read_bytes() == (unbroken / "model.safetensors").read_bytes()
    assert (out / "curve.parquet").read_bytes() == (unbroken / "curve.parquet").read_bytes()
