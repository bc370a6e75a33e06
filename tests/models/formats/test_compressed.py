"""Layers of compressed-tensors read back bit for bit as the library itself reads them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationScheme
from torch import Tensor, nn

from hemorrhage.models.formats import compressed, reader
from hemorrhage.models.formats.compressed import CompressedLinear
from hemorrhage.models.formats.packed import unpack
from tests.compressed import FORMATS, columns_of
from tests.compressed import compressed as compress


def weight_of(name: str, dtype: torch.dtype, rows: int = 50) -> Tensor:
    weight = torch.randn(rows, columns_of(name), generator=torch.Generator().manual_seed(1))
    return (weight * torch.logspace(-2, 1, rows)[:, None]).to(dtype)


def scheme_in_words(scheme: QuantizationScheme, stored: dict[str, Tensor]) -> Any:
    """The group as the reader of published files hands it on."""
    words = json.loads(scheme.model_dump_json())
    words["weights"] |= {"scale_dtype": words["weights"]["scale_dtype"] or str(stored["weight_scale"].dtype)}
    return words


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FORMATS)
def test_the_dense_weight_is_what_the_library_decompresses(name: str, dtype: torch.dtype) -> None:
    stored, scheme, theirs = compress(name, weight_of(name, dtype))
    words = scheme_in_words(scheme, stored)
    layer = CompressedLinear(stored, words)
    assert torch.equal(layer.dense(), theirs.float())
    x = torch.randn(3, layer.in_features)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, theirs.float()))
    # From a checkpoint of the bench, under the same names.
    tensors = {f"layers.0.{suffix}": value for suffix, value in layer.stored().items()}
    quantization: Any = {"config_groups": {"all": {**words, "targets": ["Linear"]}}}
    plain, layers = reader.read(tensors, quantization)
    assert not plain
    assert isinstance(layers["layers.0"], CompressedLinear)
    assert torch.equal(layers["layers.0"].dense(), layer.dense())


def test_a_large_weight_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    stored, scheme, theirs = compress("pack asymmetric", weight_of("pack asymmetric", torch.bfloat16))
    monkeypatch.setattr("hemorrhage.models.formats.dequantized.rows_at_once", lambda _columns: 7)
    assert torch.equal(CompressedLinear(stored, scheme_in_words(scheme, stored)).dense(), theirs.float())


@pytest.mark.parametrize("name", ["pack group", "pack asymmetric"])
def test_words_without_weight_shape_have_the_columns_of_their_groups(name: str) -> None:
    stored, scheme, theirs = compress(name, weight_of(name, torch.bfloat16))
    del stored["weight_shape"]
    layer = CompressedLinear(stored, scheme_in_words(scheme, stored))
    assert torch.equal(layer.dense(), theirs.float())
    # Others need it to read what the bench writes.
    assert layer.stored()["weight_shape"].tolist() == [50, 80]


def test_act_order_gives_each_column_the_scale_of_its_group() -> None:
    stored, scheme, _ = compress("pack asymmetric", weight_of("pack asymmetric", torch.float32))
    order = torch.randperm(80, generator=torch.Generator().manual_seed(2)) // 16
    words = scheme_in_words(scheme, stored)
    found = CompressedLinear({**stored, "weight_g_idx": order.int()}, words).dense()
    in_order = CompressedLinear(stored, words)
    codes = unpack(stored["weight_packed"], 4, 80).float()
    zero = compressed.zero_points(stored, words["weights"], 50)
    assert zero is not None
    for column in range(80):
        group = int(order[column])
        expected = (codes[:, column] - zero[:, group]) * stored["weight_scale"][:, group]
        assert torch.equal(found[:, column], expected)
    none = torch.full((80,), -1, dtype=torch.int32)
    assert torch.equal(CompressedLinear({**stored, "weight_g_idx": none}, words).dense(), in_order.dense())


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_words_of_older_releases_hold_whole_codes_alone(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (4, 320), generator=generator)
    per_word = 32 // bits
    words = [
        [
            sum(code << place * bits for place, code in enumerate(row[at : at + per_word]))
            for at in range(0, 320, per_word)
        ]
        for row in codes.tolist()
    ]
    stored = {
        "weight_packed": torch.tensor(words, dtype=torch.int64).view(torch.int32)[:, ::2],
        "weight_scale": torch.ones(4, 1),
        "weight_shape": torch.tensor([4, 320]),
    }
    scheme: Any = {"weights": {"num_bits": bits, "type": "int", "strategy": "channel", "scale_dtype": "torch.float32"}}
    assert torch.equal(CompressedLinear(stored, scheme).dense(), codes.float() - 2 ** (bits - 1))


def test_zero_points_of_older_releases_are_not_packed() -> None:
    stored, scheme, theirs = compress("pack asymmetric", weight_of("pack asymmetric", torch.float32))
    words = scheme_in_words(scheme, stored)
    zero = compressed.zero_points(stored, words["weights"], 50)
    assert zero is not None
    layer = CompressedLinear({**stored, "weight_zero_point": zero.contiguous()}, words)
    assert torch.equal(layer.dense(), theirs)


NAN = torch.tensor(127, dtype=torch.uint8).view(torch.float8_e4m3fn)

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("pack group", {"weight_packed": None}, "needs either weight or weight_packed"),
    ("pack group", {"weight": torch.zeros(50, 80, dtype=torch.int8)}, "needs either weight or weight_packed"),
    ("pack group", {"weight_scale": None}, "weight_scale is missing"),
    ("pack group", {"strange": torch.zeros(1)}, "unexpected tensor strange"),
    ("pack group", {"weight_shape": torch.tensor([50, 81])}, "81 columns of 4 bits do not fit rows of 10"),
    ("pack group", {"weight_shape": torch.tensor([50, 800])}, "800 columns of 4 bits do not fit rows of 10"),
    ("pack group", {"weight_shape": torch.tensor([49, 80])}, r"weight_shape \[49, 80\] does not fit 50 rows"),
    ("pack group", {"weight_shape": torch.tensor([50, -80])}, "-80 columns of 4 bits do not fit"),
    ("pack group", {"weight_scale": torch.ones(50, 4)}, r"the shape \[50, 4\], and \[50, 5\] fits"),
    ("pack group", {"weight_scale": torch.full((50, 5), torch.nan)}, "weight_scale is not finite"),
    ("pack group", {"weight_scale": torch.ones(50, 5, dtype=torch.int64)}, "weight_scale of type torch.int64"),
    ("pack group", {"weight_packed": torch.zeros(50, 10)}, "4-bit int weights of type torch.float32"),
    ("pack group", {"weight_packed": torch.zeros(2, 5, 5, dtype=torch.int32)}, "two dimensions are read"),
    ("pack group", {"weight_g_idx": torch.arange(80) // 8}, "names a group that is not among the 5"),
    ("pack group", {"weight_g_idx": torch.zeros(80, dtype=torch.int32)}, "more than 16 columns: groups overlap"),
    ("pack group", {"weight_g_idx": torch.arange(79) // 16}, r"weight_g_idx has the shape \[79\]"),
    ("pack group", {"weight_g_idx": torch.full((80,), -7)}, "names a group that is not among"),
    ("pack asymmetric", {"weight_zero_point": None}, "weight_zero_point is missing"),
    ("pack asymmetric", {"weight_zero_point": torch.zeros(6, 5, dtype=torch.int32)}, "weight_zero_point of shape"),
    ("int channel", {"weight": torch.zeros(50, 77, dtype=torch.uint8)}, "8-bit int weights of type torch.uint8"),
    ("int channel", {"weight_shape": torch.tensor([50, 78])}, "weight_shape .* is not that of the weight"),
    ("float block", {"weight_scale": torch.ones(3, 3)}, r"\[4, 3\] fits the weight"),
    ("float channel", {"weight": NAN.expand(50, 77).contiguous()}, "weight has a NaN"),
    ("nvfp4", {"weight_global_scale": torch.zeros(1)}, "weight_global_scale is not one finite number above 0"),
    ("mxfp4", {"weight_scale": torch.full((50, 3), 255, dtype=torch.uint8)}, "weight_scale is not finite"),
]


@pytest.mark.parametrize(("name", "changes", "message"), WRONG)
def test_tensors_that_do_not_fit_are_one_clear_line(name: str, changes: dict[str, Any], message: str) -> None:
    stored, scheme, _ = compress(name, weight_of(name, torch.float32))
    words = scheme_in_words(scheme, stored)
    tensors = {suffix: value for suffix, value in {**stored, **changes}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        CompressedLinear(tensors, words)


def test_a_group_is_needed_and_its_arguments_are_known() -> None:
    stored, scheme, _ = compress("float block", weight_of("float block", torch.float32))
    with pytest.raises(ValueError, match="without a group"):
        compressed.read(stored, None)
    words = scheme_in_words(scheme, stored)
    words["weights"]["block_structure"] = [16]
    with pytest.raises(ValueError, match=r"block_structure \[16\] is not two positive numbers"):
        CompressedLinear(stored, words)
    words["weights"]["strategy"] = "attn_head"
    with pytest.raises(ValueError, match="strategy attn_head of weights is unknown"):
        CompressedLinear(stored, words)
