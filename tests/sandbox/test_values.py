"""Values that cross: as what they hold, whatever a subclass says of itself."""

from __future__ import annotations

import enum
import json
import math
from collections import Counter, OrderedDict, namedtuple
from typing import Any

import numpy as np
import pytest

from hemorrhage.sandbox.values import pack, unpack, write


def refuse(value: object) -> list[Any]:
    raise LookupError(type(value).__name__)


def crossed(value: Any) -> Any:
    line = write({"value": pack(value, refuse)})
    assert line.count(b"\n") == 1
    return unpack(json.loads(line)["value"], refuse)


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 0, -7, 2**53, -(2**53), 10**5000, 0.1, -0.0, 5e-324, math.inf, "", "a\n\ud800é"),
        *([], [1, [2.0, None]], (), (1,), {1, 2}, frozenset("ab"), {}, {(1, 2): [3], "a": {None: True}}, b"\x00\xff"),
        *(bytearray(b"a"), 1 + 2j, range(1, 9, 3), [(1, {2}), {"x": (b"", [])}]),
    ],
    ids=lambda value: hex(value)[:20] if isinstance(value, int) else f"{type(value).__name__}-{len(str(value))}",
)
def test_plain_values_cross_as_they_are(value: Any) -> None:
    there = crossed(value)
    assert there == value
    assert type(there) is type(value)
    assert str(there) == str(value) if not isinstance(value, int) else True


def test_not_a_number_stays_one() -> None:
    assert math.isnan(crossed(math.nan))
    assert math.copysign(1, crossed(-0.0)) == -1


class Colour(enum.IntEnum):
    RED = 3


Point = namedtuple("Point", "x y")


class Agreeing(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__

    def __int__(self) -> int:
        return 9

    def __index__(self) -> int:
        return 9


class Empty(list):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return iter([])

    def __len__(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Colour.RED, 3),
        (Point(1, 2), (1, 2)),
        (Agreeing(5), 5),
        (Empty([1, 2]), [1, 2]),
        (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(a=1), {"a": 1}),
        (np.float64(0.1), 0.1),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
    ],
)
def test_others_cross_as_what_they_hold(value: Any, expected: Any) -> None:
    there = crossed(value)
    assert there == expected
    assert type(there) is type(expected)


def test_an_object_is_a_number() -> None:
    kept: list[object] = []

    def number(value: object) -> list[Any]:
        kept.append(value)
        return ["object", len(kept) - 1]

    given = [len, {"a": iter([])}]
    coded = pack(given, number)
    assert kept == [len, given[1]["a"]]  # type: ignore[index]
    assert unpack(json.loads(json.dumps(coded)), lambda number: kept[number]) == given
    for value in (np.ones(2), object(), Agreeing, {}.keys()):
        with pytest.raises(LookupError):
            pack(value, refuse)


def test_what_contains_itself_does_not_cross() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(RecursionError):
        pack(endless, refuse)


@pytest.mark.parametrize(
    "coded", [[], ["eval", "1"], [[]], {"a": 1}, ["int", "x"], ["bytes", 1], ["range"], ["dict", 1], ["set", ["list"]]]
)
def test_what_was_not_packed_is_refused(coded: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        unpack(coded, refuse)
