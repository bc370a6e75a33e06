"""The served step: an engine beside our own reading of the same file."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from hemorrhage.engines.registry import ENGINES, Engine
from hemorrhage.evaluate import served
from hemorrhage.evaluate.served_schema import SERVED
from hemorrhage.models.checkpoint import load
from hemorrhage.runtime.artifact import failure, read_manifest

TRANSFORMERS = ENGINES["transformers"]


def run(study: Path, out: Path, variant: str, monkeypatch: pytest.MonkeyPatch, engine: Engine = TRANSFORMERS) -> Path:
    """The step's command line."""
    checkpoint = study / ("base" if variant == "base" else "checkpoint")
    arguments = [out, "--variant", variant, "--checkpoint", checkpoint, "--base", study / "base"]
    arguments += ["--reference", study / "reference", "--engine", json.dumps(engine.as_json())]
    monkeypatch.setattr(sys, "argv", ["step", *map(str, arguments)])
    served.main()
    return out


def test_the_engines_damage_is_that_of_its_logits(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = run(study, tmp_path / "out", "v", monkeypatch)
    manifest = read_manifest(out)
    assert "failure" not in manifest, manifest["failure"]
    assert "gaps" not in manifest
    assert manifest["engine"]["version"] == TRANSFORMERS.version
    tag = f"engine=transformers-{TRANSFORMERS.version}"
    assert all(fields["protocol"].endswith(tag) for fields in manifest["corpora"].values())
    tokens = SERVED.validate(pd.read_parquet(out / "tokens.parquet"))
    assert tokens.groupby("corpus").size().to_dict() == {"code": 6 * 31, "prose": 6 * 31}

    # The definition, written out.
    window = load_file(study / "reference" / "windows.safetensors")["prose"][4].long()
    with torch.inference_mode():
        p, q = (
            torch.log_softmax(load(study / folder)(window[None]).logits[0, :-1].double(), -1)
            for folder in ("base", "checkpoint")
        )
    mine = tokens[(tokens.corpus == "prose") & (tokens.window == 4)]
    kl = (p.exp() * (p - q)).sum(-1)
    assert np.allclose(mine.kl, kl, atol=1e-5)
    assert np.allclose(mine.kl_weights, kl, atol=1e-5)
    assert np.allclose(mine.nll, -q[torch.arange(31), window[1:]], atol=1e-4)
    assert tokens.kl.mean() > 1e-3
    # The same library in float32: it adds nothing but rounding.
    assert tokens.kl_kernels.abs().max() < 1e-6
    assert tokens.same_top1_kernels.all()
    assert (tokens.same_top1 == tokens.same_top1_weights).all()

    cost = json.loads((out / "cost.json").read_text())
    assert len(cost["prefill"]) == len(cost["decode"]) == served.REPETITIONS
    assert all(math.isfinite(speed) and speed > 0 for speed in [*cost["prefill"], *cost["decode"]])
    assert cost["peak_bytes"] > 2**24
    assert not list(tmp_path.glob("*.resume"))


FAKE = """
import os, signal
from pathlib import Path
import numpy as np

class Worker:
    name, version = "fake", "1"
    def load(self, path, threads, context, dtype):
        self.folder = Path(path).parent
        {load}
        return {{"vocabulary": {vocabulary}, "gives": "{gives}", "facts": {{}}}}
    def score(self, tokens):
        with (self.folder.parent / "asked").open("a") as asked:
            asked.write("w")
        {score}
    def generate(self, prefill, decode):
        raise RuntimeError("no clock")
    def close(self):
        pass
"""

ONES = 'yield "logits", {"start": 0}, {"values": np.zeros((len(tokens) - 1, 512), np.float32)}'


def fake(folder: Path, monkeypatch: pytest.MonkeyPatch, **parts: str) -> Engine:
    """An engine of the test's own."""
    text = FAKE.format(**{"load": "pass", "vocabulary": "512", "gives": "logits", "score": ONES, **parts})
    file = folder / "fake.py"
    file.write_text(text)
    monkeypatch.setattr(Engine, "worker", property(lambda _: file))
    return replace(TRANSFORMERS, name="fake", title="fake", version="1")


def test_a_killed_engine_is_asked_again_and_finished_windows_stay(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = "\n        ".join(
        (
            "if (self.folder.parent / 'asked').stat().st_size == 4:",
            "    os.kill(os.getpid(), signal.SIGKILL)",
            ONES,
        )
    )
    out = run(study, tmp_path / "out", "v", monkeypatch, fake(tmp_path, monkeypatch, score=once))
    assert failure(out) is None
    tokens = pd.read_parquet(out / "tokens.parquet")
    assert len(tokens) == 2 * 6 * 31
    assert np.allclose(tokens.nll, math.log(512))
    assert len((tmp_path / "asked").read_text()) == 13, "one window twice"
    assert read_manifest(out)["gaps"] == {"speed": "fake 1: RuntimeError: no clock"}


def test_a_killed_job_goes_on_with_the_next_window(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "_score", interrupted(served._score, after=7))
    with pytest.raises(KeyboardInterrupt):
        run(study, tmp_path / "out", "v", monkeypatch, fake(tmp_path, monkeypatch))
    monkeypatch.undo()
    engine = fake(tmp_path, monkeypatch)
    (tmp_path / "asked").write_text("")
    monkeypatch.setattr(served, "_write_states", None)
    out = run(study, tmp_path / "out", "v", monkeypatch, engine)
    assert len(pd.read_parquet(out / "tokens.parquet")) == 2 * 6 * 31
    assert len((tmp_path / "asked").read_text()) == 5
    assert not (tmp_path / "out.resume").exists()


def interrupted(function, after: int):  # type: ignore[no-untyped-def]
    """The function, which is interrupted at a call."""
    calls = []

    def wrapped(*arguments):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return function(*arguments)

    return wrapped


@pytest.mark.parametrize("final_norm", [True, False])
def test_states_become_logits_by_our_own_norm_and_head(
    final_norm: bool, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that gives our own final states, before or after the last norm, adds nothing."""
    model: Any = load(study / "checkpoint")
    given: list[torch.Tensor] = []
    model.model.norm.register_forward_hook(lambda _, arguments, out: given.append(out if final_norm else arguments[0]))
    windows = load_file(study / "reference" / "windows.safetensors")
    with torch.inference_mode():
        for corpus in read_manifest(study / "reference")["corpora"]:
            model(windows[corpus].long())
    np.save(tmp_path / "states.npy", torch.cat(given)[:, :-1].numpy())
    score = (
        "number = (self.folder.parent / 'asked').stat().st_size - 1\n        "
        f"yield 'hidden', {{'start': 0, 'final_norm': {final_norm}}}, "
        "{'values': np.load(self.folder.parent / 'states.npy')[number]}"
    )
    engine = fake(tmp_path, monkeypatch, gives="hidden", score=score)
    out = run(study, tmp_path / "out", "v", monkeypatch, engine)
    tokens = pd.read_parquet(out / "tokens.parquet")
    assert tokens.kl.mean() > 1e-3
    assert tokens.kl_kernels.abs().max() < 1e-6
    assert np.allclose(tokens.nll, tokens.nll_weights, atol=1e-5)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"load": "raise ValueError('no such architecture')"}, "not loaded: fake 1: no such architecture"),
        ({"load": "os.kill(os.getpid(), signal.SIGKILL)"}, "not loaded: fake 1: the worker was ended by SIGKILL"),
        ({"gives": "top"}, "not compared: it gives the most probable tokens alone, and no KL of them is exact"),
        ({"vocabulary": "500"}, "not compared: it has a vocabulary of 500 tokens, and the base model of 512"),
    ],
)
def test_what_is_not_loaded_is_a_gap(
    parts: dict[str, str], reason: str, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = run(study, tmp_path / "out", "v", monkeypatch, fake(tmp_path, monkeypatch, **parts))
    manifest = read_manifest(out)
    assert manifest["gaps"] == {"all": reason}
    assert "failure" not in manifest
    assert not (out / "tokens.parquet").exists()
