"""GPTQ's packed layers are read as its papers' programs read them, number by number."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from auto_round_extension.torch import qlinear_torch, qlinear_torch_zp
from torch import Tensor

from hemorrhage.models.formats.gptq import MARKS, PARAMETERS, describe, read, read_published
from tests.models.formats.damage import refused

CONFIG: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}


def packed(codes: list[list[int]], bits: int) -> Tensor:
    """Codes [n][m], those of a row bit to bit into words of 32 bits, as strings: int32 [n, ceil(m · bits / 32)]."""
    rows = []
    for row in codes:
        stream = "".join(format(code, f"0{bits}b")[::-1] for code in row)
        stream += "0" * (-len(stream) % 32)
        words = [int(stream[at : at + 32][::-1], 2) for at in range(0, len(stream), 32)]
        rows.append([word - 2**32 if word >= 2**31 else word for word in words])
    return torch.tensor(rows, dtype=torch.int32)


def layer(
    bits: int, rows: int, columns: int, group_size: int, *, version: int = 1, act_order: bool = False, zero: int = 1
) -> tuple[dict[str, Tensor], Tensor]:
    """Tensors of a layer, and ``s (q - z)`` of each weight in Python's floats, rounded to float16.

    Zero points are from ``zero`` on.
    """
    generator = torch.Generator().manual_seed(bits + rows)
    size = columns if group_size == -1 else group_size
    groups = -(-columns // size)
    codes = torch.randint(2**bits, (rows, columns), generator=generator).tolist()
    zeros = torch.randint(zero, 2**bits, (groups, rows), generator=generator).tolist()
    scales = (torch.rand(groups, rows, generator=generator) + 0.01).half()
    of_column = torch.arange(columns) // size
    if act_order:
        of_column = of_column[torch.randperm(columns, generator=generator)]
    stored = {
        "qweight": packed(codes, bits).T.contiguous(),
        "qzeros": packed([[zero - (version == 1) for zero in row] for row in zeros], bits),
        "scales": scales,
        "g_idx": of_column.int(),
    }
    expected = [
        [float(scales[g, row]) * (codes[row][column] - zeros[g][row]) for column, g in enumerate(of_column.tolist())]
        for row in range(rows)
    ]
    return stored, torch.tensor(expected, dtype=torch.float64).half().float()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(
    ("rows", "columns", "group_size"), [(32, 64, 32), (64, 96, -1), (80, 80, 16), (172, 64, 32), (33, 70, 32)]
)
@pytest.mark.parametrize(("version", "act_order"), [(1, False), (1, True), (2, False), (2, True)])
def test_a_weight_is_its_scale_times_its_code_less_the_zero_point(
    bits: int, rows: int, columns: int, group_size: int, version: int, act_order: bool
) -> None:
    stored, expected = layer(bits, rows, columns, group_size, version=version, act_order=act_order)
    config = CONFIG | {"bits": bits, "group_size": group_size, "desc_act": act_order}
    config |= {"checkpoint_format": "gptq_v2"} if version == 2 else {}
    found = read_published(stored, config, "a")
    assert torch.equal(found.dense(), expected)
    assert (found.out_features, found.in_features) == (rows, columns)
    again = read(found.stored(), None)
    assert torch.equal(again.dense(), expected)
    x = torch.randn(3, columns, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(again(x), x @ expected.T)
    # As many bytes as theirs, and what the layer is: three numbers.
    assert sum(value.nbytes for name, value in found.stored().items() if name != PARAMETERS) == sum(
        value.nbytes for value in stored.values()
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("module", "version"), [(qlinear_torch_zp, 1), (qlinear_torch, 2)])
def test_what_auto_round_packs_is_what_auto_round_reads(bits: int, module: Any, version: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    linear = torch.nn.Linear(96, 64, bias=False)
    scales = torch.rand(64, 3, generator=generator) + 0.01
    zeros = torch.randint(1, 2**bits, (64, 3), generator=generator).float()
    codes = torch.randint(2**bits, (64, 96), generator=generator)
    groups = torch.arange(96) // 32
    linear.weight.data = (codes - zeros[:, groups]) * scales[:, groups]
    theirs = module.QuantLinear(bits, 32, 96, 64, bias=False)
    theirs.device = "cpu"
    theirs.pack(linear, scales, zeros.clone())
    stored = {name: value for name, value in theirs.state_dict().items() if name != "bias"}
    config = CONFIG | {"bits": bits, "checkpoint_format": "gptq_v2" if version == 2 else "gptq"}
    found = read_published(stored, config, "a").dense()
    assert torch.equal(found, theirs(torch.eye(96)).T)
    torch.testing.assert_close(found, linear.weight.data, rtol=1e-3, atol=0)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_zero_point_of_0_that_borrowed_from_its_neighbours_is_read_as_it_was(bits: int) -> None:
    # GPTQModel subtracts one from every code of a word at once, in int32.
    stored, expected = layer(bits, 64, 64, 32, version=2, zero=0)
    ones = sum(1 << shift for shift in range(0, 32, bits))
    stored["qzeros"] -= ones - 2**32 if ones >= 2**31 else ones
    assert torch.equal(read_published(stored, CONFIG | {"bits": bits}, "a").dense(), expected)


@pytest.mark.parametrize("group_size", [32, -1])
def test_groups_follow_each_other_where_no_index_says_otherwise(group_size: int) -> None:
    stored, expected = layer(4, 32, 96, group_size)
    del stored["g_idx"]
    assert torch.equal(read_published(stored, CONFIG | {"group_size": group_size}, "a").dense(), expected)
    # Without it in the configuration the scales say it.
    assert torch.equal(read_published(stored, {"bits": 4}, "a").dense(), expected)


def test_the_last_group_may_be_shorter() -> None:
    stored, expected = layer(4, 32, 80, 32)
    del stored["g_idx"]
    assert torch.equal(read_published(stored, CONFIG, "a").dense(), expected)
    with pytest.raises(ValueError, match="3 groups do not divide 80 columns"):
        read_published(stored, {"bits": 4}, "a")


def test_bits_are_those_of_the_layer_where_dynamic_gives_it_others() -> None:
    stored, expected = layer(8, 64, 64, 16)
    config = CONFIG | {"dynamic": {"+:.*down_proj": {"bits": 8, "group_size": 16}, "-:.*q_proj": {}}}
    assert torch.equal(read_published(stored, config, "a").dense(), expected)
    assert describe(config) == "GPTQ, 4 bits, groups of 32, some layers otherwise"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_are_rounded_to_the_type_of_the_scales(dtype: torch.dtype) -> None:
    stored, _ = layer(4, 32, 32, 32)
    stored["scales"] = stored["scales"].to(dtype)
    exact = read_published(stored | {"scales": stored["scales"].float()}, CONFIG, "a").dense()
    assert torch.equal(read_published(stored, CONFIG, "a").dense(), exact.to(dtype).float())


def broken(**changes: Tensor) -> dict[str, Tensor]:
    return layer(4, 64, 64, 32)[0] | changes


@pytest.mark.parametrize(
    ("stored", "config", "line"),
    [
        (broken(had=torch.zeros(1)), {}, "has the tensor had, which this format does not have"),
        (broken(g_idx=torch.full((64,), 2, dtype=torch.int32)), {}, "g_idx has groups 2 to 2, and there are 2"),
        (broken(g_idx=torch.full((64,), -1, dtype=torch.int32)), {}, "g_idx has groups -1 to -1"),
        (broken(g_idx=torch.zeros(64, dtype=torch.int32)), {}, "g_idx puts 64 columns into group 0 of 32"),
        (broken(scales=torch.full((2, 64), float("nan"))), {}, "scales has numbers that are not finite"),
        (broken(scales=torch.ones(2, 63)), {}, "qweight has the shape [8, 64], not [8, 63]"),
        (broken(scales=torch.ones(3, 64)), {}, "qzeros has the shape [2, 8], not [3, 8]"),
        (broken(qweight=torch.zeros(7, 64, dtype=torch.int32)), {}, "are not of 4 bits"),
        (broken(qweight=torch.zeros(8, 64)), {}, "qweight is of type float32, not int32"),
        (broken(), {"is_marlin_format": True}, "is packed for Marlin"),
        (broken(), {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin' is not read"),
        (broken(), {"checkpoint_format": "gptq_p"}, "checkpoint_format 'gptq_p' is not read"),
        (broken(), {"pack_dtype": "int16"}, "pack_dtype 'int16' is not read"),
        (broken(), {"rotation": "hadamard"}, "rotates its inputs (rotation)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(stored: dict[str, Tensor], config: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)) as problem:
        read_published(stored, CONFIG | config, "a")
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("name", ["qweight", "qzeros", "scales"])
def test_a_missing_tensor_is_named(name: str) -> None:
    stored = {key: value for key, value in broken().items() if key != name}
    with pytest.raises(ValueError, match=f"lacks the tensor {name}"):
        read_published(stored, CONFIG, "a")


def test_damaged_tensors_are_refused_or_give_a_weight() -> None:
    assert refused(lambda tensors: read_published(tensors, CONFIG, "a"), broken(), 120) > 60


def test_the_format_in_words() -> None:
    assert describe(CONFIG) == "GPTQ, 4 bits, groups of 32"
    assert describe(CONFIG | {"group_size": -1, "desc_act": True}) == "GPTQ, 4 bits, a scale a row, act-order"
    assert describe({"bits": "four"}) == "GPTQ, None bits, a scale a row"
    assert MARKS == ("qweight",)
