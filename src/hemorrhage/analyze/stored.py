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
    """Return the JSON of a value: of a dataclass, of tuples, arrays and tables, or of what is JSON already."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, pd.DataFrame):
        return {str(name): encode(column.to_numpy()) for name, column in value.items()}
    if isinstance(value, np.ndarray):
        return {"dtype": str(value.dtype), "values": encode(value.tolist())}
    if isinstance(value, dict):
        return {_key(key): encode(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [encode(member) for member in value]
    plain = value.item() if isinstance(value, np.generic) else value
    return {NOT_FINITE: str(plain)} if isinstance(plain, float) and not math.isfinite(plain) else plain


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"{key!r}: only strings can be keys of JSON")
    return key


def decode(declared: Any, value: Any) -> Any:
    """Return the value of a declared type from its JSON."""
    origin, arguments = get_origin(declared), get_args(declared)
    if origin in (Union, types.UnionType):
        chosen = next(argument for argument in arguments if argument is not type(None))
        return None if value is None else decode(chosen, value)
    if np.ndarray in (declared, origin):
        return np.array(_plain(value["values"]), dtype=value["dtype"])
    if origin is not None:
        return _decode_container(origin, arguments, value)
    return _decode_class(declared, value) if isinstance(declared, type) else _plain(value)


def _decode_container(origin: Any, arguments: tuple[Any, ...], value: Any) -> Any:
    if origin is tuple:
        members = (arguments[0],) * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(decode(declared, member) for declared, member in zip(members, value, strict=True))
    if origin is dict:
        return {key: decode(arguments[1], member) for key, member in value.items()}
    return [decode(arguments[0], member) for member in value] if origin is list else _plain(value)


def _decode_class(declared: type, value: Any) -> Any:
    if dataclasses.is_dataclass(declared):
        hints = _hints(declared)
        return declared(**{name: decode(hints[name], member) for name, member in value.items()})
    if declared is pd.DataFrame:
        return pd.DataFrame({name: decode(np.ndarray, column) for name, column in value.items()})
    if issubclass(declared, tuple):
        return declared(*(decode(hint, member) for hint, member in zip(_hints(declared).values(), value, strict=True)))
    return _plain(value)


@cache
def _hints(declared: type) -> Mapping[str, Any]:
    return get_type_hints(declared)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {NOT_FINITE}:
            return float(value[NOT_FINITE])
        return {key: _plain(member) for key, member in value.items()}
    return [_plain(member) for member in value] if isinstance(value, list) else value
