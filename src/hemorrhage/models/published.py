"""A checkpoint that somebody else published, as a model in memory.

Its layers keep the format that they are stored in, embedding and head too; what else there is becomes dense. Names and
shapes in the files are compared with the architecture before a tensor is read.
"""

from __future__ import annotations

import importlib
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hemorrhage.models.architecture import skeleton
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import assemble
from hemorrhage.models.emulation.install import install_in_memory
from hemorrhage.models.emulation.kv_cache import attention_layers, round_fixed
from hemorrhage.models.engines import engine
from hemorrhage.models.formats.published import READERS
from hemorrhage.models.formats.small_floats import is_scale
from hemorrhage.models.formats.storage import FormattedLinear, formatted_layers, vocabulary_modules
from hemorrhage.models.layout import to_family, view
from hemorrhage.models.linears import linears_of
from hemorrhage.models.sources import architecture, files
from hemorrhage.models.sources.published import check, is_gguf, quantization_of, shards, weights_of
from hemorrhage.models.stream import TensorLocation, tensor_locations
from hemorrhage.runtime.lazy import torch
from hemorrhage.runtime.step import InputError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

BIAS = "bias"

QUANTIZATION = "quantization_config"

EXPERT = re.compile(r"(.*\.experts\.)(\d+)\.(.+\.weight)")
"""A matrix of one expert, as families store them that keep each by itself."""

CODES = ("I8", "U8", "I16", "U16", "I32", "U32")
"""Types of weights that are not numbers as they are."""

KEPT = (QUANTIZATION, "compression_config", "quantization")
"""Entries of config.json that say how weights are stored: they are read here and not by transformers."""


@dataclass(frozen=True)
class Published:
    """A model that somebody else published.

    ``storage``: its format in words. ``bits``: of all tensors in its files, ``layer_bits``: of those of the blocks'
    linear layers, ``bytes``: of the files with weights. ``types``: tensors by the type that they are stored in.
    ``engine``: programs that load the files. ``tokens``: its vocabulary by id, None where the files have none.
    ``notes``: sentences on what was left out.
    """

    model: PreTrainedModel
    storage: str
    bits: float
    layer_bits: float
    bytes: int
    types: Mapping[str, int]
    engine: str
    tokens: Mapping[int, str] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LayerLocation(TensorLocation):
    """The weight of a layer that has a storage format, among the tensors of a checkpoint."""

    layer: FormattedLinear | None = None


def read(path: Path) -> Published:
    """Return the model of a folder or a GGUF file.

    Raises InputError, one line that names the file, where it is not a whole model of its architecture.
    """
    check(path)
    if is_gguf(path):
        return _read_gguf(path)
    quantization = quantization_of(path)
    reader = reader_of(path, quantization)
    weights = weights_of(path)
    stored = files.tensors(weights)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config = _write_config(path, folder)
        locations = {name: where for file in weights for name, where in tensor_locations(file).items()}
        unread = {name: locations.pop(name) for name in list(locations) if _is_unread(name, reader)}
        for name in unread:
            del stored[name]
        groups = group(list(locations), reader)
        layers: dict[str, FormattedLinear] = {}
        group_of: dict[str, str] = {}
        for grouped, name, layer in _layers(path, groups, locations, quantization, reader):
            layers[name], group_of[name] = layer, grouped
        in_layers = {name for pieces in groups.values() for name in pieces.values()}
        dense = {name: tensor for name, tensor in stored.items() if name not in in_layers}
        _check_plain(path, dense)
        dense |= _announce(folder, layers, is_stacked=hasattr(reader, "read_stack"))
        dense |= {f"{name}.{BIAS}": stored[f"{name}.{BIAS}"] for name in layers if f"{name}.{BIAS}" in stored}
        _check_experts(path, dense)
        compared = _compare(path, folder, dense)
        kept = {name: where for name, where in locations.items() if name in dense and name not in compared.surplus}
        kept |= {f"{name}.weight": _location(layer) for name, layer in layers.items()}
        state, formatted = _named(view(folder, kept))
    model = _assemble(config, state, formatted)
    problems = [_round_cache(model, quantization, reader, unread), _dense_inputs(model, formatted)]
    bits = {name: _bits(tensor) for name, tensor in stored.items() if name not in compared.surplus}
    kept_layers = {id(layer) for layer in formatted_layers(model).values()}
    kept_groups = dict.fromkeys(group_of[name] for name, layer in layers.items() if id(layer) in kept_layers)
    pieces = [
        piece for name in kept_groups for suffix, piece in groups[name].items() if not suffix.endswith(f"_{BIAS}")
    ]
    plain = sum(8.0 * linear.weight.nbytes for linear in linears_of(model, missing_ok=True).values())
    return Published(
        model,
        storage=reader.describe(quantization) if reader else str(model.dtype).removeprefix("torch."),
        bits=sum(bits.values()),
        layer_bits=sum(bits[piece] for piece in pieces) + plain,
        bytes=sum(file.stat().st_size for file in weights),
        types=Counter(tensor.dtype for tensor in stored.values()),
        engine=engine({**config.to_dict(), QUANTIZATION: quantization})[0],
        tokens=vocabulary(path),
        notes=(*compared.notes, *filter(None, problems)),
    )


