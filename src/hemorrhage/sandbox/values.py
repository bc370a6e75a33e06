"""Values that cross a pipe between a program and its tests, as JSON: plain values by what they hold, others by number.

What crosses is what a value of Python's own types holds, read by the methods of these types: a subclass crosses as its
base, whatever it replaced. An object of any other type stays where it is, and the other side gets its number. Both ends
import this module inside the sandbox: the standard library only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

Coded = Any
"""What ``json`` writes: None, bool, int, float, str, or a list that begins with the name of a type."""

EXACT_INTEGER = 1 << 53
"""Integers from here on are written in hexadecimal digits, whose conversion takes linear time."""

NUMBERED = "object"


def write(message: dict[str, Any]) -> bytes:
    """Return ``message``, of which every value is coded already, as one line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def pack(value: Any, number: Callable[[object], list[Coded]]) -> Coded:
    """Return ``value`` coded; ``number`` says what stands for an object that cannot cross, or raises.

    Raises RecursionError for what contains itself.
    """
    if value is None or value is True or value is False:
        return value
    for kind, code in SCALARS:
        if isinstance(value, kind):
            return code(value)
    for kind, iterate in SEQUENCES:
        if isinstance(value, kind):
            return [kind.__name__, *(pack(each, number) for each in iterate(value))]
    if isinstance(value, dict):
        return ["dict", *([pack(key, number), pack(each, number)] for key, each in dict.items(value))]
    # NumPy's numbers are equal to Python's, as they are in an interpreter that tests share with the program.
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, (numpy.number, numpy.bool_)):
        plain = value.item()
        if type(plain) in (bool, int, float, complex):
            return pack(plain, number)
    return number(value)


def _integer(value: int) -> Coded:
    plain = int.__int__(value)
    return plain if abs(plain) < EXACT_INTEGER else ["int", hex(plain)]


def _complex(value: complex) -> Coded:
    plain = complex.__complex__(value)
    return ["complex", plain.real, plain.imag]


SCALARS: tuple[tuple[Any, Callable[[Any], Coded]], ...] = (
    (int, _integer),
    (float, float.__float__),
    (str, str.__str__),
    (bytes, lambda value: ["bytes", bytes.hex(value)]),
    (bytearray, lambda value: ["bytearray", bytearray.hex(value)]),
    (complex, _complex),
    (range, lambda value: ["range", value.start, value.stop, value.step]),
)
SEQUENCES: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (list, list.__iter__),
    (tuple, tuple.__iter__),
    (set, set.__iter__),
    (frozenset, frozenset.__iter__),
)


def unpack(coded: Coded, numbered: Callable[..., Any]) -> Any:
    """Return the value that ``pack`` coded; ``numbered`` makes one of what stands for an object that did not cross.

    Raises ValueError, TypeError, RecursionError or OverflowError for what ``pack`` cannot have written.
    """
    if coded is None or type(coded) in (bool, int, float, str):
        return coded
    if type(coded) is not list or not coded:
        raise ValueError("no value")
    kind, *parts = coded
    if kind in CONTAINERS:
        return CONTAINERS[kind](unpack(part, numbered) for part in parts)
    if kind == "dict":
        return {unpack(key, numbered): unpack(value, numbered) for key, value in parts}
    if kind == NUMBERED:
        return numbered(*parts)
    return PARTS[kind](*parts) if kind in PARTS else _refuse(kind)


def _refuse(kind: object) -> None:
    raise ValueError(f"no type of value: {kind!r}")


CONTAINERS: dict[Any, Callable[..., Any]] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}

PARTS: dict[Any, Callable[..., Any]] = {
    "int": lambda digits: int(digits, 16),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": complex,
    "range": range,
}
