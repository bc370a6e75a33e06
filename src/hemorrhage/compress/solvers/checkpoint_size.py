"""What a layer and a checkpoint will take on disk, from shapes alone: before anything is rounded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hemorrhage.compress.solvers.grid import GridSettings
from hemorrhage.compress.solvers.number_formats import FloatFormat, FormatSettings
from hemorrhage.models.stream import header
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    Kind = tuple[tuple[int, ...], torch.dtype]
    """Shape and dtype of a tensor."""

Stored = GridSettings | None
"""How a layer's weight is stored; None is as it is."""


def tensors_of(layer: nn.Linear | nn.Embedding, stored: Stored) -> dict[str, Kind]:
    """Return shape and dtype of what is stored of a layer's weight, by suffix."""
    rows, columns = layer.weight.shape
    if stored is None:
        return {"weight": ((rows, columns), layer.weight.dtype)}
    number = stored.number if isinstance(stored, FormatSettings) else None
    if number is not None:
        return _floats(rows, columns, number, layer.weight.dtype)
    groups = 1 if stored.group_size == "channel" else columns // stored.group_size
    tensors: dict[str, Kind] = {
        "weight_packed": ((rows, _words(columns, stored.bits)), torch.int32),
        "weight_scale": ((rows, groups), layer.weight.dtype),
        "weight_shape": ((2,), torch.int64),
    }
    if not stored.symmetric:
        tensors["weight_zero_point"] = ((_words(rows, stored.bits), groups), torch.int32)
    return tensors


def layer_bits(layer: nn.Linear | nn.Embedding, stored: Stored) -> int:
    """Return the bits that a layer's weight takes: codes, scales, zero points, its shape."""
    return sum(8 * dtype.itemsize * math.prod(shape) for shape, dtype in tensors_of(layer, stored).values())


def checkpoint_bytes(model: PreTrainedModel, layers: Mapping[str, Stored]) -> int:
    """Return the bytes of the file of ``model`` with each of ``layers`` stored as it says, and the rest as it is."""
    from hemorrhage.models.formats.storage import distinct

    replaced = {f"{name}.weight" for name in layers}
    tensors: dict[str, Kind] = {
        name: (tuple(value.shape), value.dtype) for name, value in distinct(model).items() if name not in replaced
    }
    modules: dict[str, Any] = dict(model.named_modules())
    for name, stored in layers.items():
        layer = modules[name]
        tensors |= {f"{name}.{suffix}": kind for suffix, kind in tensors_of(layer, stored).items()}
    shapes = {name: shape for name, (shape, _) in tensors.items()}
    dtypes = {name: dtype for name, (_, dtype) in tensors.items()}
    content = sum(dtypes[name].itemsize * math.prod(shape) for name, shape in shapes.items())
    return len(header(shapes, dtypes, {"format": "pt"})) + content


def _floats(rows: int, columns: int, number: FloatFormat, dtype: torch.dtype) -> dict[str, Kind]:
    scales = {"dtype": dtype, "e4m3": torch.float8_e4m3fn, "power": torch.uint8}[number.scales]
    if number.number == "e2m1":
        tensors: dict[str, Kind] = {"weight_packed": ((rows, math.ceil(columns / 2)), torch.uint8)}
    else:
        tensors = {"weight": ((rows, columns), torch.float8_e4m3fn)}
    of_scales = (math.ceil(rows / (number.height or rows)), math.ceil(columns / (number.width or columns)))
    tensors["weight_scale"] = ((1,) if number.height is None else of_scales, scales)
    if number.scales == "e4m3":
        tensors["weight_global_scale"] = ((1,), torch.float32)
    return tensors


def _words(count: int, bits: int) -> int:
    return math.ceil(count * bits / 32)
