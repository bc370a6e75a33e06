"""Reading the layers of a checkpoint that are stored in another form than a plain tensor."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hemorrhage.models.formats.forms import scheme_of
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


FORMS = {
    "weight_packed": "packed",
    "weight.quant_state.bitsandbytes__nf4": "codebook",
    "weight.quant_state.bitsandbytes__fp4": "codebook",
    "rotated_packed": "rotated",
    "low_rank_in": "low_rank",
    "weight_scale": "int8",
}
"""Suffix on disk -> module of hemorrhage.models.formats. The first that a layer has decides."""


def read(tensors: dict[str, Tensor], quantization: dict[str, Any] | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The plain tensors of a checkpoint, and ``{layer: form}`` of the others.

    ``quantization`` is config.json's ``quantization_config``.
    """
    plain = dict(tensors)
    found: dict[str, Any] = {}
    for suffix, module in FORMS.items():
        for key in [key for key in plain if key.endswith(f".{suffix}")]:
            name = key.removesuffix(f".{suffix}")
            own = [other for other in plain if other.startswith(f"{name}.") and other != f"{name}.bias"]
            stored = {other.removeprefix(f"{name}."): plain.pop(other) for other in own}
            form = importlib.import_module(f"hemorrhage.models.formats.{module}").read(
                stored, scheme_of(name, quantization)
            )
            bias = plain.get(f"{name}.bias")
            form.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)
            found[name] = form
    return plain, found


def keeps(form: Any) -> bool:
    """Whether a loaded model computes with the form itself."""
    return bool(getattr(importlib.import_module(type(form).__module__), "KEEP", False))
