"""The table of engines: its patterns of roundings, and the releases that this environment has."""

from __future__ import annotations

import pytest
import transformers

from hemorrhage.models.engine_table import METHODS, PLAIN, TABLE, TRANSFORMERS, VLLM, VLLM_CPU, Grid, strategy
from hemorrhage.models.formats.config import QuantizationArgs

GRID = Grid("int", (4,), ("group",), (64, 128), symmetric=True, dynamic=False)
ARGUMENTS: QuantizationArgs = {"num_bits": 4, "type": "int", "symmetric": True, "group_size": 64, "dynamic": False}


def test_the_release_of_transformers_is_the_one_that_is_installed() -> None:
    """Its rows are what ``tests/models/test_engines_step.py`` loads."""
    assert transformers.__version__.startswith(f"{TRANSFORMERS.version}.")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"num_bits": 8}, False),
        ({"type": "float"}, False),
        ({"symmetric": False}, False),
        ({"group_size": 32}, False),
        ({"dynamic": True}, False),
        ({"dynamic": "local"}, False),
        ({"strategy": "channel"}, False),
        ({"strategy": "group"}, True),
    ],
)
def test_a_grid_has_what_all_its_limits_allow(changes: QuantizationArgs, expected: bool) -> None:
    assert GRID.has({**ARGUMENTS, **changes}) == expected


@pytest.mark.parametrize(("size", "expected"), [(64, "group"), (-1, "channel"), (None, "tensor")])
def test_the_strategy_follows_from_the_size_of_groups(size: int | None, expected: str) -> None:
    assert strategy({"group_size": size}) == expected


def test_every_row_is_of_an_engine_that_loads_plain_weights_and_gpus_have_a_capability() -> None:
    assert {row.engine for row in TABLE} == set(PLAIN)
    for row in TABLE:
        assert (row.capability is not None) == (row.engine == VLLM), row
        assert row.device == PLAIN[row.engine]
        assert row.engine != VLLM_CPU or not row.experts
    assert all(METHODS.values())
