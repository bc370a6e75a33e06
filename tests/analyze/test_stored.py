"""What is stored comes back the same, whatever a field holds."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from hemorrhage.analyze.stored import decode, encode


class Range(NamedTuple):
    low: float
    high: float


@dataclass(frozen=True)
class Inner:
    name: str
    around: Range | None


@dataclass(frozen=True)
class Outer:
    number: float
    inner: list[Inner]
    by_name: dict[str, dict[str, Inner]]
    pair: tuple[Inner, Inner | None]
    several: tuple[str, ...]
    anything: dict[str, Any]
    values: npt.NDArray[np.float64]
    flags: np.ndarray
    table: pd.DataFrame


def test_everything_comes_back() -> None:
    one, none = Inner("a", Range(-math.inf, 0.1)), Inner("b", None)
    table = pd.DataFrame({"name": ["x", "y"], "value": [0.1, math.nan], "count": [1, 2]})
    before = Outer(
        math.nan, [one, none], {"k": {"l": one}}, (one, None), ("p", "q"), {"deep": [1, {"nan": math.nan}], "n": None},
        np.array([[0.1, math.nan], [1 / 3, 2]]), np.array([True, False]), table,
    )  # fmt: skip
    after = decode(Outer, json.loads(json.dumps(encode(before), allow_nan=False)))
    assert math.isnan(after.number)
    assert (after.inner, after.by_name, after.pair, after.several) == (
        before.inner, before.by_name, before.pair, before.several,
    )  # fmt: skip
    assert math.isnan(after.anything["deep"][1]["nan"])
    assert after.anything["n"] is None
    np.testing.assert_array_equal(after.values, before.values)
    np.testing.assert_array_equal(after.flags, before.flags)
    pd.testing.assert_frame_equal(after.table, table)


def test_keys_that_json_has_not_are_refused() -> None:
    with pytest.raises(TypeError, match="only strings can be keys"):
        encode({("a", "b"): 1})


def test_an_empty_table_comes_back() -> None:
    assert decode(pd.DataFrame, encode(pd.DataFrame({"a": []}))).columns.tolist() == ["a"]
