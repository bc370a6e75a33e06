"""AWQ's packed layers are read as AutoAWQ reads them, number by number."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from hemorrhage.models.formats.awq import MARKS, describe, read, read_published
from tests.models.formats.damage import refused

CONFIG: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""AutoAWQ's AWQ_ORDER: which of eight rows is packed first."""


def packed(codes: list[list[int]]) -> Tensor:
    """Codes [n][m] by AutoAWQ's from_linear: int32 [n, m / 8]."""
    rows = []
    for row in codes:
        words = []
        for start in range(0, len(row), 8):
            word = sum(row[start + place] << 4 * position for position, place in enumerate(ORDER))
            words.append(word - 2**32 if word >= 2**31 else word)
        rows.append(words)
    return torch.tensor(rows, dtype=torch.int32)


def layer(rows: int, columns: int, group_size: int) -> tuple[dict[str, Tensor], Tensor]:
    """Tensors of a layer, and ``(q - z) s`` of each weight in Python's floats, rounded to float16."""
    generator = torch.Generator().manual_seed(rows)
    groups = columns // group_size
    codes = torch.randint(16, (columns, rows), generator=generator).tolist()
    zeros = torch.randint(16, (groups, rows), generator=generator).tolist()
    scales = (torch.rand(groups, rows, generator=generator) + 0.01).half()
    expected = [
        [
            (codes[column][row] - zeros[column // group_size][row]) * float(scales[column // group_size, row])
            for column in range(columns)
        ]
        for row in range(rows)
    ]
    stored = {"qweight": packed(codes), "qzeros": packed(zeros), "scales": scales}
    return stored, torch.tensor(expected, dtype=torch.float64).half().float()


@pytest.mark.parametrize(("rows", "columns", "group_size"), [(16, 64, 32), (80, 80, 16), (8, 172, 172), (64, 70, 35)])
def test_a_weight_is_its_code_less_the_zero_point_times_its_scale(rows: int, columns: int, group_size: int) -> None:
    stored, expected = layer(rows, columns, group_size)
    found = read_published(stored, CONFIG | {"group_size": group_size}, "a")
    assert torch.equal(found.dense(), expected)
    assert (found.out_features, found.in_features) == (rows, columns)
    assert torch.equal(read(found.stored(), None).dense(), expected)
    x = torch.randn(3, columns, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found(x), x @ expected.T)
    assert sum(value.nbytes for value in found.stored().values()) == sum(value.nbytes for value in stored.values())


def test_a_large_layer_is_read_in_pieces_of_whole_words(monkeypatch: pytest.MonkeyPatch) -> None:
    stored, expected = layer(80, 64, 32)
    monkeypatch.setattr("hemorrhage.models.stream.PIECE", 64 * 11)
    assert torch.equal(read_published(stored, CONFIG, "a").dense(), expected)


def test_the_older_names_of_the_configuration_are_read() -> None:
    stored, expected = layer(16, 64, 32)
    older = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
    assert torch.equal(read_published(stored, older, "a").dense(), expected)
    assert describe(older) == describe(CONFIG) == "AWQ, 4 bits, groups of 32"


def broken(**changes: Tensor) -> dict[str, Tensor]:
    return layer(16, 64, 32)[0] | changes


@pytest.mark.parametrize(
    ("stored", "config", "line"),
    [
        (broken(), {"version": "gemv"}, "AWQ's version 'gemv' packs in another order, which is not read"),
        (broken(), {"version": "gemv_fast"}, "version 'gemv_fast'"),
        (broken(), {"bits": 8}, "AWQ with 8 bits is not read"),
        (broken(g_idx=torch.zeros(64)), {}, "has the tensor g_idx, which this format does not have"),
        (broken(scales=torch.ones(2, 24)), {}, "qweight has the shape [64, 2], not [64, 3]"),
        (broken(scales=torch.ones(3, 16)), {}, "qzeros has the shape [2, 2], not [3, 2]"),
        (broken(scales=torch.ones(2, 17)), {}, "do not divide a weight of 17 x 64"),
        (broken(qweight=torch.zeros(63, 2, dtype=torch.int32)), {}, "do not divide a weight of 16 x 63"),
        (broken(scales=torch.full((2, 16), float("inf"))), {}, "scales has numbers that are not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(stored: dict[str, Tensor], config: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)) as problem:
        read_published(stored, CONFIG | config, "a")
    assert "\n" not in str(problem.value)


def test_damaged_tensors_are_refused_or_give_a_weight() -> None:
    assert refused(lambda tensors: read_published(tensors, CONFIG, "a"), broken(), 90) > 45
    assert MARKS == ("qweight",)
