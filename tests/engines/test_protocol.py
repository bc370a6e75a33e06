"""Frames: what is written is read, and what is no frame is named."""

from __future__ import annotations

import io

import numpy as np
import pytest

from hemorrhage.engines import protocol
from hemorrhage.engines.protocol import Frame, Hidden, Logits, ProtocolError, Top, decode, encode, tile


def written(header: dict[str, object], **arrays: protocol.Array) -> bytes:
    return b"".join(bytes(piece) for piece in encode(header, arrays))


def test_a_frame_is_read_as_it_was_written() -> None:
    tokens, values = np.arange(5, dtype=np.int64), np.linspace(0, 1, 6, dtype=np.float64).reshape(2, 3).T
    stream = io.BytesIO(written({"request": "score"}, tokens=tokens, values=values) + written({"ok": True}))
    frame = decode(stream.read)
    assert frame is not None
    assert frame.header["request"] == "score"
    assert frame.header["bytes"] == 4 * 5 + 4 * 6
    assert frame.arrays["tokens"].dtype == np.int32
    assert frame.arrays["tokens"].tolist() == tokens.tolist()
    assert np.array_equal(frame.arrays["values"], values.astype(np.float32))
    empty = decode(stream.read)
    assert empty is not None
    assert not empty.arrays
    assert decode(stream.read) is None


def test_the_bytes_are_those_of_the_description() -> None:
    raw = written({"ok": True}, values=np.array([1.0], np.float32))
    size = int.from_bytes(raw[:4], "big")
    assert raw[4 : 4 + size] == b'{"ok": true, "arrays": [["values", "float32", [1]]], "bytes": 4}'
    assert raw[4 + size :] == b"\x00\x00\x80\x3f"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"loading model: 17 %", "no frame begins"),
        (b"\x00\x00", "no frame begins"),
        (b"\x00\x00\x00\x09[1, 2, 3]", "no header"),
        (b"\x00\x00\x00\x09{not json", "no header"),
        (b"\x00\x00\x00\x0c{\"bytes\": 4}", "announces 4 bytes and lists arrays of 0"),
        (b"\x00\x00\x00\x0c{\"bytes\": 0", "ended after 11 of 12"),
        (written({}, values=np.zeros((2, 3)))[:-1], "ended after 23 of 24"),
        (written({}, values=np.zeros(1)).replace(b"float32", b"float64"), "no header"),
    ],
)  # fmt: skip
def test_what_is_no_frame_is_named(raw: bytes, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        decode(io.BytesIO(raw).read)


def test_a_tile_of_each_kind() -> None:
    values = np.zeros((2, 3), np.float32)
    assert isinstance(tile(Frame({"tile": "logits", "start": 4}, {"values": values})), Logits)
    hidden = tile(Frame({"tile": "hidden", "start": 0, "final_norm": True}, {"values": values}))
    assert isinstance(hidden, Hidden)
    assert hidden.final_norm
    arrays = {"ids": values.astype(np.int32), "log_probabilities": values, "targets": values[:, 0]}
    top = tile(Frame({"tile": "top", "start": 1}, arrays))
    assert isinstance(top, Top)
    assert top.start == 1


@pytest.mark.parametrize(
    ("header", "arrays", "message"),
    [
        ({"tile": "states", "start": 0}, {"values": np.zeros((1, 2))}, "kinds are logits, hidden, top"),
        ({"tile": "logits"}, {"values": np.zeros((1, 2))}, "at None"),
        ({"tile": "logits", "start": 0}, {"logits": np.zeros((1, 2))}, "has the arrays values"),
        ({"tile": "logits", "start": 0}, {"values": np.zeros(2)}, "has the arrays values"),
        (
            {"tile": "top", "start": 0},
            {"ids": np.zeros((2, 2)), "log_probabilities": np.zeros((2, 2)), "targets": np.zeros(1)},
            "differ in length",
        ),
    ],
)
def test_a_tile_that_lacks_something_is_refused(
    header: dict[str, object], arrays: dict[str, protocol.Array], message: str
) -> None:
    with pytest.raises(ProtocolError, match=message):
        tile(Frame(header, arrays))
