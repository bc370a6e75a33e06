"""From codes on a grid to packed integers in a linear layer's place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hemorrhage.compress.solvers.grid import GridSettings, Quantized
from hemorrhage.models.stream import rows_at_once
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def store(
    model: PreTrainedModel,
    name: str,
    quantized: Quantized,
    settings: GridSettings,
    inputs: dict[str, Any] | None = None,
) -> None:
    """Put ``quantized`` in the place of the linear layer ``name`` of ``model``.

    ``inputs`` is what compressed-tensors calls ``input_activations``. Raises ValueError where all packed words are
    the same: nothing real quantizes to that.
    """
    from hemorrhage.compress.checks.integrity import constant
    from hemorrhage.models.formats.packed import PackedLinear
    from hemorrhage.models.formats.storage import replace

    layer: Any = model.get_submodule(name)
    group: dict[str, Any] = {"weights": scheme(settings)}
    if inputs:
        # Without its format compressed-tensors would take the words for bytes.
        group |= {"input_activations": inputs, "format": "pack-quantized"}
    packed = pack(name, quantized, settings.bits, constant(layer.weight))
    replace(model, name, PackedLinear(packed, group, layer.bias))
    # Whoever still holds the layer needs its own weights no more; in memory they would be a second model.
    layer.weight.data = layer.weight.data.new_empty(0)


def pack(name: str, quantized: Quantized, bits: int, silent: bool = False) -> dict[str, Tensor]:
    """Tensors to store for the linear layer ``name``, by suffix; see hemorrhage.models.formats.packed.

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
    if quantized.zero is not None:
        # A single row or column counts as contiguous, whatever lies between its words.
        packed = pack_to_int32(quantized.zero, bits, packed_dim=0)
        tensors["weight_zero_point"] = packed.clone(memory_format=torch.contiguous_format)
    return tensors


def scheme(settings: GridSettings) -> dict[str, Any]:
    """The grid as compressed-tensors' configuration describes it."""
    channel = settings.group_size == "channel"
    return {
        "num_bits": settings.bits,
        "type": "int",
        "symmetric": settings.symmetric,
        "strategy": "channel" if channel else "group",
        "group_size": None if channel else settings.group_size,
        "dynamic": False,
    }
