"""The same steps with the same settings on the processor and on a GPU: ``pytest -m gpu`` where there is one.

Products of float32 in another order differ in the last digits, which sixteen bits of a checkpoint and choices between
near ties can make larger. What has to hold: every metric within the tolerances below.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.data.tasks.probes import prepare
from hemorrhage.data.texts import embedded
from hemorrhage.models.checkpoint import load, load_tokenizer
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.artifact import failure, write_manifest
from tests.conftest import ROOT

TOLERANCES = {"nll": 1e-4, "kl": 1e-3, "entropy": 1e-3}
"""Of means over a corpus, relative; in bfloat16 a hundred times as much."""

MOMENTS = 1e-3
"""Of second moments: Frobenius norm of the difference, relative."""

SOLVED = 0.02
"""Of what all linear layers together lose in their outputs, relative: a rounding that falls otherwise moves others."""

ANSWERS = 0.02
"""Share of task items that may be answered otherwise."""


def step(device: str, module: str, *words: object) -> None:
    """Run a step on a device."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HEMORRHAGE_DEVICE": device}
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, words)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def sources(device: str, tiny: Path, folder: Path) -> tuple[Path, Path, Path]:
    """Base model, text, and the calibration of it on ``device``."""
    base, text, calibration = folder / "base", folder / "texts/prose/x", folder / "calibration"
    step(device, "hemorrhage.models", base, "--spec", json.dumps({"source": "path", "path": str(tiny)}))
    text.mkdir(parents=True)
    prose = embedded.JOIN.join(embedded.documents("prose")["calibration"])[:40_000]
    ids = load_tokenizer(tiny)(prose, add_special_tokens=False).input_ids
    tokens = torch.tensor(ids, dtype=torch.int32)
    save_file({"calibration": tokens, "evaluation": tokens.clone()}, text / "tokens.safetensors")
    write_manifest(text, corpus="prose", sha256="0", join="\n\n")
    sampling = json.dumps({"samples": 8, "length": 128, "seed": 0, "max_hessian_gb": 1})
    step(device, "hemorrhage.calibrate", calibration, "--base", base, "--texts", text, "--spec", sampling)
    return base, text, calibration


def other_device() -> str:
    """The GPU. HEMORRHAGE_OTHER_DEVICE=cpu tries these tests themselves where there is none."""
    other = os.environ.get("HEMORRHAGE_OTHER_DEVICE", "cuda")
    if other == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return other


def run(device: str, dtype: str, tiny: Path, folder: Path) -> dict[str, Path]:
    """Base, texts and tasks, calibration, a variant, reference and evaluation on ``device``."""
    base, text, _ = sources(device, tiny, folder)
    task = folder / "tasks/agreement/x"
    prepare("agreement", 100, 0, task)
    out = {name: folder / name for name in ("calibration", "reference", "variant", "evaluation")}
    altering = {
        "sweep": "rtn", "method": "rtn", "seed": 0, "on": None,
        "settings": {"bits": 4, "group_size": "channel", "symmetric": False},
    }  # fmt: skip
    step(
        device,
        "hemorrhage.compress",
        out["variant"],
        "--variant",
        "rtn-4",
        "--base",
        base,
        "--spec",
        json.dumps(altering),
    )
    windows = {"dtype": dtype, "window": 128, "windows": 16, "diagnostics": {"windows": 2, "window": 64}}
    step(
        device, "hemorrhage.evaluate.reference", out["reference"], "--base", base, "--texts", text, "--tasks", task,
        "--spec", json.dumps(windows),
    )  # fmt: skip
    step(
        device, "hemorrhage.evaluate", out["evaluation"], "--variant", "rtn-4", "--checkpoint", out["variant"],
        "--base", base, "--reference", out["reference"], "--tasks", task, "--spec", json.dumps({"ablate": False}),
    )  # fmt: skip
    return out


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_metrics_are_those_of_the_processor(tiny: Path, tmp_path: Path, dtype: str) -> None:
    other = other_device()
    here, there = run("cpu", dtype, tiny, tmp_path / "cpu"), run(other, dtype, tiny, tmp_path / "other")
    moments = [load_file(out["calibration"] / "hessian.safetensors") for out in (here, there)]
    for name, moment in moments[0].items():
        assert (moments[1][name] - moment).norm() <= MOMENTS * moment.norm(), name
    tokens = [pd.read_parquet(out["evaluation"] / "tokens.parquet") for out in (here, there)]
    for metric, tolerance in TOLERANCES.items():
        tolerance *= 100 if dtype == "bfloat16" else 1
        assert tokens[1][metric].mean() == pytest.approx(tokens[0][metric].mean(), rel=tolerance), metric
    items = [pd.read_parquet(out["evaluation"] / "items.parquet") for out in (here, there)]
    assert (items[0].choice != items[1].choice).mean() <= ANSWERS


GRID = {"bits": 3, "group_size": 4, "symmetric": False}

SOLVERS = [
    ("gptq", GRID),
    ("gptq", {**GRID, "act_order": True}),
    ("gptq", {**GRID, "sequential": True}),
    ("sparsegpt", {"sparsity": 0.5}),
    ("sparsegpt", {"sparsity": "2:4", "sequential": True}),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("method", "settings"), SOLVERS)
def test_a_solver_loses_what_it_loses_on_the_processor(
    tiny: Path, tmp_path: Path, method: str, settings: dict[str, object]
) -> None:
    base, _, calibration = sources("cpu", tiny, tmp_path)
    spec = {"sweep": method, "method": method, "seed": 0, "on": None, "settings": settings}
    losses = []
    for number, device in enumerate(("cpu", other_device())):
        out = tmp_path / f"variant-{number}"
        step(
            device, "hemorrhage.compress", out, "--variant", method, "--base", base, "--calibration", calibration,
            "--spec", json.dumps(spec),
        )  # fmt: skip
        assert failure(out) is None
        losses.append(lost(load(base), load(out, base=base), Statistics(calibration)))
    assert losses[1] == pytest.approx(losses[0], rel=SOLVED)


def lost(base: PreTrainedModel, variant: PreTrainedModel, moments: Statistics) -> float:
    """Sum over linear layers of tr(dW H dWᵀ) / tr(W H Wᵀ)."""
    total = 0.0
    after = linears_of(variant)
    for first, names in moments.shared().items():
        H = moments.second_moment(first).double()
        for name in names:
            W = linears_of(base)[name].weight.detach().double().cpu()
            error = after[name].weight.detach().double().cpu() - W
            total += float((error @ H * error).sum() / (W @ H * W).sum())
    return total
