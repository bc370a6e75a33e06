"""Writing an altered model as a Hugging Face folder."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemorrhage.compress.size import weight_files
from hemorrhage.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

WEIGHTS = "model.safetensors"
LEFT_BEHIND = ("config.json", "manifest.json", "README.md", ".gitattributes")
WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")


def save(
    model: PreTrainedModel,
    packed: Any,
    dtype: torch.dtype,
    base: Path,
    folder: Path,
) -> None:
    """Write ``model`` into ``folder``: weights in ``dtype``, configuration, and the base's tokenizer files.

    ``packed`` is a hemorrhage.compress.packing.Packed, whose tensors stand in the place of weights, or None.
    Tied weights are stored once.
    """
    from safetensors.torch import save_file

    tensors = {} if packed is None else dict(packed.tensors)
    for name, value in distinct(model).items():
        if packed is None or name not in packed.weights:
            tensors[name] = value.to(dtype).contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    for key in ("num_hidden_layers", "layer_types"):
        if getattr(model.config, key, None) is not None:
            config[key] = getattr(model.config, key)
    if packed is not None:
        config["quantization_config"] = packed.config
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for file in base.iterdir():
        if file.is_file() and file.name not in LEFT_BEHIND and not file.name.endswith(WEIGHT_FILES):
            shutil.copyfile(file, folder / file.name)


def dtype_of(folder: Path) -> torch.dtype:
    """The dtype of most of a checkpoint's weights."""
    from safetensors import safe_open

    numbers: Counter[torch.dtype] = Counter()
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                value = tensors.get_tensor(name)
                numbers[value.dtype] += value.numel()
    return max(numbers, key=lambda dtype: numbers[dtype])


def distinct(model: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, without the names that are tied to an earlier one."""
    tied = set(model.all_tied_weights_keys)
    return {name: value.detach() for name, value in model.state_dict().items() if name not in tied}
