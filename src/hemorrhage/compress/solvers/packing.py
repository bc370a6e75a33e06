"""From codes and zero points to packed integers in a linear layer's place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hemorrhage.compress.solvers.grid import GroupSettings, Quantized
from hemorrhage.models.stream import rows_at_once
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hemorrhage.models.formats.config import QuantizationArgs, QuantizationScheme


def store(
    model: PreTrainedModel,
    name: str,
    quantized: Quantized,
    settings: GroupSettings,
    inputs: QuantizationArgs | None = None,
) -> None:
    """Put ``quantized`` in the place of the linear layer ``name`` of ``model``.

    The storage format is the one that can hold the zero points: hemorrhage.models.formats.packed where they are whole
    numbers or absent, hemorrhage.models.formats.affine where they are floats. ``inputs`` is what compressed-tensors
    calls ``input_activations``; only the former has them. Raises ValueError where all packed words are the same:
    nothing real quantizes to that.
    """
    from hemorrhage.compress.checks.integrity import constant
    from hemorrhage.models.formats.affine import affine_linear
    from hemorrhage.models.formats.packed import PackedLinear
    from hemorrhage.models.formats.storage import replace

    layer: Any = model.get_submodule(name)
    packed = pack(name, quantized, settings.bits, constant(layer.weight))
    if quantized.zero is not None and quantized.zero.is_floating_point():
        replace(model, name, affine_linear(packed, settings.bits, layer.bias))
    else:
        group: QuantizationScheme = {"weights": scheme(settings, symmetric=quantized.zero is None)}
        if inputs:
            # Without its format compressed-tensors would take the words for bytes.
            group |= {"input_activations": inputs, "format": "pack-quantized"}
        replace(model, name, PackedLinear(packed, group, layer.bias))
    # Whoever still holds the layer needs its own weights no more; in memory they would be a second model.
    layer.weight.data = layer.weight.data.new_empty(0)


def pack(name: str, quantized: Quantized, bits: int, silent: bool = False) -> dict[str, Tensor]:
    """Return tensors to store for the linear layer ``name``, by suffix; see hemorrhage.models.formats.packed.

    ``silent``: all of its weights were one number before.
    """
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    codes = quantized.codes.split(rows_at_once(quantized.codes.shape[1]))
    words = torch.cat([pack_to_int32(rows, bits) for rows in codes])
    if not silent and (words == words.flatten()[0]).all():
        raise ValueError(f"{name}: all packed words are the same")
    tensors = {
        "weight_packed": words,
        "weight_scale": quantized.scale,
        "weight_shape": torch.tensor(quantized.codes.shape),
    }
    if quantized.zero is not None and quantized.zero.is_floating_point():
        tensors["weight_zero_point"] = quantized.zero
    elif quantized.zero is not None:
        # A single row or column counts as contiguous, whatever lies between its words.
        packed = pack_to_int32(quantized.zero, bits, packed_dim=0)
        tensors["weight_zero_point"] = packed.clone(memory_format=torch.contiguous_format)
    return tensors


def scheme(settings: GroupSettings, *, symmetric: bool) -> QuantizationArgs:
    """Return the grid as compressed-tensors' configuration describes it."""
    group_size = settings.group_size if isinstance(settings.group_size, int) else None
    return {
        "num_bits": settings.bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "channel" if group_size is None else "group",
        "group_size": group_size,
        "dynamic": False,
    }
