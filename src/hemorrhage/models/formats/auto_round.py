"""Checkpoints under auto-round's own name: the tensors are those of GPTQ or AWQ, as ``packing_format`` says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hemorrhage.models.formats import awq, gptq
from hemorrhage.models.formats.storage import FormattedLinear

MARKS = ("qweight",)

AWQ = "auto_round:auto_awq"

GPTQ_VERSIONS = {"auto_round:auto_gptq": 1, "auto_round": 2, "auto_round:gptqmodel": 2}
"""``packing_format`` -> version of GPTQ's zero points."""


def read_published(stored: Mapping[str, Tensor], quantization: Mapping[str, Any], _layer: str) -> FormattedLinear:
    """Return the layer of a published checkpoint. Raises ValueError where its tensors don't fit each other."""
    packing = quantization.get("packing_format")
    if packing == AWQ:
        return awq.layer_of(stored, quantization)
    if packing not in GPTQ_VERSIONS:
        known = ", ".join((*GPTQ_VERSIONS, AWQ))
        raise ValueError(f"auto-round's packing_format {packing!r} is not read; known are {known}")
    return gptq.layer_of(stored, quantization, GPTQ_VERSIONS[packing])


def describe(quantization: Mapping[str, Any]) -> str:
    """Return the format in words."""
    packed = awq if quantization.get("packing_format") == AWQ else gptq
    otherwise = ", some layers otherwise" if quantization.get("extra_config") else ""
    return f"auto-round as {packed.describe(quantization)}{otherwise}"
