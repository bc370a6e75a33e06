"""Headers of GGUF files: what gguf's own reader reads of a whole one, and one line on any other."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from hemorrhage.models.formats.gguf_header import GgufError, read_header

SCALARS = {"u8": 7, "i8": -7, "u16": 300, "i32": -70000, "u64": 2**40, "f32": 0.5, "f64": 0.1, "yes": True}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A file with entries of every type and three tensors."""
    path = tmp_path / "whole.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_uint8("u8", 7)
    writer.add_int8("i8", -7)
    writer.add_uint16("u16", 300)
    writer.add_int32("i32", -70000)
    writer.add_uint64("u64", 2**40)
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_array("words", ["a", "bc", "\u2581d"])
    writer.add_array("numbers", [1, 2, 3])
    generator = np.random.default_rng(0)
    for name, shape in (("one.weight", (3, 64)), ("two.weight", (2, 5, 32)), ("three.bias", (7,))):
        writer.add_tensor(name, generator.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_header_is_what_ggufs_reader_reads(whole: Path) -> None:
    header, reader = read_header(whole), GGUFReader(whole)
    assert header.metadata["general.architecture"] == "llama"
    assert {name: header.metadata[name] for name in SCALARS} == SCALARS
    assert header.metadata["words"] == ["a", "bc", "\u2581d"]
    assert header.metadata["numbers"] == [1, 2, 3]
    content = whole.read_bytes()
    assert list(header.tensors) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        stored = header.tensors[tensor.name]
        assert stored.shape == tuple(reversed(tensor.shape.tolist()))
        assert stored.ggml_type == tensor.tensor_type.name.lower()
        assert content[stored.offset : stored.offset + stored.size] == tensor.data.tobytes()


def header_of(*parts: bytes, tensors: int = 0, entries: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + b"".join(parts)


def text(word: str) -> bytes:
    return struct.pack("<Q", len(word)) + word.encode()


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


ROOM = b"\0" * 4096

HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is empty"),
    "another file": (b"PK\3\4" + ROOM, "does not begin with GGUF"),
    "a pointer of git's": (b"version https://git-lfs.github.com/spec/v1\n", "does not begin with GGUF"),
    "an old version": (header_of(ROOM, version=1), "its version is 1; 2 and 3 are read"),
    "another byte order": (header_of(ROOM, version=3 << 24), "its version is 50331648"),
    "too many tensors": (header_of(ROOM, tensors=2**63), "announces 9223372036854775808 tensors"),
    "too many entries": (header_of(ROOM, entries=2**40), "announces 1099511627776 entries"),
    "a long key": (header_of(struct.pack("<Q", 2**62), ROOM, entries=1), "bytes of a string"),
    "a long string": (header_of(text("k"), struct.pack("<IQ", 8, 2**62), ROOM, entries=1), "bytes of a string"),
    "a long array": (header_of(text("k"), struct.pack("<IIQ", 9, 4, 2**60), ROOM, entries=1), "numbers of an array"),
    "many words": (header_of(text("k"), struct.pack("<IIQ", 9, 8, 2**60), ROOM, entries=1), "parts of an array"),
    "deep arrays": (
        header_of(text("k"), struct.pack("<I", 9), struct.pack("<IQ", 9, 1) * 9, ROOM, entries=1),
        "arrays in arrays in arrays",
    ),
    "an unknown type": (header_of(text("k"), struct.pack("<I", 77), ROOM, entries=1), "the type 77"),
    "a key twice": (header_of((text("k") + struct.pack("<IB", 0, 1)) * 2, ROOM, entries=2), "it has k twice"),
    "a key of bytes": (header_of(struct.pack("<Q", 2) + b"\xff\xfe", ROOM, entries=1), "name of a key is no text"),
    "an alignment": (
        header_of(text("general.alignment"), struct.pack("<II", 4, 3), ROOM, entries=1),
        "its general.alignment is 3",
    ),
    "no dimension": (header_of(tensor("t", ()), ROOM, tensors=1), "t has 0 dimensions"),
    "many dimensions": (header_of(text("t"), struct.pack("<I", 2**31), ROOM, tensors=1), "t has 2147483648 dimensions"),
    "no row": (header_of(tensor("t", (32, 0)), ROOM, tensors=1), r"t has the shape \[0, 32\]"),
    "a large tensor": (header_of(tensor("t", (2**40, 2**40)), ROOM, tensors=1), "t has the shape"),
    "a tensor of no type": (header_of(tensor("t", (32,), 99), ROOM, tensors=1), "the type 99"),
    "half a block": (header_of(tensor("t", (33,), 2), ROOM, tensors=1), r"\(33\) are no whole blocks of q4_0"),
    "an odd place": (header_of(tensor("t", (32,), 0, 8), ROOM, tensors=1), "lies at 8, which 32 does not divide"),
    "a place behind the end": (header_of(tensor("t", (32,), 0, 2**50), ROOM, tensors=1), "truncated"),
    "more than there is": (header_of(tensor("t", (2**20,)), ROOM, tensors=1), "truncated"),
    "a tensor twice": (header_of(tensor("t", (32,)) * 2, ROOM, tensors=2), "the tensor t twice"),
    "tensors over each other": (
        header_of(tensor("t", (32,)), tensor("u", (32,), 0, 96), ROOM, tensors=2),
        "its tensors t and u overlap",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_headers_end_in_one_line(what: str, tmp_path: Path) -> None:
    content, reason = HOSTILE[what]
    (tmp_path / "hostile.gguf").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(GgufError, match=reason) as error:
        read_header(tmp_path / "hostile.gguf")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "\n" not in str(error.value)
    assert "hostile.gguf" in str(error.value)
    assert peak < 2**20


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match=r"none\.gguf can't be read: No such file"):
        read_header(tmp_path / "none.gguf")


def test_every_truncation_is_found(whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    end = max(stored.offset + stored.size for stored in read_header(whole).tensors.values())
    for length in [*range(0, end, 7), end - 1]:
        (tmp_path / "cut.gguf").write_bytes(content[:length])
        with pytest.raises(GgufError):
            read_header(tmp_path / "cut.gguf")


def test_a_file_with_any_bytes_changed_is_read_or_refused(whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    data = min(stored.offset for stored in read_header(whole).tensors.values())
    generator, path = np.random.default_rng(1), tmp_path / "changed.gguf"
    lines: list[str] = []
    extremes = [struct.pack("<Q", number) for number in (0, 1, 2**31, 2**32, 2**62, 2**63, 2**64 - 1)]
    for _ in range(3000):
        changed = bytearray(content)
        for _ in range(generator.integers(1, 4)):
            at = int(generator.integers(4, data))
            if generator.random() < 0.5:
                changed[at] = int(generator.integers(256))
            else:
                changed[at : at + 8] = extremes[generator.integers(len(extremes))]
        path.write_bytes(changed)
        started = time.perf_counter()
        try:
            read_header(path)
        except GgufError as error:
            lines.append(str(error))
        assert time.perf_counter() - started < 5
    assert not any("\n" in line for line in lines)
    assert 1000 < len(lines) < 3000