def _read_gguf(path: Path) -> Published:
    from hemorrhage.models.formats import gguf_reader
    from hemorrhage.models.formats.gguf_header import GgufError

    paths = shards(path)
    try:
        opened = gguf_reader.open_gguf(paths)
        model = gguf_reader.build(opened)
    except GgufError as problem:
        raise InputError(str(problem)) from None
    layers = formatted_layers(model).values()
    return Published(
        model.eval(),
        storage=f"GGUF, {opened.label}",
        bits=sum(opened.stored_bits.values()),
        layer_bits=sum(8.0 * value.nbytes for layer in layers for value in layer.stored().values()),
        bytes=sum(file.stat().st_size for file in paths),
        types=opened.types,
        engine=engine(model.config.to_dict())[0],
        tokens=opened.tokens,
        notes=opened.notes,
    )


def reader_of(path: Path, quantization: Mapping[str, Any]) -> ModuleType | None:
    """Return the module that reads a folder's quantized layers; None for a plain checkpoint. Raises InputError."""
    method = quantization.get("quant_method")
    if method is None:
        return None
    if method not in READERS:
        known = ", ".join(sorted(READERS))
        raise InputError(f"{path} is stored as {method or 'an unnamed format'}, which is not read; known are {known}")
    return importlib.import_module(READERS[method])


def group(names: list[str], reader: ModuleType | None) -> dict[str, dict[str, str]]:
    """Return layer -> suffix -> name of the tensors that belong to a layer with a storage format."""
    if reader is None:
        return {}
    if hasattr(reader, "regroup"):
        groups: dict[str, dict[str, str]] = reader.regroup(names)
        return groups
    pieces: dict[str, dict[str, str]] = {}
    marks = tuple(f".{mark}" for mark in reader.MARKS)
    marked = {name.removesuffix(mark) for name in names for mark in marks if name.endswith(mark)}
    for name in names:
        # Suffixes may have dots themselves (weight.quant_state.bitsandbytes__nf4).
        layer = next((each for each in _prefixes(name) if each in marked), None)
        if layer is not None and name != f"{layer}.{BIAS}":
            pieces.setdefault(layer, {})[name.removeprefix(f"{layer}.")] = name
    return pieces


