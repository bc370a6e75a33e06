"""Integers with float zero points: what is written computes and reads back bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hemorrhage.compress.solvers.grid import GroupSettings, Quantized
from hemorrhage.compress.solvers.packing import pack, store
from hemorrhage.models.checkpoint import load
from hemorrhage.models.engines import STORED, engine
from hemorrhage.models.formats import reader
from hemorrhage.models.formats.affine import AffineLinear, affine_linear
from hemorrhage.models.formats.storage import formatted_layers

ROWS, COLUMNS, WIDTH = 6, 40, 8


def quantized(bits: int, dtype: torch.dtype) -> Quantized:
    generator = torch.Generator().manual_seed(bits)
    half = 2 ** (bits - 1)
    codes = torch.randint(-half, half, (ROWS, COLUMNS), generator=generator, dtype=torch.int8)
    s, z = (torch.randn(ROWS, COLUMNS // WIDTH, generator=generator).to(dtype) for _ in range(2))
    return Quantized(codes, s, z)


def literal(codes: Tensor, s: Tensor, z: Tensor) -> Tensor:
    """``(W_q - z) s``, weight by weight."""
    W = torch.empty(codes.shape)
    for i in range(ROWS):
        for j in range(COLUMNS):
            group = j // WIDTH
            W[i, j] = (codes[i, j].float() - z[i, group].float()) * s[i, group].float()
    return W


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_written_is_read_bit_for_bit(tmp_path: Path, bits: int, dtype: torch.dtype) -> None:
    made = quantized(bits, dtype)
    assert made.zero is not None
    expected = literal(made.codes, made.scale, made.zero)
    layer = affine_linear(pack("layer", made, bits), bits, None)
    save_file({f"layer.{suffix}": value for suffix, value in layer.stored().items()}, tmp_path / "file")
    plain, layers = reader.read(load_file(tmp_path / "file"), None)
    assert not plain
    assert torch.equal(made.dense(), expected)
    for each in (layer, layers["layer"]):
        assert isinstance(each, AffineLinear)
        assert torch.equal(each.dense(), expected)
    x = torch.randn(3, COLUMNS)
    assert torch.equal(layers["layer"](x), x @ expected.T)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_take_their_bits_and_no_more(bits: int) -> None:
    made = quantized(bits, torch.bfloat16)
    stored = affine_linear(pack("layer", made, bits), bits, None).stored()
    groups = ROWS * COLUMNS // WIDTH
    assert {name: value.nbytes for name, value in stored.items()} == {
        "affine_packed": 4 * ROWS * -(-COLUMNS * bits // 32),
        "affine_scale": 2 * groups,
        "affine_zero_point": 2 * groups,
        "affine_shape": 16,
        "affine_bits": 8,
    }


@pytest.mark.parametrize(("zero", "name"), [(torch.float32, "affine"), (torch.int8, "packed"), (None, "packed")])
def test_the_zero_point_decides_on_the_format(tiny: Path, zero: torch.dtype | None, name: str) -> None:
    model = load(tiny)
    layer = "model.layers.1.self_attn.q_proj"
    codes = torch.randint(-8, 8, (64, 64), dtype=torch.int8)
    made = Quantized(codes, torch.ones(64, 1), None if zero is None else torch.ones(64, 1, dtype=zero))
    store(model, layer, made, GroupSettings(bits=4, group_size="channel"))
    found = formatted_layers(model)
    assert {each: form.storage_format for each, form in found.items()} == {layer: name}
    assert torch.equal(found[layer].dense(), made.dense())


def test_no_engine_reads_it() -> None:
    programs, why = engine(STORED["affine"])
    assert not programs
    assert "affine" in why
