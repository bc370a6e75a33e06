"""Tensors mapped from their files, and states put aside."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hemorrhage.models import stream
from hemorrhage.models.stream import Aside, TensorFile, WriteBehind, map_tensor, tensor_locations


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


def test_a_file_that_is_cut_off_is_no_checkpoint(base: Path, tmp_path: Path) -> None:
    whole = (base / "model.safetensors").read_bytes()
    for length in (4, 100, len(whole) - 1):
        (tmp_path / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is truncated or not a safetensors file"):
            tensor_locations(tmp_path / "model.safetensors")


def test_a_mapped_tensor_is_read_wherever_it_begins_and_never_written_back(tmp_path: Path) -> None:
    file = tmp_path / "numbers"
    for offset in (0, 3, 4096, 5000):
        file.write_bytes(bytes(offset) + torch.arange(1000.0).numpy().tobytes())
        found = map_tensor(file, offset, (10, 100), torch.float32)
        assert torch.equal(found, torch.arange(1000.0).view(10, 100))
        before = file.read_bytes()
        found.zero_()
        assert file.read_bytes() == before


def test_every_type_is_written_and_read_as_the_library_has_it(tmp_path: Path) -> None:
    dtypes = {name: getattr(torch, name) for name in stream.DTYPES}
    octets = torch.arange(48, dtype=torch.uint8).remainder(2)
    values = {name: octets.clone().view(dtype).unflatten(0, (2, -1)) for name, dtype in dtypes.items()}
    shapes = {name: value.shape for name, value in values.items()}
    with TensorFile(tmp_path / "own.safetensors", shapes, dtypes, {"format": "pt"}) as file:
        file.write(values.values())
    save_file(values, tmp_path / "theirs.safetensors", {"format": "pt"})
    own = load_file(tmp_path / "own.safetensors")
    locations = tensor_locations(tmp_path / "theirs.safetensors")
    for name, value in values.items():
        for found in (own[name], locations[name].tensor()):
            assert (found.dtype, found.shape) == (value.dtype, value.shape)
            assert torch.equal(found.view(torch.uint8), value.view(torch.uint8))


def test_what_is_written_behind_is_in_order_and_no_more_waits_than_there_is_room_for(tmp_path: Path) -> None:
    pieces = [torch.full((4,), float(number)) for number in range(6)]
    arrived = [threading.Event() for _ in pieces]
    with (
        TensorFile(tmp_path / "x.safetensors", {"x": (24,)}, torch.float32, {}) as file,
        WriteBehind(file, room=3 * pieces[0].nbytes) as behind,
    ):
        for number, piece in enumerate(pieces):
            if number >= 3:
                arrived[number - 3].set()
            behind._later(piece, partial(arrived[number].wait, 60))
        for event in arrived:
            event.set()
    assert torch.equal(load_file(tmp_path / "x.safetensors")["x"], torch.cat(pieces))


def test_an_error_of_what_is_written_behind_is_the_writers(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError("disk full")

    with (
        pytest.raises(OSError, match="disk full"),
        TensorFile(tmp_path / "x.safetensors", {"x": (4,)}, torch.float32, {}) as file,
        WriteBehind(file) as behind,
    ):
        behind._later(torch.zeros(4), fail)
