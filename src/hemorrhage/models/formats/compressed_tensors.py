"""Reading what compressed-tensors (llm-compressor, and others that write its format) published.

config.json's ``quantization_config`` has groups of layers, each with its ``targets``: a layer's name, ``re:`` and a
regular expression that its beginning matches, or a class. Of several that fit, names go before expressions and these
before classes, as in the library. A weight that the library rounds each time that it computes (``quantization_status``
before ``compressed``) becomes the codes that it is rounded to.

Whether a global scale multiplies or divides is decided by its name: ``weight_global_scale`` divides the scales,
NVIDIA's ``weight_scale_2`` multiplies them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from hemorrhage.models.formats import compressed, modelopt, small_floats
from hemorrhage.models.formats.compressed import CompressedLinear
from hemorrhage.models.formats.config import QuantizationArgs, QuantizationScheme
from hemorrhage.models.formats.storage import FormattedLinear
from hemorrhage.models.stream import is_real

MARKS = ("weight_packed", "weight_scale", "bitmask", "compressed", "weight_scale_2")
"""Suffixes of a quantized layer's tensors."""

UNREAD = (r"self_attn\.[kqv]_(scale|zero_point)$", r"\.output_(scale|zero_point)$")
"""Names of tensors of keys and values, whose cache is not emulated."""

FORMATS = (
    "dense",
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
    "mixed-precision",
    "fakequant",
)

SPARSE = ("sparse-24-bitmask", "sparse-bitmask", "marlin-24")

_ARGUMENTS = (
    "num_bits",
    "type",
    "symmetric",
    "strategy",
    "group_size",
    "block_structure",
    "dynamic",
    "actorder",
    "scale_dtype",
    "zp_dtype",
)

_UNFINISHED = ("initialized", "calibration", "frozen")
"""Statuses with weights that are rounded when the library computes."""


def read_published(stored: Mapping[str, Tensor], quantization: Mapping[str, Any], layer: str) -> FormattedLinear:
    """Return the layer that ``stored`` holds; its dense weight is what the library's ``dequantize`` returns.

    That is computed in the scales' dtype: bfloat16 where they are bfloat16 or bytes.
    """
    refuse(quantization)
    tensors = dict(stored)
    if modelopt.TOTAL in tensors:
        return modelopt.ModelOptLinear(tensors)
    scheme = scheme_of_layer(layer, quantization)
    _check_inputs(scheme)
    weight = tensors.get("weight")
    if weight is not None and is_real(weight.dtype):
        if quantization.get("quantization_status") not in _UNFINISHED:
            raise ValueError(f"weight of type {weight.dtype} has a scale, and quantization_status is compressed")
        tensors |= compress(tensors, scheme["weights"])
    for surplus in ("weight_zero_point", "input_zero_point"):
        which = "weights" if surplus.startswith("weight") else "input_activations"
        if (cast(QuantizationArgs | None, scheme.get(which)) or {}).get("symmetric", True):
            tensors.pop(surplus, None)
    return CompressedLinear(tensors, _with_scale_dtype(scheme, tensors))


def describe(quantization: Mapping[str, Any]) -> str:
    """Return what was done to the weights and what is rounded at run time, in words."""
    refuse(quantization)
    groups = [_describe_group(scheme) for _, scheme in _groups(quantization)]
    words = f"compressed-tensors {quantization.get('format', 'dense')}"
    if groups:
        words += f": {' + '.join(dict.fromkeys(groups))}"
    cache = quantization.get("kv_cache_scheme")
    if cache:
        words += f"; keys and values in {cache.get('num_bits', 8)}-bit {cache.get('type', 'int')}, not emulated"
    return words


def refuse(quantization: Mapping[str, Any]) -> None:
    """Raise ValueError for formats and transforms that are not read, by their name."""
    sparsity = (quantization.get("sparsity_config") or {}).get("format") or "dense"
    for name in (quantization.get("format") or "dense", sparsity):
        if name in SPARSE:
            raise ValueError(f"compressed-tensors format {name} is not read: the library itself has given it up")
        if name not in FORMATS:
            raise ValueError(f"compressed-tensors format {name} is unknown; known are {', '.join(FORMATS)}")
    transforms = (quantization.get("transform_config") or {}).get("config_groups") or {}
    for name, transform in transforms.items():
        for applied in transform.get("apply", ()):
            if applied.get("location") not in ("weight_input", "weight_output"):
                raise ValueError(f"transform {name} at {applied.get('location')} rotates while the model computes")


def scheme_of_layer(layer: str, quantization: Mapping[str, Any]) -> QuantizationScheme:
    """Return the group that ``layer`` belongs to, its defaults filled in. Raises ValueError where there is none."""
    groups = _groups(quantization)
    if not groups:
        raise ValueError("config_groups of quantization_config is empty")
    matches = [
        (rank, target, index) for index, (targets, _) in enumerate(groups) for rank, target in _ranks(layer, targets)
    ]
    if matches:
        return groups[min(matches)[2]][1]
    # Some files name layers otherwise than their tensors: with or without the name of the whole model.
    if len(groups) == 1:
        return groups[0][1]
    raise ValueError("no group of quantization_config targets this quantized layer")


