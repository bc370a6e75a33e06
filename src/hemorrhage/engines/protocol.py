"""The protocol between this bench and an engine's worker: frames over standard input and output.

This module is read by both sides, so it needs the standard library and numpy only, and imports nothing of this package.

A frame is the length of its header (4 bytes, big-endian), the header (a JSON object), and ``header["bytes"]`` bytes of
arrays. ``header["arrays"]`` lists them in their order, each as ``[name, dtype, shape]``; they are C-contiguous and
little-endian, ``int32`` or ``float32``. A frame without arrays has ``bytes`` 0.

The worker speaks first, once its engine is imported: ``{"ok": true, "protocol": 1, "engine": ..., "version": ...}``.
Then each request is a frame, and the worker answers in order:

``{"request": "load", "path", "threads", "context", "dtype"}``
    One model. ``dtype`` is ``auto`` (what the engine does by itself) or ``float32``. Answer: ``{"ok": true,
    "vocabulary", "gives", "facts"}``; ``gives`` is the kind of its tiles, ``facts`` are words for a manifest.
``{"request": "score"}`` with the array ``tokens`` int32 [n], n at least 2
    One text, from its first token on, without a cache of an earlier one. Answers: tiles in the order of the text,
    ``{"ok": true, "tile": kind, "start": s, ...}``, then ``{"ok": true, "done": true}``. Row i of a tile is what the
    engine computed at position s + i, of the token at s + i + 1. All tiles together have the positions 0 to n - 2. A
    kind is one of

    - ``logits``: ``values`` float32 [t, vocabulary], the whole vocabulary, not normalised;
    - ``hidden``: ``values`` float32 [t, hidden], with ``"final_norm"``: whether the final norm has been applied;
    - ``top``: ``ids`` int32 [t, k], ``log_probabilities`` float32 [t, k] of those, ``targets`` float32 [t], the
      log-probability of the token that follows.
``{"request": "speed", "prefill", "decode", "warm_up", "repetitions"}``
    Answer: ``{"ok": true, "prefill": [...], "decode": [...], "peak_bytes"}``: seconds for ``prefill`` tokens at once
    and for ``decode`` tokens one by one, of each repetition, and the most memory that the worker and its children had.
``{"request": "close"}``
    Answer: ``{"ok": true}``; the worker ends.

In place of any answer, ``{"error": one line, "class": "input" or "engine"}``: the request can't be done, or the engine
failed at it. The worker goes on with the next request. A worker that can't import its engine says so first, and ends.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERSION = 1

DTYPES = {"int32": np.dtype("<i4"), "float32": np.dtype("<f4")}

MOST_HEADER, MOST_ARRAYS = 2**20, 2**31
"""Bytes of a header and of the arrays of a frame, at most."""

Array = NDArray[Any]


class ProtocolError(Exception):
    """What was read is no frame of this protocol."""


class CutError(ProtocolError):
    """The stream ended inside a frame."""


@dataclass(frozen=True)
class Frame:
    """A header and its arrays."""

    header: Mapping[str, Any]
    arrays: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Logits:
    """Logits ``values`` float32 [t, vocabulary] of the tokens at ``start`` + 1 and after."""

    start: int
    values: Array


@dataclass(frozen=True)
class Hidden:
    """Hidden states ``values`` float32 [t, hidden] at ``start`` and after; ``final_norm``: it has been applied."""

    start: int
    values: Array
    final_norm: bool


@dataclass(frozen=True)
class Top:
    """The ``ids`` int32 [t, k] of most probable tokens, their ``log_probabilities`` float32 [t, k], and ``targets``
    float32 [t], the log-probability of the token that follows, at ``start`` and after."""

    start: int
    ids: Array
    log_probabilities: Array
    targets: Array


Tile = Logits | Hidden | Top

KINDS = {"logits": {"values": 2}, "hidden": {"values": 2}, "top": {"ids": 2, "log_probabilities": 2, "targets": 1}}
"""Kind of tile -> its arrays -> their dimensions."""


def encode(header: Mapping[str, object], arrays: Mapping[str, Array] | None = None) -> list[bytes | memoryview]:
    """Return the pieces of a frame, in the order in which they are written."""
    listed, payload = [], []
    for name, array in (arrays or {}).items():
        kind = "int32" if array.dtype.kind in "iu" else "float32"
        given = np.ascontiguousarray(array, DTYPES[kind])
        listed.append([name, kind, list(given.shape)])
        payload.append(given.reshape(-1).view(np.uint8).data)
    size = sum(len(piece) for piece in payload)
    written = json.dumps({**header, "arrays": listed, "bytes": size}).encode()
    return [len(written).to_bytes(4, "big"), written, *payload]


def decode(read: Callable[[int], bytes]) -> Frame | None:
    """Read a frame, or None where the stream has ended before one.

    ``read(n)`` returns n bytes, fewer where the stream ended. Raises ProtocolError for what is no frame.
    """
    length = read(4)
    if not length:
        return None
    size = int.from_bytes(length, "big")
    if len(length) < 4 or not 2 <= size <= MOST_HEADER:
        raise ProtocolError(f"no frame begins with {length!r}")
    header = _header(_whole(read, size))
    listed = header.get("arrays", [])
    payload = _whole(read, header["bytes"])
    arrays, offset = {}, 0
    for entry in listed:
        name, dtype, shape = _array(entry)
        width = DTYPES[dtype].itemsize * math.prod(shape)
        arrays[name] = np.frombuffer(payload[offset : offset + width], DTYPES[dtype]).reshape(shape)
        offset += width
    return Frame(header, arrays)


def tile(frame: Frame) -> Tile:
    """Return the tile of an answer to ``score``. Raises ProtocolError where it lacks something."""
    kind, start = frame.header.get("tile"), frame.header.get("start")
    wanted = KINDS.get(str(kind))
    if wanted is None or not isinstance(start, int):
        raise ProtocolError(f"a tile of kind {kind!r} at {start!r}; kinds are {', '.join(KINDS)}")
    if {name: array.ndim for name, array in frame.arrays.items()} != wanted:
        raise ProtocolError(f"a tile of {kind} has the arrays {', '.join(wanted)}")
    if len({len(array) for array in frame.arrays.values()}) != 1:
        raise ProtocolError(f"arrays of a tile of {kind} differ in length")
    if kind == "logits":
        return Logits(start, frame.arrays["values"])
    if kind == "hidden":
        return Hidden(start, frame.arrays["values"], frame.header.get("final_norm") is True)
    return Top(start, **frame.arrays)


def _whole(read: Callable[[int], bytes], size: int) -> bytes:
    piece = read(size) if size else b""
    if len(piece) < size:
        raise CutError(f"a frame ended after {len(piece)} of {size} bytes")
    return piece


def _header(written: bytes) -> dict[str, Any]:
    try:
        header = json.loads(written)
        listed = sum(DTYPES[dtype].itemsize * math.prod(shape) for _, dtype, shape in header.get("arrays", []))
        size = header["bytes"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProtocolError(f"no header of a frame: {written[:80]!r}") from error
    if size != listed or not 0 <= size <= MOST_ARRAYS:
        raise ProtocolError(f"a header announces {size} bytes and lists arrays of {listed}")
    return dict(header)


def _array(entry: list[Any]) -> tuple[str, str, list[int]]:
    name, dtype, shape = entry
    return str(name), str(dtype), [int(size) for size in shape]
