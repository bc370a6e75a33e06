"""A packed checkpoint as transformers loads it: the family's names of its tensors, and what it can't load.

compressed-tensors and bitsandbytes pack linear layers. transformers keeps the experts of a mixture as two tensors, and
makes these of packed ones only where a family's checkpoints have a tensor for each expert, the grids are symmetric, and
all experts have one. What a configuration ignores is looked for under the names in transformers' memory; other engines
look under those on disk, so that both are there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hemorrhage.models.experts import routing_layers
from hemorrhage.models.formats.config import BenchStorage, QuantizationArgs, QuantizationConfig, QuantizationScheme
from hemorrhage.models.formats.floats import SCALE_TYPES, with_scale_types
from hemorrhage.models.formats.storage import scheme_of
from hemorrhage.models.layout import Joined, Renamer, differs, to_family, unchanged
from hemorrhage.models.linears import linears_of
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKED = (
    "weight_packed",
    "weight_scale",
    "weight.quant_state.bitsandbytes__nf4",
    "weight.quant_state.bitsandbytes__fp4",
)
"""Suffixes of weights that engines read packed."""


COMPRESSED_TENSORS = "compressed-tensors"


@dataclass(frozen=True)
class PackedFolder:
    """``tensors``: name on disk -> what it is made of; ``quantization``: config.json's entry."""

    tensors: dict[str, Joined]
    quantization: QuantizationConfig


def packed_folder(folder: Path, names: Sequence[str]) -> PackedFolder:
    """Return how the checkpoint ``folder``, whose tensors are ``names``, is written for transformers.

    Raises RefusedError where it has no packed layers and no fixed scales of a cache, or transformers could not load it.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    quantization: QuantizationConfig = config.get("quantization_config", {})
    # Fixed scales of a cache are tensors, too.
    if not packed_layers(names) and (quantization.get("kv_cache_scheme") or {}).get("dynamic") is not False:
        raise RefusedError("it has no packed weights; --as dense writes it")
    _check_dtype(config.get("dtype") or config.get("torch_dtype"), quantization)
    return _packed_folder(folder, names, with_scale_types(quantization), BenchStorage.of(config).is_by_layer)


def _check_dtype(dtype: object, quantization: QuantizationConfig) -> None:
    """Raise RefusedError where compressed-tensors makes weights of another type than the model's ``dtype``."""
    formats = {scheme.get("format", "") for scheme in quantization.get("config_groups", {}).values()}
    fixed = sorted(formats & set(SCALE_TYPES))
    if fixed and dtype not in (None, "bfloat16"):
        raise RefusedError(
            f"transformers can't compute with it: compressed-tensors makes bfloat16 of {fixed[0]}, and the rest of the "
            f"model is {dtype}{_otherwise(quantization)}"
        )


def check_family(folder: Path, model: PreTrainedModel) -> None:
    """Raise RefusedError where transformers could not load ``model``, the base in ``folder``, with layers packed.

    They are taken to have symmetric grids: those that are not are refused of some families, once they are there.
    """
    layers, tied = list(linears_of(model)), set(model.all_tied_weights_keys)
    dense = {f"{layer}.weight" for layer in layers}
    others = [name for name in model.state_dict() if name not in dense | tied]
    packed = [f"{layer}.weight_{part}" for layer in layers for part in ("packed", "scale", "shape")]
    weights: QuantizationArgs = {
        "num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "group_size": None, "dynamic": False,
    }  # fmt: skip
    ignored = [
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name not in layers
    ]
    quantization: QuantizationConfig = {
        "quant_method": COMPRESSED_TENSORS,
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"weights": weights, "targets": ["Linear"]}},
        "ignore": ignored + routing_layers(model),
    }
    _packed_folder(folder, [*others, *packed], quantization, differs(model.config.to_dict()))


def _packed_folder(
    folder: Path, names: Sequence[str], quantization: QuantizationConfig, is_by_layer: bool
) -> PackedFolder:
    layers, renamer = packed_layers(names), Renamer(folder)
    experts = [layer for layer in layers if _is_expert(renamer, layer, quantization)]
    model_type = renamer.model_type
    if experts:
        _check_experts(experts, names, quantization, model_type)
    tensors = to_family(folder, names) if is_by_layer else {name: unchanged(name) for name in names}
    quantization = _with_aliases(quantization, renamer, experts)
    if _engine(quantization) == COMPRESSED_TENSORS:
        _check_names(folder, quantization, tensors)
    return PackedFolder(tensors, quantization)


def packed_layers(names: Iterable[str]) -> list[str]:
    """Return the layers whose weights are packed, of a checkpoint's tensors ``names``."""
    return sorted(
        {name.removesuffix(f".{suffix}") for name in names for suffix in PACKED if name.endswith(f".{suffix}")}
    )


def _is_expert(renamer: Renamer, layer: str, quantization: QuantizationConfig) -> bool:
    """Return whether transformers makes a stack of experts of ``layer``. Raises RefusedError where it can do nothing.

    A layer that is no expert's has to be a linear layer in its memory.
    """
    memory, is_converted = renamer.in_memory(f"{layer}.weight")
    module = renamer.module(memory.removesuffix(".weight"))
    if isinstance(module, torch.nn.Linear):
        return False
    if is_converted:
        return True
    kind = f"a {type(module).__name__}" if module is not None else "a part of one tensor of all experts"
    raise RefusedError(
        f"transformers can't load it: {layer} is {kind} in a {renamer.model_type}, and {_engine(quantization)} packs "
        f"linear layers{_otherwise(quantization)}"
    )


def _otherwise(quantization: QuantizationConfig) -> str:
    """Return how a refused line ends: a dense checkpoint says nothing of inputs that are rounded."""
    groups = quantization.get("config_groups", {}).values()
    return "" if any(scheme.get("input_activations") for scheme in groups) else "; --as dense writes it"


