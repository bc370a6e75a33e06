"""Dataclasses as JSON and back: what a file holds is declared by the types of the fields.

What JSON lacks: a number that is not finite is ``{"number": "nan"}``, an array ``{"dtype", "values"}``, a table its
columns in order, each an array. Keys of dictionaries are strings.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, TypeAlias, Union, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
"""What a JSON file can hold."""

NOT_FINITE = "number"


def encode(value: Any) -> Any:
    """JSON of a value: of a dataclass, of tuples, arrays and tables, or of what is JSON already."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: encode(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, pd.DataFrame):
        return {str(name): encode(column.to_numpy()) for name, column in value.items()}
    if isinstance(value, np.ndarray):
        return {"dtype": str(value.dtype), "values": encode(value.tolist())}
    if isinstance(value, dict):
        return {_key(key): encode(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [encode(one) for one in value]
    plain = value.item() if isinstance(value, np.generic) else value
    return {NOT_FINITE: str(plain)} if isinstance(plain, float) and not math.isfinite(plain) else plain


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"{key!r}: only strings can be keys of JSON")
    return key


def decode(kind: Any, value: Any) -> Any:
    """The value of a type, from its JSON."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return _plain(value)
    if origin in (Union, types.UnionType):
        chosen = [one for one in inner if one is not type(None)]
        return None if value is None else decode(chosen[0], value)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = _hints(kind)
        return kind(**{name: decode(hints[name], one) for name, one in value.items()})
    if kind is pd.DataFrame:
        return pd.DataFrame({name: decode(np.ndarray, column) for name, column in value.items()})
    if kind is np.ndarray or origin is np.ndarray:
        return np.array(_plain(value["values"]), dtype=value["dtype"])
    if origin is tuple:
        members = (inner[0],) * len(value) if inner[-1] is Ellipsis else inner
        return tuple(decode(*one) for one in zip(members, value, strict=True))
    if origin is dict:
        return {key: decode(inner[1], one) for key, one in value.items()}
    if origin is list:
        return [decode(inner[0], one) for one in value]
    if isinstance(kind, type) and issubclass(kind, tuple):
        return kind(*(decode(*one) for one in zip(_hints(kind).values(), value, strict=True)))
    return _plain(value)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return float(value[NOT_FINITE]) if value.keys() == {NOT_FINITE} else {k: _plain(v) for k, v in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value
