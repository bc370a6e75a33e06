"""Writing an altered model as a Hugging Face folder."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hemorrhage.models.checkpoint import expected_shapes
from hemorrhage.models.formats.config import KEY, LAYOUT, BenchStorage, QuantizationConfig, QuantizationScheme
from hemorrhage.models.layout import differs
from hemorrhage.models.stream import is_real
from hemorrhage.models.weights import Weights, write
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

WEIGHTS = "model.safetensors"
LEFT_BEHIND = ("config.json", "manifest.json", "README.md", ".gitattributes")
WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")


def save(model: PreTrainedModel, dtype: torch.dtype, base: Path, folder: Path, shared_with: Path | None = None) -> None:
    """Write ``model`` into ``folder``: weights, configuration, and the base's tokenizer files.

    Floating-point weights go into ``dtype``, or stay in the wider one of the base; layers of a storage format store
    what they say, tied weights are stored once, what the checkpoint ``shared_with`` has is not stored again. Tensor by
    tensor, so that no second copy of the model is made.
    """
    model_format = _model_format(model)
    if model_format is not None and hasattr(model_format, "save"):
        model_format.save(model, dtype, base, folder)
    else:
        write(folder, dict(stored_tensors(model, dtype, Weights(base))), WEIGHTS, shared_with)
    config = configuration(model, base)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for source in base.iterdir():
        if source.is_file() and source.name not in LEFT_BEHIND and not source.name.endswith(WEIGHT_FILES):
            shutil.copyfile(source, folder / source.name)


def stored_tensors(
    model: PreTrainedModel, dtype: torch.dtype, base: Weights
) -> Iterator[tuple[str, tuple[Tensor, torch.dtype]]]:
    """Name, tensor, and dtype on disk of everything a checkpoint of ``model`` holds.

    What ``base`` has in a wider dtype than ``dtype``, such as routers' corrections, stays in it.
    """
    from hemorrhage.models.formats.storage import stored_layers

    model_format = _model_format(model)
    if model_format is not None:
        yield from ((name, (value, _stored_dtype(value, dtype))) for name, value in model_format.tensors(model).items())
        return
    layers = stored_layers(model)
    is_narrow = dtype_of(base) != torch.float32
    for name, value in _plain(model, layers):
        is_wide = is_narrow and name in base and base.dtype(name) == torch.float32
        yield name, (value, _stored_dtype(value, torch.float32 if is_wide else dtype))
    for name, layer in layers.items():
        for suffix, value in layer.stored().items():
            yield f"{name}.{suffix}", (value, value.dtype)


def configuration(model: PreTrainedModel, base: Path) -> dict[str, Any]:
    """Return the altered model's config.json: the base's, with whatever differs."""
    from transformers import AutoConfig

    config: dict[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    before = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False).to_dict()
    after = model.config.to_dict()
    if after["model_type"] != before["model_type"]:
        config = {"architectures": [type(model).__name__]}
        before = {}
    for key, value in after.items():
        if key not in before or before[key] != value:
            config[key] = value
    # Some families call a setting otherwise on disk than transformers does in memory.
    for key, name in model.config.attribute_map.items():
        if key in config and name in after:
            config[key] = after[name]
            config.pop(name, None)
    if _model_format(model) is None:
        bench = {**(config.get(KEY) or {}), **_bench_entry(model, config)}
        if bench:
            config[KEY] = bench
    quantization = _quantization(model)
    if quantization is not None:
        config["quantization_config"] = {**(config.get("quantization_config") or {}), **quantization}
    return config


def dtype_of(weights: Weights) -> torch.dtype:
    """Return the dtype of most of a checkpoint's weights."""
    numbers: Counter[torch.dtype] = Counter()
    for name in weights.names():
        numbers[weights.dtype(name)] += weights.shape(name).numel()
    floating = [dtype for dtype in numbers if is_real(dtype)]
    return max(floating, key=lambda dtype: numbers[dtype])


