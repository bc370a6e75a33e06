"""MLX's layers are read as MLX reads them, number by number."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from hemorrhage.models.formats.mlx import MODES, WIDTHS, describe, read, read_published
from tests.models.formats.damage import damaged, refused
from tests.models.formats.test_gptq import packed

CONFIG: dict[str, Any] = {"bits": 4, "group_size": 32}


def layer(bits: int, rows: int, columns: int, size: int, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor]:
    """Tensors of a layer, and ``q scale + bias`` of each weight, each step in ``dtype``."""
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(2**bits, (rows, columns), generator=generator)
    scales = (torch.rand(rows, columns // size, generator=generator) - 0.5).to(dtype)
    biases = torch.randn(rows, columns // size, generator=generator).to(dtype)
    expected = torch.empty(rows, columns, dtype=dtype)
    for row in range(rows):
        for column in range(columns):
            q = codes[row, column].to(dtype)
            expected[row, column] = q * scales[row, column // size] + biases[row, column // size]
    words = packed(codes.tolist(), bits).view(torch.uint32)
    return {"weight": words, "scales": scales, "biases": biases}, expected.float()


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_weight_is_its_code_times_its_scale_and_its_bias(bits: int, dtype: torch.dtype) -> None:
    stored, expected = layer(bits, 5, 96, 32, dtype)
    found = read_published(stored, {"bits": bits, "group_size": 32}, "a")
    assert torch.equal(found.dense(), expected)
    assert (found.out_features, found.in_features) == (5, 96)
    assert torch.equal(read(found.stored(), None).dense(), expected)
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found(x), x @ expected.T)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_what_mlx_quantizes_is_read_bit_for_bit(bits: int, dtype: str) -> None:
    mx = pytest.importorskip("mlx.core")

    weight = mx.random.normal((48, 192), key=mx.random.key(bits)).astype(getattr(mx, dtype))
    words, scales, biases = mx.quantize(weight, group_size=64, bits=bits)
    stored = {"weight": tensor(mx, words), "scales": tensor(mx, scales), "biases": tensor(mx, biases)}
    found = read_published(stored, {"bits": bits, "group_size": 64}, "a")
    theirs = mx.dequantize(words, scales, biases, group_size=64, bits=bits)
    assert torch.equal(found.dense(), tensor(mx, theirs).float())


def tensor(mx: Any, value: Any) -> Tensor:
    """MLX's array as torch's tensor, bit for bit."""
    raw = torch.frombuffer(bytearray(memoryview(value.view(mx.uint8))), dtype=torch.uint8)
    return raw.view(getattr(torch, str(value.dtype).rpartition(".")[2])).view(value.shape)


E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def e4m3(octet: int) -> float:
    sign, exponent, mantissa = octet >> 7, octet >> 3 & 15, octet & 7
    size = (8 + mantissa) * 2.0 ** (exponent - 10) if exponent else mantissa * 2.0**-9
    return -size if sign else size


def floats(mode: str) -> tuple[dict[str, Tensor], Tensor]:
    """Tensors of a [3, 64] layer of small floats, and its weight by the definition of OCP's microscaling formats."""
    generator = torch.Generator().manual_seed(0)
    bits, size = MODES[mode]
    codes = torch.randint(2**bits - (bits == 8) * 130, (3, 64), generator=generator).tolist()
    scales = torch.randint(100, 126, (3, 64 // size), generator=generator, dtype=torch.uint8)
    weight = torch.empty(3, 64)
    for row in range(3):
        for column in range(64):
            code, scale = codes[row][column], int(scales[row, column // size])
            value = e4m3(code) if bits == 8 else E2M1[code & 7] * (-1 if code & 8 else 1)
            weight[row, column] = value * (e4m3(scale) if mode == "nvfp4" else 2.0 ** (scale - 127))
    return {"weight": packed(codes, bits).view(torch.uint32), "scales": scales}, weight


@pytest.mark.parametrize("mode", MODES)
def test_small_floats_times_their_scale(mode: str) -> None:
    stored, expected = floats(mode)
    config = {"bits": MODES[mode][0], "group_size": MODES[mode][1], "mode": mode}
    layer = read_published(stored, config, "a")
    assert torch.equal(layer.dense(), expected)
    again = read(layer.stored(), None)
    assert torch.equal(again.dense(), expected)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(again(x), x @ expected.T)
    assert describe(config) == f"MLX {mode.upper()}, {MODES[mode][0]} bits, groups of {MODES[mode][1]}"
    nothing = torch.full_like(stored["scales"], 255)
    with pytest.raises(ValueError, match="codes that stand for no number"):
        read_published(stored | {"scales": nothing}, config, "a")
    refused = 0
    for tensors in damaged(stored, 60):
        try:
            assert read_published(tensors, config, "a").dense().isfinite().all()
        except ValueError:
            refused += 1
    assert refused > 25


@pytest.mark.parametrize("mode", MODES)
def test_the_small_floats_that_mlx_writes_are_read_bit_for_bit(mode: str) -> None:
    mx = pytest.importorskip("mlx.core")
    weight = mx.random.normal((48, 192), key=mx.random.key(0)).astype(mx.bfloat16)
    words, scales = mx.quantize(weight, mode=mode)
    layer = read_published({"weight": tensor(mx, words), "scales": tensor(mx, scales)}, {"mode": mode}, "a")
    assert torch.equal(layer.dense(), tensor(mx, mx.dequantize(words, scales, mode=mode)).float())


def test_a_layer_may_have_settings_of_its_own() -> None:
    stored, expected = layer(8, 5, 64, 64, torch.float16)
    config = CONFIG | {"model.a": {"bits": 8, "group_size": 64}, "model.b": False}
    assert torch.equal(read_published(stored, config, "model.a").dense(), expected)
    assert describe(config) == "MLX, 4 bits, groups of 32, some layers otherwise"
    assert describe(CONFIG) == "MLX, 4 bits, groups of 32"


def broken(**changes: Tensor) -> dict[str, Tensor]:
    return layer(4, 5, 96, 32, torch.float16)[0] | changes


@pytest.mark.parametrize(
    ("stored", "config", "line"),
    [
        (broken(), {"bits": 7}, "MLX's bits 7 and group_size 32 are not of 1, 2, 3, 4, 5, 6, 8 bits"),
        (broken(), {"group_size": None}, "MLX's bits 4 and group_size None"),
        (broken(), {"mode": "fp6"}, "MLX's mode 'fp6' is not read; affine, mxfp4, nvfp4, mxfp8 are"),
        (broken(), {"mode": "mxfp4"}, "has the tensor biases, which this format does not have"),
        (broken(), {"bits": 8}, "weight has the shape [5, 12], not [5, 24]"),
        (broken(), {"group_size": 64}, "weight has the shape [5, 12], not [5, 24]"),
        (broken(), {"group_size": 33}, "weight has the shape [5, 12], not [5, 13]"),
        (broken(biases=torch.ones(5, 4)), {}, "biases has the shape [5, 4], not [5, 3]"),
        (broken(biases=torch.ones(5, 3)), {}, "scales and biases are of two types"),
        (broken(weight=torch.zeros(5, 12, dtype=torch.int32)), {}, "weight is of type int32, not uint32"),
        (broken(scales=torch.full((5, 3), float("nan"))), {}, "scales has numbers that are not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(stored: dict[str, Tensor], config: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)) as problem:
        read_published(stored, CONFIG | config, "a")
    assert "\n" not in str(problem.value)


def test_damaged_tensors_are_refused_or_give_a_weight() -> None:
    assert refused(lambda tensors: read_published(tensors, CONFIG, "a"), broken(), 90) > 45
