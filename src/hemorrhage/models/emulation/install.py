"""Make a loaded model round what its checkpoint says it rounds: inputs of layers, keys and values."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel

from hemorrhage.models.emulation import kv_cache
from hemorrhage.models.emulation.activations import rounding_of
from hemorrhage.models.formats.config import QuantizationConfig
from hemorrhage.models.formats.storage import FormattedLinear, scheme_of


def install(model: PreTrainedModel, quantization: QuantizationConfig, tensors: dict[str, Tensor]) -> None:
    """Make ``model`` round what its checkpoint says it rounds.

    ``quantization`` is config.json's ``quantization_config``, ``tensors`` are the checkpoint's, of which the
    ``<layer>.input_scale`` are read. Keys and values are hemorrhage.models.emulation.kv_cache's.
    """
    if any(group.get("input_activations") for group in quantization.get("config_groups", {}).values()):
        ignored = set(quantization.get("ignore") or ())
        for name, module in model.named_modules():
            if name in ignored or not isinstance(module, nn.Linear | FormattedLinear):
                continue
            arguments = (scheme_of(name, quantization) or {}).get("input_activations")
            if arguments:
                module.register_forward_pre_hook(rounding_of(name, arguments, tensors.get(f"{name}.input_scale")))
    kv_cache.install(model, quantization.get("kv_cache_scheme"))