def dense_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and value of every weight the model computes with, dense, one at a time."""
    from hemorrhage.models.formats.storage import stored_layers

    layers = stored_layers(model)
    yield from _plain(model, layers)
    for name, layer in layers.items():
        yield f"{name}.weight", layer.dense()


def dense_sizes(model: PreTrainedModel) -> dict[str, int]:
    """Return how many numbers each weight has that the model computes with; nothing is dequantized."""
    from hemorrhage.models.formats.storage import stored_layers

    layers = stored_layers(model)
    plain = {name: value.numel() for name, value in _plain(model, layers)}
    return plain | {f"{name}.weight": layer.out_features * layer.in_features for name, layer in layers.items()}


def _plain(model: PreTrainedModel, formatted: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that are in none of the layers ``formatted``, and their biases."""
    from hemorrhage.models.formats.storage import distinct

    prefixes = tuple(f"{name}." for name in formatted)
    for name, value in distinct(model).items():
        if not name.startswith(prefixes) or name.endswith(".bias"):
            yield name, value


def _stored_dtype(value: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if value.is_floating_point() else value.dtype


def _model_format(model: PreTrainedModel) -> ModuleType | None:
    """Return the module of a whole model's storage format, None where its layers have theirs."""
    from hemorrhage.models.formats.reader import module_of

    name = BenchStorage.of_model(model.config).model_format
    return None if name is None else module_of(name)


def _bench_entry(model: PreTrainedModel, config: Mapping[str, Any]) -> dict[str, list[str] | str]:
    """Return what ``hemorrhage`` of config.json says; without it a reader would not know how to load the model."""
    entry: dict[str, list[str] | str] = {"narrow": _pruned_width(model), "forms": _layer_formats(model)}
    if differs(config):
        entry[LAYOUT] = "by layer"
    return {key: value for key, value in entry.items() if value}


def _pruned_width(model: PreTrainedModel) -> list[str]:
    """Return the parameters that are smaller than the configuration says, and biases that it has none of."""
    from torch import nn

    from hemorrhage.models.formats.storage import distinct

    shapes = expected_shapes(model.config)
    linears = {name for name, module in model.named_modules() if type(module) is nn.Linear}
    added = {f"{name}.bias" for name in linears if f"{name}.weight" in shapes and f"{name}.bias" not in shapes}
    return sorted(
        name
        for name, value in distinct(model).items()
        if name in added or (name in shapes and value.shape != shapes[name])
    )


def _layer_formats(model: PreTrainedModel) -> list[str]:
    """Return the storage formats that no quantization_config speaks of, so that a reader knows to look for them."""
    from hemorrhage.models.formats.storage import stored_layers

    return sorted({layer.storage_format for layer in stored_layers(model).values() if layer.scheme is None})


def _quantization(model: PreTrainedModel) -> QuantizationConfig | None:
    """Return compressed-tensors' configuration of the layers that are packed, a group for each scheme."""
    from hemorrhage.models.formats.storage import stored_layers, vocabulary_layers

    schemes = {name: layer.scheme for name, layer in stored_layers(model).items() if layer.scheme is not None}
    if not schemes:
        return None
    from compressed_tensors import __version__

    from hemorrhage.models.experts import routing_layers

    groups: dict[str, tuple[QuantizationScheme, list[str]]] = {}
    for name, scheme in schemes.items():
        groups.setdefault(json.dumps(scheme, sort_keys=True), (scheme, []))[1].append(name)
    formats = {scheme.get("format", "pack-quantized") for scheme in schemes.values()}
    is_mixed = len(formats) > 1
    # One scheme for all is written as every reader expects it; several have to name their layers.
    several = len(groups) > 1
    vocabulary = set(vocabulary_layers(model))
    linears = [
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name not in vocabulary
    ]
    return {
        "quant_method": "compressed-tensors",
        "version": __version__,
        "format": "mixed-precision" if is_mixed else formats.pop(),
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{index}": {
                **scheme,
                **({"format": scheme.get("format", "pack-quantized")} if is_mixed else {}),
                "targets": names if several else ["Linear", *(name for name in names if name in vocabulary)],
            }
            for index, (scheme, names) in enumerate(groups.values())
        },
        "ignore": linears + routing_layers(model),
    }
