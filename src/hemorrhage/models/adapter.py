"""A LoRA adapter that somebody else published, on the base model: a folder as peft writes it.

Layers keep the base's weight and the adapter's two factors (hemorrhage.models.formats.lora); tensors that were trained
whole (``modules_to_save``, biases) take the base's place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemorrhage.models.checkpoint import load
from hemorrhage.models.formats import lora
from hemorrhage.models.formats.storage import replace
from hemorrhage.models.linears import linears_of
from hemorrhage.models.published import Published, vocabulary
from hemorrhage.models.sources import files
from hemorrhage.models.sources.published import ADAPTER, ADAPTER_WEIGHTS, check
from hemorrhage.models.stream import tensor_locations
from hemorrhage.models.weights import Weights, weight_files
from hemorrhage.runtime.lazy import torch
from hemorrhage.runtime.step import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

ENGINE = "transformers with peft, vLLM"


def read(path: Path, base: Path) -> Published:
    """Return the model of the folder ``base`` with the adapter of the folder ``path``.

    Raises InputError, one line that names the folder, where the two don't fit.
    """
    check(path)
    config = files.read_json(path / ADAPTER)
    tensors = {name: where.tensor() for name, where in tensor_locations(path / ADAPTER_WEIGHTS).items()}
    model = load(base, "stored", base=base).cpu()
    in_layers = tuple(f"{name}." for name in linears_of(model))
    try:
        lora.check(config)
        adapter = lora.group(tensors)
        for name, theirs in adapter.replaced.items():
            _put(model, name, tensors[theirs])
        for name, pieces in adapter.layers.items():
            _adapt(model, name, {suffix: tensors[theirs] for suffix, theirs in pieces.items()}, config)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    of_base = Weights(base)
    sizes = {name: 8.0 * value.nbytes for name, value in tensors.items()}
    base_bits = {name: 8.0 * of_base.shape(name).numel() * of_base.dtype(name).itemsize for name in of_base.names()}
    pieces_of_layers = [theirs for pieces in adapter.layers.values() for theirs in pieces.values()]
    return Published(
        model,
        storage=lora.describe(config, len(adapter.layers)),
        bits=sum(base_bits.values()) + sum(sizes.values()),
        layer_bits=sum(bits for name, bits in base_bits.items() if name.startswith(in_layers))
        + sum(sizes[name] for name in pieces_of_layers),
        bytes=sum(file.stat().st_size for file in (path / ADAPTER_WEIGHTS, *weight_files(base))),
        types=Counter(str(value.dtype).removeprefix("torch.") for value in tensors.values()),
        engine=ENGINE,
        tokens=vocabulary(path),
        notes=_notes(config),
    )


def _adapt(model: PreTrainedModel, name: str, pieces: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Put an adapter onto the layer ``name``; the head becomes dense, as what is outside of the blocks does."""
    linear = _linear(model, name)
    try:
        layer = lora.layer_of(linear, pieces, config, name)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if linear is model.get_output_embeddings():
        _put(model, f"{name}.weight", layer.dense())
    else:
        replace(model, name, layer)


def _linear(model: PreTrainedModel, name: str) -> nn.Linear:
    """Return the base's layer ``name``. Raises ValueError where it is none that an adapter can be on."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"adapts {name}, which the base does not have") from None
    if isinstance(module, torch.nn.Linear):
        return module
    raise ValueError(f"adapts {name}, a {type(module).__name__}; adapters of linear layers are read")


def _put(model: PreTrainedModel, name: str, value: Tensor) -> None:
    """Make ``value`` the base's tensor ``name``. Raises ValueError where the base has none of its shape."""
    path, _, parameter = name.rpartition(".")
    before = model.state_dict().get(name)
    if before is None:
        raise ValueError(f"has {name}, which the base does not have")
    if before.shape != value.shape or not value.is_floating_point():
        raise ValueError(f"has {name} as {list(value.shape)}, and the base has {list(before.shape)}")
    tied = model.all_tied_weights_keys
    if name in {*tied.keys(), *tied.values()}:
        _untie(model)
    setattr(model.get_submodule(path), parameter, torch.nn.Parameter(value.to(before.dtype), requires_grad=False))


def _untie(model: PreTrainedModel) -> None:
    """Make the embedding and the head two tensors of the same numbers, as peft does when one of them is trained."""
    head: Any = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach(), requires_grad=False)
    model.config.get_text_config(decoder=True).tie_word_embeddings = False
    model.all_tied_weights_keys = {}


def _notes(config: Mapping[str, Any]) -> tuple[str, ...]:
    name = config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        return ()
    return (f"The adapter names {' '.join(name.split())[:200]} as its base; its tensors can't show it.",)
