"""From codes and zero points to packed integers in a linear layer's place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hemorrhage.compress.solvers.grid import GroupSettings, Quantized
from hemorrhage.compress.solvers.number_formats import (
    INPUTS,
    AnyQuantized,
    FormatSettings,
    QuantizedFloats,
    fixed_input,
    scheme_of_floats,
)
from hemorrhage.models.stream import rows_at_once
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hemorrhage.models.formats.config import QuantizationArgs, QuantizationScheme
    from hemorrhage.models.formats.storage import FormattedLinear


@dataclass(frozen=True)
class RoundedInputs:
    """How the inputs of a layer are rounded: compressed-tensors' ``input_activations``, and tensors by suffix."""

    arguments: QuantizationArgs
    tensors: Mapping[str, Tensor]


def rounded_inputs(settings: FormatSettings, largest: Tensor | None, dtype: torch.dtype) -> RoundedInputs | None:
    """Return how ``settings`` round inputs that reach up to ``largest``; None where they don't.

    ``largest``, of any shape, may be None where no range is fixed; ``dtype`` is that of the checkpoint.
    """
    if settings.inputs is None:
        return None
    tensors = {} if largest is None else fixed_input(settings.inputs, largest, dtype)
    return RoundedInputs(INPUTS[settings.inputs].arguments, tensors)


def store(
    model: PreTrainedModel,
    name: str,
    quantized: AnyQuantized,
    settings: GroupSettings,
    inputs: RoundedInputs | None = None,
) -> None:
    """Put ``quantized`` in the place of the linear layer ``name`` of ``model``, with ``inputs`` that are rounded.

    The storage format is the one that can hold it: hemorrhage.models.formats.packed where zero points are whole numbers
    or absent, hemorrhage.models.formats.affine where they are floats, .floats for floating-point numbers; integers of 8
    bits with rounded inputs are stored a byte each (.int8), which is what engines read. Raises ValueError where all
    words are the same: nothing real quantizes to that.
    """
    from hemorrhage.compress.checks.integrity import constant
    from hemorrhage.models.formats.storage import replace

    layer: Any = model.get_submodule(name)
    stored = _layer(name, quantized, settings, inputs, constant(layer.weight))
    stored.bias = layer.bias
    replace(model, name, stored)
    # Whoever still holds the layer needs its own weights no more; in memory they would be a second model.
    layer.weight.data = layer.weight.data.new_empty(0)
    if inputs is not None:
        from hemorrhage.models.emulation.activations import rounding_of

        stored.register_forward_pre_hook(rounding_of(name, inputs.arguments, inputs.tensors))


def _layer(
    name: str, quantized: AnyQuantized, settings: GroupSettings, inputs: RoundedInputs | None, silent: bool
) -> FormattedLinear:
    """Return the layer of its storage format, without a bias."""
    from hemorrhage.models.formats.affine import affine_linear
    from hemorrhage.models.formats.floats import FloatLinear
    from hemorrhage.models.formats.int8 import Int8Linear
    from hemorrhage.models.formats.packed import PackedLinear

    extra = {} if inputs is None else dict(inputs.tensors)
    arguments: QuantizationScheme = {} if inputs is None else {"input_activations": inputs.arguments}
    if isinstance(quantized, QuantizedFloats):
        tensors = {suffix: value.cpu() for suffix, value in quantized.tensors().items()}
        _check_codes(name, next(iter(tensors.values())), silent)
        return FloatLinear({**tensors, **extra}, {**scheme_of_floats(quantized.format), **arguments}, None)
    if inputs is not None and settings.bits == 8 and quantized.zero is None:
        quantized = quantized.cpu()
        _check_codes(name, quantized.codes, silent)
        octets: QuantizationScheme = {
            "weights": scheme(settings, symmetric=True), **arguments, "format": "int-quantized",
        }  # fmt: skip
        return Int8Linear({"weight": quantized.codes, "weight_scale": quantized.scale, **extra}, octets, None)
    packed = pack(name, quantized, settings.bits, silent)
    if quantized.zero is not None and quantized.zero.is_floating_point():
        return affine_linear(packed, settings.bits, None)
    group: QuantizationScheme = {"weights": scheme(settings, symmetric=quantized.zero is None)}
    if inputs is not None:
        # Without its format compressed-tensors would take the words for bytes.
        group |= {**arguments, "format": "pack-quantized"}
    return PackedLinear({**packed, **extra}, group, None)


def _check_codes(name: str, codes: Tensor, silent: bool) -> None:
    """Raise ValueError where all codes are the same, unless ``silent``: all weights were one number before."""
    octets = codes.view(torch.uint8)
    if not silent and bool((octets == octets.flatten()[0]).all()):
        raise ValueError(f"{name}: all packed words are the same")


def pack(name: str, quantized: Quantized, bits: int, silent: bool = False) -> dict[str, Tensor]:
    """Return tensors to store for the linear layer ``name``, by suffix; see hemorrhage.models.formats.packed.

    Packed where the codes are, and returned in the processor's memory. ``silent``: all of its weights were one number
    before.
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
    return {suffix: value.cpu() for suffix, value in tensors.items()}


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
