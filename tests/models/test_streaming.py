"""A model that is read block by block gives the numbers of one that is in memory, and takes the memory of a block."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from hemorrhage.calibrate import statistics
from hemorrhage.compress.__main__ import compress
from hemorrhage.data.tasks.probes import prepare
from hemorrhage.evaluate import language
from hemorrhage.evaluate.__main__ import evaluate
from hemorrhage.evaluate.precision import computing
from hemorrhage.evaluate.reference import reference
from hemorrhage.models import stream, walk
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import load, size
from hemorrhage.models.formats.masked import MaskedLinear
from hemorrhage.models.stream import Aside, mapped, places
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import failure, write_manifest
from tests.calibration import calibrated, text_folder

TABLES = ("tokens", "items", "inside")
VARIANTS: dict[str, dict[str, Any]] = {
    "rtn": {"bits": 4, "group_size": 4},
    "gptq": {"bits": 3, "group_size": 4},
    "magnitude": {"sparsity": 0.5},
    "wanda": {"sparsity": "2:4"},
    "svd": {"removed": 0.2},
}


@pytest.fixture(scope="module")
def base(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in bfloat16, as a base step would leave it."""
    folder = tmp_path_factory.mktemp("base")
    for file in tiny.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((tiny / "config.json").read_text()) | {"dtype": "bfloat16"}
    config.pop("torch_dtype", None)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(tiny / "model.safetensors")
    save_file({name: value.bfloat16() for name, value in tensors.items()}, folder / "model.safetensors")
    write_manifest(folder, bos=None)
    return folder


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


@pytest.fixture(scope="module")
def calibration(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(base, tmp_path_factory.mktemp("calibration"))


def measured(
    out: Path, base: Path, texts: Path, task: Path, checkpoint: Path, memory_gb: float, dtype: str = "float32"
) -> dict[str, pd.DataFrame]:
    """Tables of an evaluation of ``checkpoint``, and what the reference keeps of the base."""
    spec = {"dtype": dtype, "window": 32, "windows": 35, "inside": {"windows": 2, "window": 16}}
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
        with computing(model, "bfloat16"):
            ((_, _, of_first), (_, _, of_second)) = language.passes(model, tokens, [slice(0, 1), slice(1, 2)])
        states.append(torch.cat([of_first, of_second]))
        assert "forward" not in vars(model.get_decoder())
    torch.testing.assert_close(*states)
    exact = torch.cat([language.hidden_states(models[1], row[None]) for row in tokens])
    assert not torch.allclose(states[0], exact, atol=1e-6)
    torch.testing.assert_close(exact, language.hidden_states(models[0], tokens), rtol=1e-4, atol=1e-5)


def test_weights_of_one_block_are_in_float32_and_masked_ones_are_nowhere(
    base: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {"sweep": "s", "method": "wanda", "settings": {"sparsity": 0.5}, "seed": 0}
    compress(tmp_path / "v", "v", base, None, calibration, [], spec)
    model: Any = load(tmp_path / "v", base=base, streamed=True)
    masks = [module for module in model.modules() if isinstance(module, MaskedLinear)]
    assert len(masks) == 7 * len(blocks(model))
    assert not [value for mask in masks for value in mask.parameters()]
    made: list[weakref.ref[torch.Tensor]] = []
    alive = []
    tensor = Weights.tensor

    def counted(self: Weights, name: str) -> torch.Tensor:
        value = tensor(self, name)
        if self.masked(name):
            made.append(weakref.ref(value))
            alive.append(sum(each() is not None for each in made))
        return value

    monkeypatch.setattr(Weights, "tensor", counted)
    monkeypatch.setattr(MaskedLinear, "dense", lambda self: self._weights.tensor(self._name))
    for block in blocks(model):
        block.float()
    walk.together(model, [torch.arange(8)[None], torch.arange(5)[None]])
    # One pass over the weights for both batches.
    assert len(made) == len(masks)
    assert max(alive) <= 8


def test_the_size_is_that_in_float32(base: Path) -> None:
    assert size(base) == 4 * sum(value.numel() for value in load(base).parameters())


def test_tensors_that_are_put_aside_come_back_from_files_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "IN_MEMORY", 100)
    values = [torch.arange(20.0).view(4, 5).bfloat16(), torch.zeros(0, 3), torch.arange(16), torch.tensor(True)]
    aside = Aside(tmp_path)
    kept = [aside.put(value) for value in values]
    assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(kept, values, strict=True))
    assert [one is other for one, other in zip(kept, values, strict=True)] == [True, True, False, False]
    kept[2] += 1
    assert values[2][0] == 0
    assert kept[2][-1] == 16
    assert not list(tmp_path.iterdir())


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


def test_a_file_that_is_cut_off_is_no_checkpoint(base: Path, tmp_path: Path) -> None:
    whole = (base / "model.safetensors").read_bytes()
    for length in (4, 100, len(whole) - 1):
        (tmp_path / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="no whole safetensors file"):
            places(tmp_path / "model.safetensors")


def test_a_mapped_tensor_is_read_wherever_it_begins_and_never_written_back(tmp_path: Path) -> None:
    file = tmp_path / "numbers"
    for offset in (0, 3, 4096, 5000):
        file.write_bytes(bytes(offset) + torch.arange(1000.0).numpy().tobytes())
        found = mapped(file, offset, (10, 100), torch.float32)
        assert torch.equal(found, torch.arange(1000.0).view(10, 100))
        before = file.read_bytes()
        found.zero_()
        assert file.read_bytes() == before
