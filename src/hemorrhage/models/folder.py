"""Writing an altered model as a Hugging Face folder."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemorrhage.models.checkpoint import expected_shapes
from hemorrhage.models.formats.storage import distinct
from hemorrhage.models.layout import LAYOUT, differs
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

    Floating-point weights go into ``dtype``, forms store what they say, tied weights are stored once, what the
    checkpoint ``shared_with`` has is not stored again. Tensor by tensor, so that no second copy of the model is made.
    """
    own = _whole_form(model)
    if hasattr(own, "save"):
        own.save(model, dtype, base, folder)
    else:
        write(folder, dict(stored_tensors(model, dtype)), WEIGHTS, shared_with)
    config = configuration(model, base)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for source in base.iterdir():
        if source.is_file() and source.name not in LEFT_BEHIND and not source.name.endswith(WEIGHT_FILES):
            shutil.copyfile(source, folder / source.name)


def stored_tensors(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[tuple[str, tuple[Tensor, torch.dtype]]]:
    """Name, tensor, and dtype on disk of everything a checkpoint of ``model`` holds."""
    from hemorrhage.models.formats.storage import formatted_layers

    own = _whole_form(model)
    if own is not None:
        yield from ((name, (value, _kind(value, dtype))) for name, value in own.tensors(model).items())
        return
    found = formatted_layers(model)
    for name, value in _plain(model, found):
        yield name, (value, _kind(value, dtype))
    for name, form in found.items():
        for suffix, value in form.stored().items():
            yield f"{name}.{suffix}", (value, value.dtype)


def configuration(model: PreTrainedModel, base: Path) -> dict[str, Any]:
    """Return the altered model's config.json: the base's, with whatever differs."""
    from transformers import AutoConfig

    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    before = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False).to_dict()
    after = model.config.to_dict()
    if after["model_type"] != before["model_type"]:
        config = {"architectures": [type(model).__name__]}
        before = {}
    for key, value in after.items():
        if key not in before or before[key] != value:
            config[key] = value
    # Some families call a setting otherwise on disk than transformers does in memory.
    for own, name in model.config.attribute_map.items():
        if own in config and name in after:
            config[own] = after[name]
            config.pop(name, None)
    if _whole_form(model) is None:
        found: dict[str, Any] = {"narrow": _narrow(model), "forms": _own_forms(model)}
        if differs(config):
            found[LAYOUT] = "by layer"
        bench = {**(config.get("hemorrhage") or {}), **{key: names for key, names in found.items() if names}}
        if bench:
            config["hemorrhage"] = bench
    quantization = _quantization(model)
    if quantization is not None:
        config["quantization_config"] = {**(config.get("quantization_config") or {}), **quantization}
    return config


def dtype_of(weights: Weights) -> torch.dtype:
    """Return the dtype of most of a checkpoint's weights."""
    numbers: Counter[torch.dtype] = Counter()
    for name in weights.names():
        numbers[weights.dtype(name)] += weights.shape(name).numel()
    floating = [dtype for dtype in numbers if dtype.is_floating_point]
    return max(floating, key=lambda dtype: numbers[dtype])


def dense_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and value of every weight the model computes with, dense, one at a time."""
    from hemorrhage.models.formats.storage import formatted_layers

    found = formatted_layers(model)
    yield from _plain(model, found)
    for name, form in found.items():
        yield f"{name}.weight", form.dense()


def _plain(model: PreTrainedModel, forms: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield what is no form's own tensor."""
    inside = tuple(f"{name}." for name in forms)
    for name, value in distinct(model).items():
        if not name.startswith(inside) or name.endswith(".bias"):
            yield name, value


def _kind(value: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if value.is_floating_point() else value.dtype


def _whole_form(model: PreTrainedModel) -> Any:
    from hemorrhage.models.formats.reader import module_of

    form = (getattr(model.config, "hemorrhage", None) or {}).get("form")
    return form and module_of(form)


def _narrow(model: PreTrainedModel) -> list[str]:
    """Return the parameters that are smaller than the configuration says."""
    shapes = expected_shapes(model.config)
    return sorted(name for name, value in distinct(model).items() if name in shapes and value.shape != shapes[name])


def _own_forms(model: PreTrainedModel) -> list[str]:
    """Forms that no quantization_config speaks of, so that a reader knows to look for them."""
    from hemorrhage.models.formats.storage import formatted_layers

    return sorted({form.storage_format for form in formatted_layers(model).values() if form.scheme is None})


def _quantization(model: PreTrainedModel) -> dict[str, Any] | None:
    """compressed-tensors' configuration of the layers that are packed, a group for each scheme."""
    from hemorrhage.models.formats.storage import formatted_layers

    found = {name: form.scheme for name, form in formatted_layers(model).items() if form.scheme is not None}
    if not found:
        return None
    from compressed_tensors import __version__

    from hemorrhage.models.experts import routing_layers

    groups: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for name, scheme in found.items():
        groups.setdefault(json.dumps(scheme, sort_keys=True), (scheme, []))[1].append(name)
    # One scheme for all is written as every reader expects it; several have to name their layers.
    several = len(groups) > 1
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    return {
        "quant_method": "compressed-tensors",
        "version": __version__,
        "format": next(iter(found.values())).get("format", "pack-quantized"),
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{index}": {**scheme, "targets": names if several else ["Linear"]}
            for index, (scheme, names) in enumerate(groups.values())
        },
        "ignore": linears + routing_layers(model),
    }
