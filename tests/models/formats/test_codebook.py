"""4-bit codes of a table, read number by number."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from hemorrhage.models.formats.codebook import STATE, TABLES, read, spread

ROWS, COLUMNS, BLOCK = 3, 10, 8


def stored(kind: str, dtype: str = "float32") -> tuple[dict[str, torch.Tensor], list[int], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(16, (ROWS * COLUMNS,), generator=generator, dtype=torch.uint8)
    absmax = torch.rand(-(-ROWS * COLUMNS // BLOCK), generator=generator)
    state = {"shape": [ROWS, COLUMNS], "blocksize": BLOCK, "dtype": dtype}
    tensors = {
        "weight": (codes[0::2] * 16 + codes[1::2])[:, None],
        "weight.quant_map": torch.tensor(TABLES[kind]),
        "weight.absmax": absmax,
        f"{STATE}{kind}": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }
    return tensors, codes.tolist(), absmax


@pytest.mark.parametrize("kind", TABLES)
def test_a_weight_is_its_code_in_the_table_times_the_absmax_of_its_block(kind: str) -> None:
    tensors, codes, absmax = stored(kind)
    layer = read(tensors, None)
    expected = [TABLES[kind][code] * float(absmax[place // BLOCK]) for place, code in enumerate(codes)]
    torch.testing.assert_close(layer.dense(), torch.tensor(expected).view(ROWS, COLUMNS))
    assert layer.stored() is tensors
    x = torch.randn(2, COLUMNS, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x), x @ layer.dense().T)


def test_weights_are_rounded_to_the_dtype_that_was_quantized() -> None:
    exact, rounded = (read(stored("nf4", dtype)[0], None).dense() for dtype in ("float32", "bfloat16"))
    assert torch.equal(rounded, exact.bfloat16().float())
    assert not torch.equal(rounded, exact)


def test_absmax_may_be_coded_itself() -> None:
    tensors, codes, _ = stored("nf4")
    table = torch.linspace(-1, 1, 256)
    coded = torch.tensor([0, 255, 128, 77], dtype=torch.uint8)
    state: dict[str, Any] = {
        "shape": [ROWS, COLUMNS], "blocksize": BLOCK, "dtype": "float32", "nested_blocksize": 2, "nested_offset": 0.5
    }  # fmt: skip
    outer = torch.tensor([2.0, 3.0])
    tensors |= {
        "weight.absmax": coded,
        "weight.nested_quant_map": table,
        "weight.nested_absmax": outer,
        f"{STATE}nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }
    absmax = [float(table[int(code)] * outer[place // 2]) + 0.5 for place, code in enumerate(coded)]
    expected = [TABLES["nf4"][code] * absmax[place // BLOCK] for place, code in enumerate(codes)]
    torch.testing.assert_close(read(tensors, None).dense().flatten(), torch.tensor(expected))


def test_the_tables_are_the_papers() -> None:
    for name, table in TABLES.items():
        assert len(table) == 16
        assert max(table) == 1
        assert min(table) == -1, name
        assert 0.0 in table
    assert list(TABLES["nf4"]) == sorted(TABLES["nf4"])
    # NF4's own definition: quantiles of the normal distribution, eight below zero and nine above, over the largest.
    normal, offset = torch.distributions.Normal(0.0, 1.0), 0.9677083
    above = normal.icdf(torch.linspace(offset, 0.5, 9))[:-1]
    below = -normal.icdf(torch.linspace(offset, 0.5, 8))[:-1]
    expected = torch.cat([above, below, torch.zeros(1)]).sort().values
    torch.testing.assert_close(torch.tensor(TABLES["nf4"]), expected / expected.max(), rtol=0, atol=1e-5)


def test_the_last_block_may_be_shorter() -> None:
    assert spread(torch.ones(5), torch.tensor([2.0, 3.0]), 3).tolist() == [2, 2, 2, 3, 3]
