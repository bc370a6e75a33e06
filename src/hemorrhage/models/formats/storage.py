"""The forms a linear layer's weight can have in a checkpoint, beside the plain tensor.

A form is an ``nn.Module`` that stands in a linear layer's place. It has ``in_features``, ``out_features``, ``bias``,
``dense()`` (float32 [out, in], what a reader of the checkpoint sees), ``stored()`` (tensors by suffix, saved as
``<layer>.<suffix>``), ``scheme`` (its group in compressed-tensors' configuration, or None), ``parameters_count`` and
``forward``, ``form``, its name in models.formats.reader, and ``keep``: whether a loaded model computes with the form
itself instead of the dense weight. models.formats.dequantized has what most share. Its module has
``read(stored, scheme)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


def formatted_layers(model: nn.Module) -> dict[str, Any]:
    """``{name: form}`` of the layers of ``model`` that are forms, in order."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "stored")}


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place of the layer ``name`` of ``model``."""
    model.set_submodule(name, module)


def scheme_of(name: str, quantization: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the group of compressed-tensors' configuration that the layer ``name`` belongs to."""
    groups = (quantization or {}).get("config_groups", {})
    for group in groups.values():
        if name in group["targets"]:
            return group
    return next((group for group in groups.values() if "Linear" in group["targets"]), None)


def distinct(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the parameters and persistent buffers by name, without the names that are tied to an earlier one."""
    tied = set(model.all_tied_weights_keys)
    return {name: value.detach() for name, value in model.state_dict().items() if name not in tied}