def _engine(quantization: QuantizationConfig) -> str:
    return str(quantization.get("quant_method"))


def _check_experts(
    experts: Sequence[str], names: Sequence[str], quantization: QuantizationConfig, model_type: str
) -> None:
    """Raise RefusedError where transformers can't make stacks of the packed layers ``experts``."""

    def refuse(why: str) -> None:
        raise RefusedError(
            f"transformers can't load it: {why} ({experts[0]}, a {model_type}){_otherwise(quantization)}"
        )

    if _engine(quantization) != COMPRESSED_TENSORS:
        refuse(f"it reads no experts that {_engine(quantization)} packed")
    schemes: dict[str, QuantizationScheme] = {}
    for layer in experts:
        scheme = scheme_of(layer, quantization) or {}
        schemes[json.dumps({key: value for key, value in scheme.items() if key != "targets"}, sort_keys=True)] = scheme
    if any(scheme.get("input_activations") for scheme in schemes.values()):
        refuse("it does not round what experts read")
    is_float = all(scheme.get("weights", {}).get("type") == "float" for scheme in schemes.values())
    unread = next(filter(None, map(_unread_by_experts, schemes.values())), None)
    if unread:
        refuse(unread)
    if not is_float and not set(names) >= {f"{layer}.weight_packed" for layer in experts}:
        refuse("it reads integers of experts in packed words, and not a byte each")
    zero_points = {f"{layer}.weight_zero_point" for layer in experts} & set(names)
    if zero_points:
        refuse("it reads no zero points of experts, so that their grids have to be symmetric")
    if len(schemes) > 1:
        refuse(f"it reads experts of one grid, and these have {len(schemes)}")


def _unread_by_experts(scheme: QuantizationScheme) -> str | None:
    """Return why transformers reads no experts in the floating-point format of ``scheme``, or None."""
    weights = scheme.get("weights", {})
    if weights.get("type") != "float":
        return None
    strategy = weights.get("strategy")
    if strategy == "tensor_group":
        return "it reads no scale of an expert's layer over those of its groups"
    if weights.get("num_bits") == 8 and strategy not in ("tensor", "channel"):
        return f"of experts it reads FP8 with a scale a row or a layer, and not by {strategy}"
    return None


def _with_aliases(quantization: QuantizationConfig, renamer: Renamer, experts: Sequence[str]) -> QuantizationConfig:
    """Return the entry with all names that engines have for the layers, and the group of the experts first."""
    if "config_groups" not in quantization:
        return quantization

    def of_experts(scheme: QuantizationScheme) -> bool:
        return bool(experts) and experts[0] in scheme["targets"]

    # transformers takes the scheme of the first group for experts.
    groups = sorted(quantization["config_groups"].values(), key=lambda scheme: not of_experts(scheme))
    return {
        **quantization,
        "ignore": renamer.aliases(quantization["ignore"]),
        "config_groups": {
            f"group_{index}": {**scheme, "targets": renamer.aliases(scheme["targets"])}
            for index, scheme in enumerate(groups)
        },
    }


def _check_groups(model: PreTrainedModel) -> None:
    """Raise RefusedError where groups don't divide the inputs of a layer of ``model``, prepared for packed weights."""
    for name, module in model.named_modules():
        inputs = getattr(getattr(module, "quantization_scheme", None), "input_activations", None)
        size = (inputs and inputs.group_size) or 1
        if isinstance(module, torch.nn.Linear) and size > 1 and module.in_features % size:
            raise RefusedError(
                f"transformers can't compute with it: inputs are rounded in groups of {size}, and {name} has "
                f"{module.in_features} of them"
            )


def _check_names(folder: Path, quantization: QuantizationConfig, names: Iterable[str]) -> None:
    """Raise RefusedError where transformers' model, prepared for packed weights, has others than ``names``.

    Some families have linear layers of a class of their own, which compressed-tensors leaves as they are; others read
    a layer's dense weight when they are made.
    """
    from transformers import AutoConfig
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    from transformers.quantizers.auto import AutoHfQuantizer

    from hemorrhage.models.architecture import skeleton

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    vars(config).pop("quantization_config", None)
    model = skeleton(config)
    quantizer = AutoHfQuantizer.from_config(dict(quantization), pre_quantized=True)
    quantizer.validate_environment()
    with torch.device("meta"):
        quantizer._process_model_before_weight_loading(model)
    _check_groups(model)
    for value in model.parameters():
        # Codes can't be drawn; what is marked stays as it is, as when the checkpoint is loaded.
        vars(value)["_is_hf_initialized"] = True
    for module in model.modules():
        try:
            model._init_weights(module)
        except AttributeError as error:
            raise RefusedError(
                f"transformers can't load it: a {type(module).__name__} reads a dense weight of its layers when it is "
                f"made ({error}){_otherwise(quantization)}"
            ) from error
    conversions = quantizer.update_weight_conversions(get_model_conversion_mapping(model, add_legacy=True))
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    converters = [each for each in conversions if isinstance(each, WeightConverter)]
    expected = model.state_dict()
    otherwise = _otherwise(quantization)
    given = {
        name: rename_source_key(name, renamings, converters, model.base_model_prefix, expected)[0] for name in names
    }
    for name, renamed in given.items():
        if renamed not in expected and name not in expected:
            raise RefusedError(f"transformers can't load it: it has no place for {name}{otherwise}")
    missing = sorted(set(expected) - {*given, *given.values()} - set(model.all_tied_weights_keys))
    if missing:
        raise RefusedError(f"transformers can't load it: it wants a tensor {missing[0]}{otherwise}")
