"""Packed integer weights as compressed-tensors stores them (format ``pack-quantized``).

``weight_packed`` int32 [rows, ceil(columns · bits / 32)], codes shifted to unsigned and laid bit to bit
across words; ``weight_scale`` [rows, groups]; for asymmetric grids ``weight_zero_point`` int32 [ceil(rows ·
bits / 32), groups]; ``weight_shape``. transformers reads it with compressed-tensors, vLLM too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hemorrhage.compress.grid import GridSettings, Quantized
from hemorrhage.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Packed:
    """What stands in a checkpoint in the place of the weights of some linear layers."""

    tensors: dict[str, Tensor]
    weights: frozenset[str]
    """Names of the weights that are not stored."""
    config: dict[str, Any]
    """The ``quantization_config`` of config.json."""


def packed(model: PreTrainedModel, quantized: dict[str, Quantized], settings: GridSettings) -> Packed:
    """The linear layers ``quantized`` of ``model``, packed."""
    tensors: dict[str, Tensor] = {}
    for name, part in quantized.items():
        tensors |= pack(name, part, settings.bits)
    return Packed(
        tensors, frozenset(f"{name}.weight" for name in quantized), _config(model, quantized, settings)
    )


def pack(name: str, quantized: Quantized, bits: int) -> dict[str, Tensor]:
    """Tensors to store for the linear layer ``name``.

    Raises ValueError where all packed words are the same: nothing real quantizes to that.
    """
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    words = pack_to_int32(quantized.codes, bits).contiguous()
    if (words == words.flatten()[0]).all():
        raise ValueError(f"{name}: all packed words are the same")
    tensors = {
        f"{name}.weight_packed": words,
        f"{name}.weight_scale": quantized.scale,
        f"{name}.weight_shape": torch.tensor(quantized.codes.shape),
    }
    if quantized.zero is not None:
        tensors[f"{name}.weight_zero_point"] = pack_to_int32(quantized.zero, bits, packed_dim=0).contiguous()
    return tensors


def _config(
    model: PreTrainedModel, quantized: dict[str, Quantized], settings: GridSettings
) -> dict[str, Any]:
    from compressed_tensors import __version__

    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    channel = settings.group_size == "channel"
    weights = {
        "num_bits": settings.bits,
        "type": "int",
        "symmetric": settings.symmetric,
        "strategy": "channel" if channel else "group",
        "group_size": None if channel else settings.group_size,
        "dynamic": False,
    }
    return {
        "quant_method": "compressed-tensors",
        "version": __version__,
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": [name for name in linears if name not in quantized],
    }
