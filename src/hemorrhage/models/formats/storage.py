"""Storage formats: how a linear layer's weight lies in a checkpoint where it is not a plain tensor.

A layer of a storage format is a ``FormattedLinear``, an ``nn.Module`` in a linear layer's place. Its module in this
package has ``read(stored, scheme)``, and models.formats.reader its name. models.formats.dequantized is the base of
most.

The embedding and the head stay in their place and compute with a dense float32 weight, because each family looks
embeddings up, scales and ties them in its own way. The layer that such a weight is stored as is kept beside the model
(``vocabulary_layers``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from hemorrhage.models.formats.config import QuantizationArgs, QuantizationConfig, QuantizationScheme

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel


VOCABULARY = "_hemorrhage_vocabulary"
"""Attribute of a model with the layers that its embedding and head are stored as, by name."""


class FormattedLinear(nn.Module):
    """A linear layer whose weight is stored in a format of its own.

    ``storage_format``: the format's name in models.formats.reader; ``keep``: whether a loaded model computes with the
    layer itself instead of the dense weight; ``scheme``: its group in compressed-tensors' configuration, or None;
    ``inputs``: how its inputs are rounded, where no scheme says it.
    """

    storage_format: str
    keep = False
    scheme: QuantizationScheme | None = None
    inputs: QuantizationArgs | None = None
    in_features: int
    out_features: int
    bias: nn.Parameter | None

    @property
    def parameters_count(self) -> int:
        """Number of weights that the stored numbers stand for."""
        return self.out_features * self.in_features

    def stored(self) -> dict[str, Tensor]:
        """Return the tensors to store by suffix; they are saved as ``<layer>.<suffix>``."""
        raise NotImplementedError

    def dense(self) -> Tensor:
        """Return the weight that a reader of the checkpoint sees: float32 [rows, columns]."""
        raise NotImplementedError


def formatted_layers(model: nn.Module) -> dict[str, FormattedLinear]:
    """Return ``{name: layer}`` of the layers of ``model`` that have a storage format, in order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, FormattedLinear)}


def vocabulary_layers(model: nn.Module) -> dict[str, FormattedLinear]:
    """Return ``{name: layer}`` of what the embedding and the head are stored as, where that is not a plain tensor."""
    layers: dict[str, FormattedLinear] = vars(model).get(VOCABULARY, {})
    return layers


def stored_layers(model: nn.Module) -> dict[str, FormattedLinear]:
    """Return ``{name: layer}`` of all that is stored in a format: the layers of the model, embedding and head."""
    return formatted_layers(model) | vocabulary_layers(model)


def vocabulary_modules(model: PreTrainedModel) -> dict[str, Any]:
    """Return the embedding and the head by name, one of them where both have one weight."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    tied = set(model.all_tied_weights_keys)
    return {
        name: module
        for name, module in model.named_modules()
        if any(module is each for each in modules) and f"{name}.weight" not in tied
    }


def store_vocabulary(model: nn.Module, name: str, layer: FormattedLinear) -> None:
    """Make the embedding or head ``name`` compute with the dense weight of ``layer``, which is what is stored of it."""
    weight: Any = model.get_submodule(name).weight
    # What is tied to it has the same parameter.
    weight.data = layer.dense().to(weight.device)
    vars(model).setdefault(VOCABULARY, {})[name] = layer


def plain_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of the weights of ``model`` but for an embedding or head that is stored in a format."""
    wide = {id(model.get_submodule(name).weight) for name in vocabulary_layers(model)}
    return next(value.dtype for value in model.parameters() if value.is_floating_point() and id(value) not in wide)


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place of the layer ``name`` of ``model``."""
    model.set_submodule(name, module)


def scheme_of(name: str, quantization: QuantizationConfig | None) -> QuantizationScheme | None:
    """Return the group of compressed-tensors' configuration that the layer ``name`` belongs to."""
    groups = (quantization or {}).get("config_groups", {})
    for group in groups.values():
        if name in group["targets"]:
            return group
    return next((group for group in groups.values() if "Linear" in group["targets"]), None)


def distinct(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by name, without the names that are tied to an earlier one."""
    tied = set(model.all_tied_weights_keys)
    return {name: value.detach() for name, value in model.state_dict().items() if name not in tied}
