"""A checkpoint stores what the base model does not have, and reads back bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hemorrhage.models import weights
from hemorrhage.models.weights import Weights, digest
from hemorrhage.runtime.artifact import verify, write_manifest

BASE = {
    "embed.weight": torch.randn(40, 16, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "layers.0.up.weight": torch.randn(24, 16, generator=torch.Generator().manual_seed(1)).bfloat16(),
    "layers.1.up.weight": torch.randn(24, 16, generator=torch.Generator().manual_seed(2)).bfloat16(),
}
PLACES = torch.rand(24, 16, generator=torch.Generator().manual_seed(3)) < 0.5
ZERO = torch.zeros((), dtype=torch.bfloat16)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    save_file(BASE, folder / "model.safetensors")
    return folder


def stored(folder: Path, base: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Write ``tensors`` beside ``base``, compare what is read back, and return what lies in the file."""
    folder.mkdir()
    given = {name: (value, value.dtype) for name, value in tensors.items()}
    weights.write(folder, given, "model.safetensors", base)
    found = Weights(folder, base)
    assert set(found.names()) == set(tensors)
    for name, value in tensors.items():
        assert digest(found.tensor(name)) == digest(value), name
        assert (found.shape(name), found.dtype(name)) == (value.shape, value.dtype)
    # The size is that of a file with everything in full.
    save_file(tensors, folder / "whole.part", {"format": "pt"})
    full = json.loads((folder / "shared.json").read_text())["bytes"]
    assert full == pytest.approx((folder / "whole.part").stat().st_size, abs=64)
    return load_file(folder / "model.safetensors")


def test_what_the_base_has_is_not_stored_again_also_under_another_name(base: Path, tmp_path: Path) -> None:
    moved = {"embed.weight": BASE["embed.weight"], "layers.0.up.weight": BASE["layers.1.up.weight"]}
    assert stored(tmp_path / "v", base, moved) == {}


def test_zeroed_weights_are_a_mask_over_the_bases(base: Path, tmp_path: Path) -> None:
    pruned = {"layers.0.up.weight": torch.where(PLACES, ZERO, BASE["layers.0.up.weight"])}
    found = stored(tmp_path / "v", base, pruned)
    assert {name: value.shape for name, value in found.items()} == {"layers.0.up.weight.kept": (48,)}


def test_other_sparse_weights_are_a_mask_and_the_numbers_that_are_left(base: Path, tmp_path: Path) -> None:
    values = torch.where(PLACES, ZERO, BASE["layers.0.up.weight"] * 1.5)
    found = stored(tmp_path / "v", base, {"layers.0.up.weight": values, "new": torch.zeros(32)})
    assert found["layers.0.up.weight.values"].tolist() == values[values != 0].tolist()
    assert {name: len(found[f"new.{name}"]) for name in ("kept", "values")} == {"kept": 4, "values": 0}


def test_negative_zeros_stay_negative(base: Path, tmp_path: Path) -> None:
    # What multiplying by a mask gives; torch.equal would not tell them from zeros.
    values = BASE["layers.0.up.weight"] * ~PLACES
    assert (values.view(torch.int16) == -(2**15)).any()
    stored(tmp_path / "v", base, {"layers.0.up.weight": values})


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e8m0fnu, torch.uint32, torch.complex64])
def test_sparse_codes_of_any_type_are_stored_as_a_mask(base: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    octets = torch.where(torch.arange(64 * dtype.itemsize) % (8 * dtype.itemsize) < dtype.itemsize, 37, 0)
    found = stored(tmp_path / "v", base, {"codes": octets.to(torch.uint8).view(dtype)})
    assert set(found) == {"codes.kept", "codes.values"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32, torch.uint8])
def test_dense_weights_are_stored_as_they_are(base: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    values = {"layers.0.up.weight": torch.arange(1, 101).view(10, 10).to(dtype), "empty": torch.zeros(0, 4)}
    found = stored(tmp_path / "v", base, values)
    assert set(found) == set(values)


def test_the_base_must_be_there_and_the_one_it_was(base: Path, tmp_path: Path) -> None:
    stored(tmp_path / "v", base, {"embed.weight": BASE["embed.weight"]})
    with pytest.raises(ValueError, match="shares weights with the base model, whose folder was not given"):
        Weights(tmp_path / "v")
    (tmp_path / "other").mkdir()
    save_file({**BASE, "embed.weight": BASE["embed.weight"] + 1}, tmp_path / "other" / "model.safetensors")
    with pytest.raises(ValueError, match=r"was made from another base model than .*: embed\.weight differs"):
        Weights(tmp_path / "v", tmp_path / "other")


def test_a_damaged_file_is_named_with_the_command_that_makes_it_again(base: Path, tmp_path: Path) -> None:
    write_manifest(base, variant="rtn-4")
    verify(base)
    file = base / "model.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole)
    verify(base)  # once in a process
    for directory in (tmp_path / "copied", tmp_path / "incomplete"):
        directory.mkdir()
        for each in base.iterdir():
            (directory / each.name).write_bytes(each.read_bytes())
    with pytest.raises(ValueError, match=r"copied/model.safetensors is damaged: .* `hemorrhage invalidate rtn-4`"):
        verify(tmp_path / "copied")
    (tmp_path / "incomplete" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"incomplete/model.safetensors is missing"):
        verify(tmp_path / "incomplete")
