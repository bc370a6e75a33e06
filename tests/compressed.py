"""Layers and models that compressed-tensors itself has compressed, and what it reads of them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor, ModelCompressor
from compressed_tensors.compressors.base import decompress_module
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    apply_quantization_config,
)
from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam, maybe_pad_tensor_for_block_quant
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

INT4 = {"num_bits": 4, "type": "int"}
FP8 = {"num_bits": 8, "type": "float"}

FORMATS: dict[str, tuple[str, dict[str, object]]] = {
    "pack group": ("pack-quantized", {**INT4, "strategy": "group", "group_size": 16}),
    "pack asymmetric": ("pack-quantized", {**INT4, "strategy": "group", "group_size": 16, "symmetric": False}),
    "pack channel of 3 bits": ("pack-quantized", {"num_bits": 3, "strategy": "channel", "symmetric": False}),
    "pack of 8 bits": ("pack-quantized", {"num_bits": 8, "strategy": "channel"}),
    "int channel": ("int-quantized", {"num_bits": 8, "strategy": "channel"}),
    "int tensor": ("int-quantized", {"num_bits": 8, "strategy": "tensor", "symmetric": False}),
    "naive group": ("naive-quantized", {**INT4, "strategy": "group", "group_size": 8, "symmetric": False}),
    "float tensor": ("float-quantized", {**FP8, "strategy": "tensor"}),
    "float channel": ("float-quantized", {**FP8, "strategy": "channel"}),
    "float block": ("float-quantized", {**FP8, "strategy": "block", "block_structure": [16, 32]}),
    "naive float group": ("naive-quantized", {**FP8, "strategy": "group", "group_size": 16}),
    "nvfp4": ("nvfp4-pack-quantized", dict(preset_name_to_scheme("NVFP4A16", ["Linear"]).weights or ())),
    "mxfp4": ("mxfp4-pack-quantized", dict(preset_name_to_scheme("MXFP4A16", ["Linear"]).weights or ())),
    "mxfp8": ("mxfp8-quantized", dict(preset_name_to_scheme("MXFP8A16", ["Linear"]).weights or ())),
}
"""Format on disk, and the arguments of the weights' grid, by name."""


def columns_of(name: str) -> int:
    """Return a number of columns that is as odd as the format allows."""
    if name.startswith("mx"):
        return 96
    return 80 if "group_size" in FORMATS[name][1] or name == "nvfp4" else 77


def scheme_of(name: str, targets: Sequence[str] = ("Linear",), **inputs: Any) -> QuantizationScheme:
    """Return compressed-tensors' scheme of a format."""
    form, arguments = FORMATS[name]
    activations = QuantizationArgs(**inputs) if inputs else None
    return QuantizationScheme(
        targets=list(targets), weights=QuantizationArgs(**arguments), input_activations=activations, format=form
    )


def qparams(weight: Tensor, arguments: QuantizationArgs) -> dict[str, Tensor]:
    """Return scales, zero points and the global scale of ``weight``, as llm-compressor's observers compute them."""
    total = None
    if arguments.strategy == "tensor_group":
        total = generate_gparam(weight.min(), weight.max()).to(torch.float32)
    if arguments.strategy == "tensor":
        low, high = weight.min().reshape(1), weight.max().reshape(1)
    elif arguments.strategy == "channel":
        low, high = weight.aminmax(dim=1, keepdim=True)
    elif arguments.strategy == "block":
        height, width = arguments.block_structure
        blocks = maybe_pad_tensor_for_block_quant(weight, (height, width)).unflatten(1, (-1, width))
        blocks = blocks.unflatten(0, (-1, height)).transpose(1, 2)
        low, high = blocks.amin((-1, -2)), blocks.amax((-1, -2))
    else:
        low, high = weight.unflatten(1, (-1, arguments.group_size)).aminmax(dim=-1)
    scale, zero = calculate_qparams(low, high, arguments, global_scale=total)
    found = {"weight_scale": scale, "weight_zero_point": zero}
    return found if total is None else {**found, "weight_global_scale": total}


def compressed(name: str, weight: Tensor) -> tuple[dict[str, Tensor], QuantizationScheme, Tensor]:
    """Return the tensors that compressed-tensors stores of ``weight``, its scheme, and what it reads of them."""
    scheme = scheme_of(name)
    compressor = BaseCompressor.get_value_from_registry(str(scheme.format))
    state = {"weight": weight, **qparams(weight, scheme.weights)}
    stored = compressor.compress(state, scheme)
    return stored, scheme, compressor.decompress(stored, scheme)["weight"]


def quantization_config(scheme: QuantizationScheme, **changes: object) -> dict[str, Any]:
    """Return config.json's quantization_config of a model with one ``scheme``, as the library writes it."""
    group = scheme.model_dump(mode="json")
    return {
        "quant_method": "compressed-tensors",
        "format": str(group["format"]),
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        **changes,
    }


def save(
    folder: Path,
    out: Path,
    schemes: Sequence[QuantizationScheme],
    tokens: Tensor,
    cache: QuantizationArgs | None = None,
    ignore: Sequence[str] = ("lm_head",),
) -> Path:
    """Write the model of ``folder`` as compressed-tensors stores it; fixed scales of inputs are those of ``tokens``."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    groups = {f"group_{index}": scheme for index, scheme in enumerate(schemes)}
    frozen = QuantizationStatus.FROZEN
    config = QuantizationConfig(
        config_groups=groups, ignore=list(ignore), quantization_status=frozen, kv_cache_scheme=cache
    )
    apply_quantization_config(model, config)
    linears: list[Any] = [module for module in model.modules() if isinstance(module, nn.Linear)]
    layers = [module for module in linears if getattr(module, "quantization_scheme", None)]
    for index, module in enumerate(each for each in model.modules() if cache and hasattr(each, "k_scale")):
        # Of keys of this size some are cut, and no two layers have the same scale.
        module.k_scale.data.fill_(0.002 * (index + 1))
        module.v_scale.data.fill_(0.0005 * (index + 1))
    largest = _largest_inputs(model, layers, tokens)
    for module in layers:
        scheme = module.quantization_scheme
        for name, value in qparams(module.weight.data, scheme.weights).items():
            getattr(module, name).data = value.to(getattr(module, name).dtype)
        if hasattr(module, "input_global_scale"):
            module.input_global_scale.data = generate_gparam(-largest[module], largest[module])
        elif hasattr(module, "input_scale"):
            scale, _ = calculate_qparams(-largest[module], largest[module], scheme.input_activations)
            module.input_scale.data = scale.to(module.input_scale.dtype)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(out)
    compressor.update_config(str(out))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / file, out / file)
    return out


def _largest_inputs(model: Any, layers: list[Any], tokens: Tensor) -> dict[Any, Tensor]:
    """The largest magnitude among each layer's inputs."""
    largest: dict[Any, Tensor] = {}

    def look(module: Any, arguments: tuple[Any, ...]) -> None:
        largest[module] = arguments[0].detach().abs().max()

    hooks = [module.register_forward_pre_hook(look) for module in layers]
    for module in layers:
        module.quantization_enabled = False
    with torch.no_grad():
        model(tokens)
    for module in layers:
        module.quantization_enabled = True
    for hook in hooks:
        hook.remove()
    return largest


def decompress(model: Any) -> Any:
    """Let a model that transformers loaded decompress itself, which it else does when it is first called."""
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            decompress_module(module)
    if hasattr(model, "ct_decompress_hook"):
        model.ct_decompress_hook.remove()
    return model
