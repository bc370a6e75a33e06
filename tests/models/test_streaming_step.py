"""A model that is read block by block gives the numbers of one that is in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from hemorrhage.calibrate import statistics
from hemorrhage.compress.__main__ import compress
from hemorrhage.data.tasks.probes import prepare
from hemorrhage.evaluate import language
from hemorrhage.evaluate.__main__ import evaluate
from hemorrhage.evaluate.precision import compute_in
from hemorrhage.evaluate.reference import Spec, reference
from hemorrhage.models import stream
from hemorrhage.models.checkpoint import load
from hemorrhage.runtime.artifact import failure
from tests.calibration import calibrated, text_folder

TABLES = ("tokens", "items", "diagnostics")


VARIANTS: dict[str, dict[str, Any]] = {
    "rtn": {"bits": 4, "group_size": 4},
    "gptq": {"bits": 3, "group_size": 4},
    "magnitude": {"sparsity": 0.5},
    "wanda": {"sparsity": "2:4"},
    "svd": {"removed": 0.2},
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = text_folder(tmp_path_factory.mktemp("texts") / "made", 3000)
    (folder / "manifest.json").write_text(json.dumps({"corpus": "made", "sha256": "ab", "join": "\n"}))
    return folder


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks") / "recall" / "x"
    prepare("recall", 6, 0, folder)
    return folder


def measured(
    out: Path, base: Path, texts: Path, task: Path, checkpoint: Path, memory_gb: float, dtype: str = "float32"
) -> dict[str, pd.DataFrame]:
    """Tables of an evaluation of ``checkpoint``, and what the reference keeps of the base."""
    spec: Spec = {"dtype": dtype, "window": 32, "windows": 35, "diagnostics": {"windows": 2, "window": 16}}
    reference(out / "reference", base, [texts], [task], spec, memory_gb)
    evaluate(out / "evaluation", "v", checkpoint, base, out / "reference", [task], False, memory_gb)
    tables = {name: pd.read_parquet(out / "evaluation" / f"{name}.parquet") for name in TABLES}
    for name in ("hidden", "figures"):
        values = load_file(out / "reference" / f"{name}.safetensors")["made"]
        tables[name] = pd.DataFrame(values.flatten(0, 1).numpy())
    return tables


@pytest.mark.parametrize("method", VARIANTS)
def test_numbers_are_those_of_a_model_in_memory(
    base: Path, texts: Path, task: Path, calibration: Path, tmp_path: Path, method: str
) -> None:
    spec = {"sweep": "s", "method": method, "settings": VARIANTS[method], "seed": 0}
    compress(tmp_path / "v", "v", base, None, calibration, [], spec)
    assert failure(tmp_path / "v") is None
    found, expected = (measured(tmp_path / str(limit), base, texts, task, tmp_path / "v", limit) for limit in (0, 1))
    for name, table in expected.items():
        pd.testing.assert_frame_equal(found[name], table, rtol=1e-6, atol=1e-6, obj=name)
    assert "prefill" not in json.loads((tmp_path / "0" / "evaluation" / "cost.json").read_text())


def test_products_of_bfloat16_are_those_of_a_model_in_memory(base: Path) -> None:
    tokens = torch.randint(512, (2, 16), generator=torch.Generator().manual_seed(0))
    models = load(base), load(base, streamed=True)
    states = []
    for model in models:
        with compute_in(model, "bfloat16"):
            ((_, _, of_first), (_, _, of_second)) = language.forward_passes(model, tokens, [slice(0, 1), slice(1, 2)])
        states.append(torch.cat([of_first, of_second]))
        assert "forward" not in vars(model.get_decoder())
    torch.testing.assert_close(*states)
    exact = torch.cat([language.hidden_states(models[1], row[None]) for row in tokens])
    assert not torch.allclose(states[0], exact, atol=1e-6)
    torch.testing.assert_close(exact, language.hidden_states(models[0], tokens), rtol=1e-4, atol=1e-5)


def test_statistics_do_not_depend_on_where_states_lie_between_blocks(
    base: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "IN_MEMORY", 0)
    monkeypatch.setattr(statistics, "BATCH_TOKENS", 64)
    again = calibrated(base, tmp_path)
    for name in ("hessian", "activations"):
        found, expected = (load_file(folder / f"{name}.safetensors") for folder in (again, calibration))
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5 * value.abs().max().item())
    assert not list(again.glob("tmp*"))
