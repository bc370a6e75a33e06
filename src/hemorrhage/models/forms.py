"""The forms a linear layer's weight can have in a checkpoint, beside the plain tensor.

A form is an ``nn.Module`` that stands in a linear layer's place. It has ``in_features``, ``out_features``, ``bias``,
``dense()`` (float32 [out, in], what a reader of the checkpoint sees), ``stored()`` (tensors by suffix, saved as
``<layer>.<suffix>``), ``scheme`` (its group in compressed-tensors' configuration, or None), ``parameters_count`` and
``forward``, ``form``, its name in MODULES, and ``keep``: whether a loaded model computes with the form itself instead
of the dense weight. hemorrhage.models.dequantized has what most share. Its module has ``read(stored, scheme)``.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from torch import Tensor, nn

FORMS = {
    "weight_packed": "packed",
    "weight.quant_state.bitsandbytes__nf4": "codebook",
    "weight.quant_state.bitsandbytes__fp4": "codebook",
    "rotated_packed": "rotated",
    "low_rank_in": "low_rank",
    "weight_scale": "int8",
}
"""Suffix on disk -> form. The first that a layer has decides."""

MODULES = {
    "packed": "hemorrhage.models.packed",
    "codebook": "hemorrhage.models.codebook",
    "rotated": "hemorrhage.models.rotated",
    "low_rank": "hemorrhage.models.low_rank",
    "int8": "hemorrhage.models.int8",
    "sliced": "hemorrhage.models.sliced",
    "gguf_file": "hemorrhage.models.gguf_file",
}
"""Form, of a layer or of a whole model, as checkpoints name it -> its module. Names on disk stay as they are."""


def module_of(form: str) -> ModuleType:
    """The module of a form. Found by name: what a program makes of a checkpoint depends on the form that is there."""
    return importlib.import_module(MODULES[form])


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
    for suffix, kind in FORMS.items():
        for key in [key for key in plain if key.endswith(f".{suffix}")]:
            name = key.removesuffix(f".{suffix}")
            own = [other for other in plain if other.startswith(f"{name}.") and other != f"{name}.bias"]
            stored = {other.removeprefix(f"{name}."): plain.pop(other) for other in own}
            form = module_of(kind).read(stored, scheme_of(name, quantization))
            bias = plain.get(f"{name}.bias")
            form.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
            found[name] = form
    return plain, found


def scheme_of(name: str, quantization: dict[str, Any] | None) -> dict[str, Any] | None:
    """The group of compressed-tensors' configuration that the layer ``name`` belongs to."""
    groups = (quantization or {}).get("config_groups", {})
    for group in groups.values():
        if name in group["targets"]:
            return group
    return next((group for group in groups.values() if "Linear" in group["targets"]), None)
