"""GGUF files that the gguf package writes: copies of a file with other metadata, other tensors, or in parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter

Tensors = dict[str, tuple[np.ndarray, Any]]
"""Name -> the data as gguf's reader gives them, and the type."""


def tensors_of(path: Path) -> Tensors:
    """The tensors of a file."""
    return {tensor.name: (np.array(tensor.data), tensor.tensor_type) for tensor in GGUFReader(path).tensors}


def copy(path: Path, out: Path, metadata: Mapping[str, Any] | None = None, tensors: Tensors | None = None) -> Path:
    """Write a file again as ``out``: with entries of ``metadata`` (None: without it) and ``tensors`` for its own."""
    reader = GGUFReader(path)
    architecture = (metadata or {}).get("general.architecture", reader.fields["general.architecture"].contents())
    writer = GGUFWriter(out, architecture)
    changed = dict(metadata or {})
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        if name not in changed:
            _add(writer, name, field.contents(), field.types)
    for name, value in changed.items():
        if name != "general.architecture" and value is not None:
            _add(writer, name, value, None)
    for name, (data, ggml_type) in (tensors_of(path) if tensors is None else tensors).items():
        writer.add_tensor(name, data, raw_dtype=ggml_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _add(writer: GGUFWriter, name: str, value: Any, types: Any) -> None:
    kind = types[0] if types and not isinstance(value, str) else _type_of(value)
    if kind is GGUFValueType.ARRAY:
        writer.add_key_value(name, value, kind, sub_type=_type_of(value[0]) if not types else types[1])
    else:
        writer.add_key_value(name, value, kind)


def _type_of(value: Any) -> GGUFValueType:
    kinds = {
        bool: GGUFValueType.BOOL,
        int: GGUFValueType.UINT32,
        float: GGUFValueType.FLOAT32,
        str: GGUFValueType.STRING,
        list: GGUFValueType.ARRAY,
    }
    return kinds[type(value)]


def split(path: Path, folder: Path, count: int) -> list[Path]:
    """Write a file as ``count`` files, as llama.cpp's gguf-split names them; return them."""
    tensors = list(tensors_of(path).items())
    size = -(-len(tensors) // count)
    files = []
    for number in range(count):
        out = folder / f"model-{number + 1:05}-of-{count:05}.gguf"
        said = {"split.no": number, "split.count": count, "split.tensors.count": len(tensors)}
        files.append(copy(path, out, said, dict(tensors[number * size : (number + 1) * size])))
    return files