def _prefixes(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _layers(
    path: Path,
    groups: Mapping[str, Mapping[str, str]],
    locations: Mapping[str, TensorLocation],
    quantization: Mapping[str, Any],
    reader: ModuleType | None,
) -> Iterator[tuple[str, str, FormattedLinear]]:
    """Yield each group's name, and the name and layer of each of its layers."""
    for name, pieces in groups.items():
        assert reader is not None, "nothing is grouped without one"
        stored = {suffix: locations[piece].tensor() for suffix, piece in pieces.items()}
        try:
            if hasattr(reader, "read_stack"):
                for inner, layer in reader.read_stack(stored, quantization, name).items():
                    yield name, inner, layer
            else:
                yield name, name, reader.read_published(stored, quantization, name)
        except (KeyError, ValueError, IndexError, RuntimeError) as error:
            reason = f"lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise InputError(f"{path}: {name}: {reason}") from None


def _announce(folder: Path, layers: Mapping[str, FormattedLinear], is_stacked: bool) -> dict[str, files.Tensor]:
    """Return the weights of ``layers`` as headers would have them, to compare their shapes with the architecture's.

    Those of a stack, and its biases, have the family's names, which its files would have were they not quantized.
    """
    shapes: dict[str, tuple[int, ...]] = {
        f"{name}.weight": (layer.out_features, layer.in_features) for name, layer in layers.items()
    }
    if is_stacked:
        shapes |= {
            f"{name}.{BIAS}": tuple(layer.bias.shape) for name, layer in layers.items() if layer.bias is not None
        }
        shapes = {
            name: tuple(joined.join([torch.empty(shapes[source], device="meta") for source in joined.sources]).shape)
            for name, joined in to_family(folder, shapes).items()
        }
    return {name: files.Tensor(Path(), "F32", shape, 0, 0) for name, shape in shapes.items()}


def _check_plain(path: Path, dense: Mapping[str, files.Tensor]) -> None:
    """Raise InputError for codes that have no scale: they would be read as the weights themselves."""
    for name, tensor in dense.items():
        if tensor.dtype.startswith(("F8_", "F4", "F6_")) or (tensor.dtype in CODES and name.endswith("weight")):
            raise InputError(f"{path}: {name} is of type {tensor.dtype}, and the scales that it needs are not there")


def _check_experts(path: Path, names: Iterable[str]) -> None:
    """Raise InputError for an expert that lacks a tensor of its neighbours: the library can't say which it is."""
    numbers: dict[str, dict[str, set[int]]] = {}
    for match in filter(None, map(EXPERT.fullmatch, names)):
        numbers.setdefault(match[1], {}).setdefault(match[3], set()).add(int(match[2]))
    for layer, tensors in numbers.items():
        everyone = set.union(*tensors.values())
        lacking = [f"{layer}{number}.{tensor}" for tensor, have in tensors.items() for number in everyone - have]
        if lacking:
            raise InputError(f"{path} lacks {files.shorten_list(sorted(lacking))}, which other experts have")


def _is_unread(name: str, reader: ModuleType | None) -> bool:
    return any(re.search(pattern, name) for pattern in getattr(reader, "UNREAD", ()))


def _round_cache(
    model: PreTrainedModel,
    quantization: Mapping[str, Any],
    reader: ModuleType | None,
    unread: Mapping[str, TensorLocation],
) -> str:
    """Let ``model`` round keys and values as its configuration says, or return a sentence where that is not done."""
    if reader is None or not hasattr(reader, "rounds_cache") or not reader.rounds_cache(quantization):
        return ""
    names = {id(module): name for name, module in model.named_modules()}
    scales = []
    for layer in attention_layers(model):
        wanted = [reader.cache_scale(quantization, names[id(layer)], which) for which in ("k", "v")]
        values = [unread[name].tensor() for name in wanted if name in unread]
        scales.append([float(value) for value in values if is_scale(value)])
    if any(len(pair) != 2 for pair in scales):
        return "Keys and values are not rounded here, though the configuration asks for it."
    round_fixed(model, scales)
    return ""


def _dense_inputs(model: PreTrainedModel, layers: Mapping[str, FormattedLinear]) -> str:
    """Return a sentence about layers outside the blocks that should round their inputs; empty where there are none."""
    kept = formatted_layers(model)
    left = [
        name
        for name, layer in layers.items()
        if name not in kept and (layer.inputs or (layer.scheme or {}).get("input_activations"))
    ]
    return (
        f"Inputs of {files.shorten_list(left)} are not rounded here, though the configuration asks for it."
        if left
        else ""
    )


def _location(layer: FormattedLinear) -> LayerLocation:
    return LayerLocation(Path(), torch.float32, (layer.out_features, layer.in_features), 0, layer)


def _named(viewed: Mapping[str, TensorLocation]) -> tuple[dict[str, Tensor], dict[str, FormattedLinear]]:
    """Return the plain tensors and the layers under the bench's names."""
    layers = {
        name.removesuffix(".weight"): location.layer
        for name, location in viewed.items()
        if isinstance(location, LayerLocation) and location.layer is not None
    }
    state = {name: each.tensor() for name, each in viewed.items() if not isinstance(each, LayerLocation)}
    for name, layer in layers.items():
        bias = state.get(f"{name}.{BIAS}")
        if bias is not None:
            layer.bias = torch.nn.Parameter(bias, requires_grad=False)
    return state, layers


def _assemble(
    config: PreTrainedConfig,
    state: dict[str, Tensor],
    layers: Mapping[str, FormattedLinear],
) -> PreTrainedModel:
    """Return the model; layers that are in no block and no embedding or head become dense."""
    stored = next(value.dtype for value in state.values() if value.is_floating_point())
    dtype = getattr(torch, str(config.dtype or stored).removeprefix("torch."))
    model = skeleton(config)
    prefixes, vocabulary = tuple(_block_prefixes(model)), vocabulary_modules(model)
    kept = {name: layer for name, layer in layers.items() if name.startswith(prefixes) or name in vocabulary}
    for name, layer in layers.items():
        if name not in kept:
            state[f"{name}.weight"] = layer.dense().to(dtype)
    model = assemble(state, kept, config, dtype, as_stored=True)
    install_in_memory(model)
    model.eval()
    return model


def _block_prefixes(model: PreTrainedModel) -> Iterator[str]:
    first = {id(block) for block in blocks(model)}
    yield from (f"{name}." for name, module in model.named_modules() if id(module) in first)


def _write_config(path: Path, folder: Path) -> PreTrainedConfig:
    """Write config.json without what says how weights are stored, and return it as transformers reads it."""
    content = files.read_json(path / "config.json")
    for entries in (content, content.get("text_config")):
        if isinstance(entries, dict):
            for key in (*KEPT, "auto_map"):
                entries.pop(key, None)
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return architecture.configuration(folder)


def _compare(path: Path, folder: Path, dense: Mapping[str, files.Tensor]) -> architecture.Compared:
    try:
        return architecture.compare(folder, dense)
    except InputError as problem:
        raise InputError(str(problem).replace(str(folder), str(path))) from None


def _bits(tensor: files.Tensor) -> float:
    return 8.0 * (tensor.end - tensor.begin)


def vocabulary(folder: Path) -> Mapping[int, str] | None:
    """Return a folder's tokens by id; None where it has no tokenizer.json that the library reads."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not files.exists(file):
        return None
    try:
        tokenizer = Tokenizer.from_str(json.dumps(files.read_json(file)))
    except Exception:  # the library raises Exception itself
        return None
    return {number: token for token, number in tokenizer.get_vocab(with_added_tokens=True).items()}
