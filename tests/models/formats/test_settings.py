"""Entries of a file of somebody else's: types that are checked, keys that are no matter."""

from __future__ import annotations

import pytest

from hemorrhage.models.formats.settings import Entry, parse


class Inner(Entry):
    bits: int = 8


class Outer(Entry):
    inner: Inner | None = None
    name: str = "x"


def test_what_is_declared_is_read_and_what_is_not_is_left_out() -> None:
    assert parse(Outer, {"inner": {"bits": 4, "observer": "mse"}, "extra": 1}) == Outer(inner=Inner(bits=4))
    assert parse(Outer, {}) == Outer()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"inner": {"bits": "4"}}, "quantization_config's inner.bits: Input should be a valid integer"),
        ({"inner": 4}, "quantization_config's inner: Input should be"),
        ({"name": None}, "quantization_config's name: Input should be a valid string"),
    ],
)
def test_another_type_is_one_line_that_names_the_key(content: dict[str, object], line: str) -> None:
    with pytest.raises(ValueError, match=line) as raised:
        parse(Outer, content)
    assert "\n" not in str(raised.value)
