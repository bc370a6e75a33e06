"""Layers on a grid as GGUF blocks: read back by the gguf package."""

from __future__ import annotations

import pytest
import torch
from gguf import GGMLQuantizationType, quants
from torch import Tensor

from hemorrhage.compress.solvers.grid import Quantized
from hemorrhage.compress.solvers.packing import pack
from hemorrhage.models.formats.affine import affine_linear
from hemorrhage.models.formats.compressed import CompressedLinear
from hemorrhage.models.formats.config import QuantizationScheme
from hemorrhage.models.formats.floats import FloatLinear
from hemorrhage.models.formats.gguf_exact import block_type, blocks
from hemorrhage.models.formats.int8 import Int8Linear
from hemorrhage.models.formats.mxfp4 import MicroscaledLinear
from hemorrhage.models.formats.packed import PackedLinear
from hemorrhage.models.formats.storage import FormattedLinear

ROWS, COLUMNS = 6, 192


def made(bits: int, group: int, dtype: torch.dtype, symmetric: bool, is_whole: bool = True) -> FormattedLinear:
    """A layer of random codes, all of them among them."""
    generator = torch.Generator().manual_seed(bits + group)
    half = 2 ** (bits - 1)
    codes = torch.randint(-half, half, (ROWS, COLUMNS), generator=generator, dtype=torch.int8)
    scale = (torch.rand(ROWS, COLUMNS // group, generator=generator) + 0.01).mul(0.1).to(dtype)
    zero = torch.randint(-half, half, scale.shape, generator=generator, dtype=torch.int8)
    if not is_whole:
        return affine_linear(pack("layer", Quantized(codes, scale, (zero + 0.3).to(dtype)), bits), bits, None)
    packed = pack("layer", Quantized(codes, scale, None if symmetric else zero), bits)
    scheme: QuantizationScheme = {
        "weights": {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": group}
    }
    return PackedLinear(packed, scheme, None)


def read_back(layer: FormattedLinear) -> Tensor:
    kind = GGMLQuantizationType[block_type(layer).upper()]
    return torch.from_numpy(quants.dequantize(blocks(layer).numpy(), kind))


SYMMETRIC = {2: "q4_0", 3: "q4_0", 4: "q4_0", 5: "q5_0", 6: "q8_0", 7: "q8_0", 8: "q8_0"}
ASYMMETRIC = {2: "q4_0", 3: "q4_0", 4: "q4_1", 5: "q5_1", 6: "q8_0", 7: "q8_0"}


@pytest.mark.parametrize(("bits", "kind"), SYMMETRIC.items())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("group", [32, 64, 192])
def test_symmetric_integers_are_read_back_as_they_are(bits: int, kind: str, dtype: torch.dtype, group: int) -> None:
    layer = made(bits, group, dtype, symmetric=True)
    assert block_type(layer) == kind
    assert torch.equal(read_back(layer), layer.dense())


@pytest.mark.parametrize(("bits", "kind"), ASYMMETRIC.items())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("group", [32, 96])
def test_integers_with_zero_points_differ_by_the_rounding_of_the_minimum(
    bits: int, kind: str, dtype: torch.dtype, group: int
) -> None:
    layer = made(bits, group, dtype, symmetric=False)
    assert block_type(layer) == kind
    difference = (read_back(layer) - layer.dense()).abs()
    if kind.endswith("_0"):
        assert not difference.any()
    # A minimum is at most 2^bits scales.
    minimum = layer.stored()["weight_scale"].float().repeat_interleave(group, dim=1) * 2**bits
    assert (difference <= minimum * 2**-11).all()


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, True), (5, False), (3, False)])
def test_float32_scales_are_rounded_to_float16(bits: int, symmetric: bool) -> None:
    layer = made(bits, 32, torch.float32, symmetric)
    scale = layer.stored()["weight_scale"].repeat_interleave(32, dim=1)
    difference = (read_back(layer) - layer.dense()).abs()
    assert difference.any()
    minimum = scale * 2**bits if block_type(layer).endswith("_1") else 0
    assert (difference <= (layer.dense().abs() + minimum) * 2**-11 * 1.001).all()


@pytest.mark.parametrize(("bits", "kind"), [(2, "q4_1"), (4, "q4_1"), (5, "q5_1")])
def test_float_zero_points_are_minima(bits: int, kind: str) -> None:
    layer = made(bits, 64, torch.bfloat16, symmetric=False, is_whole=False)
    assert block_type(layer) == kind
    minimum = layer.stored()["affine_scale"].float().repeat_interleave(64, dim=1) * (2**bits + 1)
    assert ((read_back(layer) - layer.dense()).abs() <= minimum * 2**-11).all()


def test_bytes_with_a_scale_for_a_row_are_q8_0() -> None:
    codes = torch.randint(-128, 128, (ROWS, 64), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    scale = torch.linspace(0.01, 0.1, ROWS).bfloat16().unsqueeze(1)
    scheme: QuantizationScheme = {"weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}}
    layer = Int8Linear({"weight": codes, "weight_scale": scale}, scheme, None)
    assert block_type(layer) == "q8_0"
    assert torch.equal(read_back(layer), layer.dense())


def test_mxfp4_keeps_its_codes_and_exponents() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randint(0, 256, (ROWS, 3, 16), generator=generator, dtype=torch.uint8)
    exponents = torch.randint(100, 140, (ROWS, 3), generator=generator, dtype=torch.uint8)
    scheme: QuantizationScheme = {
        "weights": {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "group", "group_size": 32}
    }
    published = MicroscaledLinear({"mx_blocks": pairs, "mx_scales": exponents})
    tensors = {"weight_packed": pairs.flatten(1), "weight_scale": exponents}
    layers: tuple[FormattedLinear, ...] = (
        published,
        CompressedLinear(tensors, scheme),
        FloatLinear(tensors, scheme, None),
    )
    for layer in layers:
        assert block_type(layer) == "mxfp4"
        assert torch.equal(read_back(layer), layer.dense())


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (made(4, 16, torch.bfloat16, symmetric=True), "groups of 16 weights are no multiple of GGUF's blocks of 32"),
        (made(4, 48, torch.bfloat16, symmetric=True), "groups of 48 weights are no multiple"),
        (made(8, 32, torch.bfloat16, symmetric=False), "no GGUF type has whole numbers of 8 bits with zero points"),
        (made(6, 32, torch.bfloat16, False, is_whole=False), "no GGUF type has whole numbers of 6 bits with zero"),
        (
            FloatLinear(
                {"weight": torch.zeros(2, 32).to(torch.float8_e4m3fn), "weight_scale": torch.ones(2, 1)},
                {"weights": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}},
                None,
            ),
            r"no GGUF type has the numbers of its form \(floats\)",
        ),
    ],
)
def test_what_fits_no_type_is_named(layer: FormattedLinear, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        block_type(layer)


def test_scales_beyond_float16_are_refused() -> None:
    layer = made(4, 32, torch.float32, symmetric=True)
    layer.stored()["weight_scale"][0, 0] = 1e5
    with pytest.raises(ValueError, match=r"a scale of 1e\+05 is greater than float16's numbers"):
        blocks(layer)