def compress(stored: Mapping[str, Tensor], arguments: QuantizationArgs) -> dict[str, Tensor]:
    """Return the codes that a weight in ``stored`` is rounded to whenever the library computes."""
    bits, is_integer = arguments["num_bits"], arguments["type"] == "int"
    if not is_integer and bits == 4:
        raise ValueError("4-bit float weights that are not compressed can't be read")
    weight = stored["weight"]
    shaped = {**stored, "weight": torch.empty(weight.shape, dtype=torch.int8 if is_integer else torch.float8_e4m3fn)}
    if not is_integer:
        shaped["weight"].view(torch.uint8).zero_()
    layer = CompressedLinear(shaped, {"weights": arguments})
    row_of, column_of = compressed.grid_indices(layer)
    scaled = weight / compressed.scales(layer.stored())[row_of][:, column_of]
    zero = compressed.zero_points(layer.stored(), arguments, len(weight))
    if zero is not None:
        scaled += zero[row_of][:, column_of].to(scaled.dtype)
    if not is_integer:
        return {"weight": small_floats.round_e4m3(scaled).to(torch.float8_e4m3fn)}
    half = 2 ** (bits - 1)
    return {"weight": scaled.clamp_(-half, half - 1).round_().to(torch.int8)}


def _ranks(layer: str, targets: Sequence[str]) -> list[tuple[int, str]]:
    """Return the ``targets`` that fit ``layer``, each with 0 for a name, 1 for an expression and 2 for a class."""
    fitting = []
    for target in targets:
        if target.startswith("re:"):
            try:
                is_match = re.match(target.removeprefix("re:"), layer) is not None
            except re.error as error:
                raise ValueError(f"target {target} of config_groups is no regular expression: {error}") from None
            fitting += [(1, target)] if is_match else []
        elif target == layer:
            fitting.append((0, target))
        elif target in ("Linear", "LinearBase"):
            fitting.append((2, target))
    return fitting


def _groups(quantization: Mapping[str, Any]) -> list[tuple[list[str], QuantizationScheme]]:
    """Return the targets and the scheme of each group, defaults and presets filled in."""
    groups = []
    for name, entry in _mapping(quantization.get("config_groups") or {}, "config_groups").items():
        group = _preset(name, entry) if isinstance(entry, list) else _mapping(entry, f"group {name}")
        if not group.get("weights"):
            raise ValueError(f"group {name} of config_groups does not quantize weights")
        scheme: QuantizationScheme = {"weights": _arguments(_mapping(group["weights"], f"weights of group {name}"))}
        inputs = group.get("input_activations")
        if inputs:
            scheme["input_activations"] = _arguments(_mapping(inputs, f"input_activations of group {name}"))
        own = group.get("format") or quantization.get("format")
        if own and own != "mixed-precision":
            scheme["format"] = str(own)
        targets = group.get("targets")
        groups.append(([str(target) for target in targets] if isinstance(targets, list) else [], scheme))
    return groups


def _mapping(entry: object, name: str) -> Mapping[str, Any]:
    """Return ``entry`` of a file that anybody may have written. Raises ValueError where it is no mapping."""
    if isinstance(entry, Mapping):
        return entry
    raise ValueError(f"{name} of quantization_config is no mapping")


def _preset(name: str, targets: list[str]) -> Mapping[str, Any]:
    from compressed_tensors.quantization.quant_scheme import is_preset_scheme, preset_name_to_scheme

    if not is_preset_scheme(name):
        raise ValueError(f"group {name} of config_groups is not among the presets of compressed-tensors")
    preset: Mapping[str, Any] = preset_name_to_scheme(name, targets).model_dump(mode="json")
    return preset


def _arguments(entry: Mapping[str, Any]) -> QuantizationArgs:
    """Return the arguments of a group, as the library fills them in."""
    arguments = {key: entry[key] for key in _ARGUMENTS if entry.get(key) is not None}
    arguments = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": False, **arguments}
    if not isinstance(arguments["num_bits"], int) or arguments["type"] not in ("int", "float"):
        raise ValueError(f"{arguments['num_bits']} bits of type {arguments['type']} are unknown")
    size = arguments.get("group_size")
    if "strategy" not in arguments:
        arguments["strategy"] = "tensor" if size is None else "channel" if size == -1 else "group"
    if size == -1:
        del arguments["group_size"]
    # Older releases write "64x64".
    if isinstance(blocks := arguments.get("block_structure"), str):
        sizes = blocks.split("x")
        arguments["block_structure"] = [int(each) if each.isdecimal() else 0 for each in sizes]
    return cast(QuantizationArgs, arguments)


def _check_inputs(scheme: QuantizationScheme) -> None:
    arguments = scheme.get("input_activations")
    if arguments and arguments["num_bits"] not in (4, 8) and arguments["type"] == "float":
        raise ValueError(f"inputs of {arguments['num_bits']}-bit floats can't be emulated")


def _with_scale_dtype(scheme: QuantizationScheme, stored: Mapping[str, Tensor]) -> QuantizationScheme:
    """Return ``scheme`` with the type of the scales, which says that their dtype is computed in."""
    if "weight_scale" not in stored or "scale_dtype" in scheme["weights"]:
        return scheme
    return {**scheme, "weights": {**scheme["weights"], "scale_dtype": str(stored["weight_scale"].dtype)}}


def _describe_group(scheme: QuantizationScheme) -> str:
    weights, inputs = scheme["weights"], scheme.get("input_activations")
    words = _describe(weights)
    if not weights["symmetric"]:
        words += ", asymmetric"
    if weights.get("actorder") in ("group", "dynamic", True):
        words += ", act-order"
    if inputs:
        static = "" if inputs["dynamic"] is True else ", static" if inputs["dynamic"] is False else ", global scale"
        words += f", inputs {_describe(inputs)}{static}"
    return words


def _describe(arguments: QuantizationArgs) -> str:
    kind = "integers" if arguments["type"] == "int" else "floats"
    match arguments["strategy"]:
        case "group" | "tensor_group":
            over = f"in groups of {arguments.get('group_size')}"
        case "block":
            over = f"in blocks of {'x'.join(map(str, arguments.get('block_structure') or ()))}"
        case strategy:
            over = f"per {strategy}"
    return f"{arguments['num_bits']}-bit {kind} {over}"
