"""The forms a linear layer's weight can have in a checkpoint, beside the plain tensor.

A form is an ``nn.Module`` that stands in a linear layer's place. It has ``in_features``, ``out_features``, ``bias``,
``dense()`` (float32 [out, in], what a reader of the checkpoint sees), ``stored()`` (tensors by suffix, saved as
``<layer>.<suffix>``), ``scheme`` (its group in compressed-tensors' configuration, or None), ``parameters_count`` and
``forward``; models.formats.dequantized has what most share. Its module has ``read(stored, scheme)``, and ``KEEP``
where a loaded model computes with the form itself instead of the dense weight.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

FORMS = {
    "weight_packed": "packed",
    "weight.quant_state.bitsandbytes__nf4": "codebook",
    "weight.quant_state.bitsandbytes__fp4": "codebook",
    "rotated_packed": "rotated",
    "low_rank_in": "low_rank",
    "weight_scale": "int8",
}
"""Suffix on disk -> module of hemorrhage.models.formats. The first that a layer has decides."""


def forms_of(model: nn.Module) -> dict[str, Any]:
    """``{name: form}`` of the layers of ``model`` that are forms, in order."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "stored")}


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place of the layer ``name`` of ``model``."""
    model.set_submodule(name, module)


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


def scheme_of(name: str, quantization: dict[str, Any] | None) -> dict[str, Any] | None:
    """The group of compressed-tensors' configuration that the layer ``name`` belongs to."""
    groups = (quantization or {}).get("config_groups", {})
    for group in groups.values():
        if name in group["targets"]:
            return group
    return next((group for group in groups.values() if "Linear" in group["targets"]), None)


def distinct(model: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, without the names that are tied to an earlier one."""
    tied = set(model.all_tied_weights_keys)
    return {name: value.detach() for name, value in model.state_dict().items() if name not in tied}
