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
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from hemorrhage.models.formats import compressed, modelopt, small_floats
from hemorrhage.models.formats.compressed import CompressedLinear
from hemorrhage.models.formats.config import QuantizationArgs, QuantizationScheme
from hemorrhage.models.formats.settings import Entry, parse
from hemorrhage.models.formats.storage import FormattedLinear
from hemorrhage.models.stream import is_real

MARKS = ("weight_packed", "weight_scale", "bitmask", "compressed", "weight_scale_2")
"""Suffixes of a quantized layer's tensors."""

UNREAD = (r"self_attn\.[kqv]_(scale|zero_point)$", r"\.output_(scale|zero_point)$")
"""Names of tensors of keys and values, of which those that ``cache_scale`` names are emulated."""

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

_UNFINISHED = ("initialized", "calibration", "frozen")
"""Statuses with weights that are rounded when the library computes."""


class Arguments(Entry):
    """How numbers are rounded: the library's QuantizationArgs, with its defaults."""

    num_bits: Annotated[int, Field(ge=1, le=16)] = 8
    type: Literal["int", "float"] = "int"
    symmetric: bool = True
    strategy: str | None = None
    group_size: Annotated[int, Field(lt=2**31)] | None = None
    block_structure: list[int] | str | None = None
    dynamic: bool | str = False
    actorder: str | bool | None = None
    scale_dtype: str | None = None
    zp_dtype: str | None = None

    def filled(self) -> QuantizationArgs:
        """Return them as the library fills them in."""
        size, structure = self.group_size, self.block_structure
        if isinstance(structure, str):
            # Older releases write "64x64".
            structure = [int(each) if each.isdecimal() and len(each) < 10 else 0 for each in structure.split("x")]
        strategy = self.strategy or ("tensor" if size is None else "channel" if size == -1 else "group")
        given = {
            **self.model_dump(),
            "strategy": strategy,
            "group_size": None if size == -1 else size,
            "block_structure": structure,
        }
        return cast(QuantizationArgs, {key: value for key, value in given.items() if value is not None})


class Group(Entry):
    """Layers that are rounded alike."""

    targets: list[str] = Field(default_factory=list)
    weights: Arguments | None = None
    input_activations: Arguments | None = None
    format: str | None = None


class Sparsity(Entry):
    """How zeros are left out."""

    format: str | None = None


class Applied(Entry):
    """Where a rotation is applied."""

    location: str | None = None


class Transform(Entry):
    """A rotation."""

    apply: list[Applied] = Field(default_factory=list)


class Transforms(Entry):
    """Rotations by name."""

    config_groups: dict[str, Transform] | None = None


class Configuration(Entry):
    """config.json's ``quantization_config``. A group is given in full, or as the targets of a preset of its name."""

    format: str | None = None
    quantization_status: str | None = None
    config_groups: dict[str, Group | list[str]] | None = None
    kv_cache_scheme: Arguments | None = None
    sparsity_config: Sparsity | None = None
    transform_config: Transforms | None = None


def read_published(stored: Mapping[str, Tensor], quantization: Mapping[str, Any], layer: str) -> FormattedLinear:
    """Return the layer that ``stored`` holds; its dense weight is what the library's ``dequantize`` returns.

    That is computed in the scales' dtype: bfloat16 where they are bfloat16 or bytes.
    """
    configuration = parse(Configuration, quantization)
    refuse(configuration)
    tensors = dict(stored)
    if modelopt.TOTAL in tensors:
        return modelopt.ModelOptLinear(tensors)
    scheme = scheme_of_layer(layer, configuration)
    weight = tensors.get("weight")
    if weight is not None and is_real(weight.dtype):
        if configuration.quantization_status not in _UNFINISHED:
            raise ValueError(f"weight of type {weight.dtype} has a scale, and quantization_status is compressed")
        tensors |= compress(tensors, scheme["weights"])
    inputs = scheme.get("input_activations")
    for arguments, surplus in ((scheme["weights"], "weight_zero_point"), (inputs, "input_zero_point")):
        if arguments is None or arguments["symmetric"]:
            tensors.pop(surplus, None)
    return CompressedLinear(tensors, _with_scale_dtype(scheme, tensors))


def describe(quantization: Mapping[str, Any]) -> str:
    """Return what was done to the weights and what is rounded at run time, in words."""
    configuration = parse(Configuration, quantization)
    refuse(configuration)
    groups = [_describe_group(scheme) for _, scheme in _groups(configuration)]
    words = f"compressed-tensors {configuration.format or 'dense'}"
    if groups:
        words += f": {' + '.join(dict.fromkeys(groups))}"
    cache = configuration.kv_cache_scheme
    if cache:
        words += f"; keys and values in {cache.num_bits}-bit {cache.type}"
    return words


def rounds_cache(quantization: Mapping[str, Any]) -> bool:
    """Return whether keys and values are rounded at run time."""
    return parse(Configuration, quantization).kv_cache_scheme is not None


def cache_scale(quantization: Mapping[str, Any], layer: str, which: str) -> str | None:
    """Return the name of the scale of keys (``which`` k) or values (v) of an attention ``layer``.

    None where it is not one fixed scale of FP8.
    """
    scheme = parse(Configuration, quantization).kv_cache_scheme
    is_fixed = scheme is not None and scheme.symmetric and scheme.dynamic is False and scheme.strategy == "tensor"
    if scheme is None or not is_fixed or (scheme.num_bits, scheme.type) != (8, "float"):
        return None
    return f"{layer}.{which}_scale"


def refuse(configuration: Configuration) -> None:
    """Raise ValueError for formats and transforms that are not read, by their name."""
    sparsity = configuration.sparsity_config.format if configuration.sparsity_config else None
    for name in (configuration.format or "dense", sparsity or "dense"):
        if name in SPARSE:
            raise ValueError(f"compressed-tensors format {name} is not read: the library itself has given it up")
        if name not in FORMATS:
            raise ValueError(f"compressed-tensors format {name} is unknown; known are {', '.join(FORMATS)}")
    transforms = configuration.transform_config
    for name, transform in ((transforms and transforms.config_groups) or {}).items():
        for applied in transform.apply:
            if applied.location not in ("weight_input", "weight_output"):
                raise ValueError(f"transform {name} at {applied.location} rotates while the model computes")


def scheme_of_layer(layer: str, configuration: Configuration) -> QuantizationScheme:
    """Return the group that ``layer`` belongs to, its defaults filled in. Raises ValueError where there is none."""
    groups = _groups(configuration)
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


def _groups(configuration: Configuration) -> list[tuple[list[str], QuantizationScheme]]:
    """Return the targets and the scheme of each group, defaults and presets filled in."""
    groups = []
    for name, entry in (configuration.config_groups or {}).items():
        group = _preset(name, entry) if isinstance(entry, list) else entry
        if group.weights is None:
            raise ValueError(f"group {name} of config_groups does not quantize weights")
        scheme: QuantizationScheme = {"weights": group.weights.filled()}
        if group.input_activations is not None:
            scheme["input_activations"] = group.input_activations.filled()
        own = group.format or configuration.format
        if own and own != "mixed-precision":
            scheme["format"] = own
        groups.append((group.targets, scheme))
    return groups


def _preset(name: str, targets: list[str]) -> Group:
    from compressed_tensors.quantization.quant_scheme import is_preset_scheme, preset_name_to_scheme

    if not is_preset_scheme(name):
        raise ValueError(f"group {name} of config_groups is not among the presets of compressed-tensors")
    return parse(Group, preset_name_to_scheme(name, targets).model_dump(mode="json"))


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
