"""Make a loaded model round what its checkpoint says it rounds: inputs of layers, keys and values."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from transformers import PreTrainedModel

from hemorrhage.models.emulation import eviction, kv_cache
from hemorrhage.models.emulation.activations import INPUT_TENSORS, rounding_of
from hemorrhage.models.formats.config import QuantizationConfig
from hemorrhage.models.formats.storage import FormattedLinear, formatted_layers, scheme_of, vocabulary_modules


def install(
    model: PreTrainedModel,
    quantization: QuantizationConfig,
    tensors: Mapping[str, Tensor],
    layers: Mapping[str, FormattedLinear],
) -> None:
    """Make ``model`` round what its checkpoint says it rounds.

    ``quantization`` is config.json's ``quantization_config``, ``tensors`` are the checkpoint's, of which those that
    ``rounding_of`` names are read, and ``layers`` its layers with a storage format. Keys and values are
    hemorrhage.models.emulation.kv_cache's.
    """
    has_groups = any(group.get("input_activations") for group in quantization.get("config_groups", {}).values())
    if has_groups or any(layer.inputs for layer in layers.values()):
        # Embedding and head compute dense, whatever their group says of inputs.
        ignored = {*(quantization.get("ignore") or ()), *vocabulary_modules(model)}
        for name, module in model.named_modules():
            if name in ignored or not isinstance(module, nn.Linear | FormattedLinear):
                continue
            own = layers[name].inputs if name in layers else None
            arguments = own or (scheme_of(name, quantization) or {}).get("input_activations")
            if arguments:
                module.register_forward_pre_hook(rounding_of(name, arguments, _stored(name, tensors)))
    kv_cache.install(model, quantization.get("kv_cache_scheme"), tensors)
    eviction.install(model)


def install_in_memory(model: PreTrainedModel) -> None:
    """Make ``model``, with layers of a storage format, round the inputs that these layers say it rounds."""
    for name, layer in formatted_layers(model).items():
        round_inputs(name, layer)


def round_inputs(name: str, layer: FormattedLinear) -> None:
    """Make ``layer``, which ``name`` is, round its inputs where it says so."""
    arguments = layer.inputs or (layer.scheme or {}).get("input_activations")
    if arguments:
        layer.register_forward_pre_hook(rounding_of(name, arguments, layer.stored()))


def _stored(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {suffix: tensors[f"{name}.{suffix}"] for suffix in INPUT_TENSORS if f"{name}.{suffix}" in tensors}
