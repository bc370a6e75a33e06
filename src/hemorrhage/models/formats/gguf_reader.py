"""GGUF files that others made: the model, its types and its vocabulary.

The header is read with bounds (hemorrhage.models.formats.gguf_header), the tensors are compared with the architecture
that it describes, and only then is one of them read. They are dequantized by the gguf package, one at a time.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from hemorrhage.models.formats.gguf_file import ROPE_FACTORS, Entry, assemble, float_entry, taken_apart
from hemorrhage.models.formats.gguf_header import GgufError, Header, StoredTensor, Value, read_header
from hemorrhage.models.formats.gguf_metadata import settings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"

COMPUTED = re.compile(r"(blk\.\d+\.)?(rope_freqs|rope_factors_(long|short)|attn_rot_embd)(\.weight)?")
"""Tensors that transformers computes from config.json."""

_BLOCK = re.compile(r"blk\.(\d+)\.")
_EXPERT = re.compile(r"(?P<block>blk\.\d+)\.ffn_(?P<which>gate|up|down)\.(?P<number>\d+)\.weight")
_PADDING = re.compile(r"\[PAD\d+\]")


REFUSALS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError),
    StrictDataclassError,
)
"""What transformers raises when it makes the configuration and the modules of a model of impossible numbers."""


@dataclass(frozen=True)
class GgufModel:
    """A model that lies in GGUF files.

    ``config``: transformers'; ``label``: what the file calls its type, such as ``Q4_K_M``; ``types``: tensors by ggml's
    type; ``stored_bits``: of each of the file's tensors; ``tokens``: its vocabulary by id, None where it has none;
    ``entries``: its tensors by the bench's names; ``notes``: sentences on what was left out, or is not as it is called.
    """

    config: PreTrainedConfig
    label: str
    types: Mapping[str, int]
    stored_bits: Mapping[str, float]
    tokens: Mapping[int, str] | None
    entries: Mapping[str, Entry]
    notes: tuple[str, ...] = ()


def open_gguf(paths: Sequence[Path]) -> GgufModel:
    """Return the model of a GGUF file, or of the files that it is split into.

    Raises GgufError, one line, where they are not whole, or not of an architecture that is read.
    """
    header = _joined(paths)
    stored = {name: _entry(name, tensor) for name, tensor in header.tensors.items()}
    try:
        config = _config(header, stored)
        entries = taken_apart(_as_written(stored, config.num_hidden_layers, _predicting(header)), config)
    except REFUSALS as error:
        raise GgufError(f"{paths[0]}: {_line(error)}") from None
    return GgufModel(
        config,
        _label(header),
        Counter(tensor.ggml_type for tensor in header.tensors.values()),
        {name: 8.0 * tensor.size for name, tensor in header.tensors.items()},
        _tokens(header.metadata),
        entries,
        tuple(_notes(header, _predicting(header))),
    )


def build(opened: GgufModel) -> PreTrainedModel:
    """Return the model in memory, in which layers and embeddings keep what the file has.

    ``folder.save`` writes it as a GGUF file again.
    """
    config = opened.config
    config.hemorrhage = {"form": "gguf_file", "type": opened.label.lower(), "published": True}
    return assemble(opened.entries, config, "stored", as_stored=True, every_layer=True)


def _line(error: Exception) -> str:
    words = " ".join(str(error).split())
    return words if isinstance(error, ValueError) else f"its metadata does not fit ({type(error).__name__}: {words})"


def _joined(paths: Sequence[Path]) -> Header:
    """Return the header of the first file with the tensors of all."""
    headers = [read_header(path) for path in paths]
    first = headers[0]
    tensors: dict[str, StoredTensor] = {}
    for number, (path, header) in enumerate(zip(paths, headers, strict=True)):
        place, count = (header.metadata.get(key) for key in ("split.no", "split.count"))
        if len(paths) > 1 and (place, count) != (number, len(paths)):
            raise GgufError(f"{path} says that it is part {place} of {count}; its name says {number} of {len(paths)}")
        if len(paths) == 1 and isinstance(count, int) and count > 1:
            raise GgufError(f"{path} is one of {count} files of a model, and its name does not say which")
        twice = tensors.keys() & header.tensors.keys()
        if twice:
            raise GgufError(f"{path} has {min(twice)}, as another file of the model has")
        tensors |= header.tensors
    announced = first.metadata.get("split.tensors.count")
    if len(paths) > 1 and announced != len(tensors):
        raise GgufError(f"{paths[0]} announces {announced} tensors in {len(paths)} files, which have {len(tensors)}")
    return Header(first.metadata, tensors)


def _entry(name: str, tensor: StoredTensor) -> Entry:
    return Entry(tensor.ggml_type, tensor.shape, partial(_load, name, tensor))


def _load(name: str, tensor: StoredTensor) -> Tensor:
    """Return the bytes of a tensor, uint8 [..., bytes of a row]."""
    content = torch.from_file(str(tensor.path), False, tensor.offset + tensor.size, dtype=torch.uint8)
    blocks = content[tensor.offset :].clone()
    rows = tensor.shape[:-1]
    if tensor.ggml_type in _FLOATS and not _is_finite(blocks, tensor.ggml_type):
        raise GgufError(f"{tensor.path}: {name} has numbers that are not finite")
    return blocks.view(*rows, -1)


_FLOATS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "f64": torch.float64}


def _is_finite(blocks: Tensor, ggml_type: str) -> bool:
    return bool(blocks.view(_FLOATS[ggml_type]).isfinite().all())


def _config(header: Header, stored: Mapping[str, Entry]) -> PreTrainedConfig:
    from transformers import AutoConfig

    shapes = {name: entry.shape for name, entry in stored.items()}
    entries = settings(header.metadata, shapes)
    if ROPE_FACTORS in stored:
        entries["rope_parameters"] |= _llama_3(stored[ROPE_FACTORS], entries)
    if LONG_FACTORS in stored and SHORT_FACTORS in stored:
        entries |= _long_ropes(header, stored, entries)
    model_type = entries.pop("model_type")
    return AutoConfig.for_model(model_type, **entries, dtype="float32")


def _numbers(entry: Entry) -> Tensor:
    """Return a short vector of the file."""
    if entry.ggml_type != "f32" or len(entry.shape) != 1:
        raise ValueError(f"its factors of rotary embeddings are {entry.ggml_type} {list(entry.shape)}")
    return entry.values()


def _llama_3(entry: Entry, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of Llama 3's rotary embedding whose factors a file has.

    Between the two wavelengths that ``low_freq_factor`` and ``high_freq_factor`` name, the inverse of a factor is
    linear in the frequency, so that two points there give both.
    """
    factors = _numbers(entry).double()
    theta, width = entries["rope_parameters"]["rope_theta"], 2 * len(factors)
    turns = theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width) / (2 * torch.pi)
    factor = factors.max()
    share = (1 / factors - 1 / factor) / (1 - 1 / factor)
    between = (share > 1e-6) & (share < 1 - 1e-6)
    original = 8192
    if between.sum() < 2 or factor <= 1:
        raise ValueError("its factors of rotary embeddings (rope_freqs.weight) are none of Llama 3's")
    x, y = turns[between] * original, share[between]
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    low = x.mean() - y.mean() / slope
    high = low + 1 / slope
    given = {
        "rope_type": "llama3",
        "factor": round(factor.item(), 4),
        "low_freq_factor": round(low.item(), 4),
        "high_freq_factor": round(high.item(), 4),
        "original_max_position_embeddings": original,
    }
    smooth = (
        (turns * original - given["low_freq_factor"]) / (given["high_freq_factor"] - given["low_freq_factor"])
    ).clamp(0, 1)
    again = 1 / ((1 - smooth) / given["factor"] + smooth)
    if not torch.allclose(again, factors, rtol=1e-3):
        raise ValueError("its factors of rotary embeddings (rope_freqs.weight) are none of Llama 3's")
    return given


def _long_ropes(header: Header, stored: Mapping[str, Entry], entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of Phi's rotary embedding for long texts."""
    architecture = header.metadata["general.architecture"]
    original = header.metadata.get(f"{architecture}.rope.scaling.original_context_length")
    if not isinstance(original, int) or not 1 <= original <= entries["max_position_embeddings"]:
        raise ValueError(f"its rope.scaling.original_context_length is {str(original)[:40]}")
    factors = {"long_factor": LONG_FACTORS, "short_factor": SHORT_FACTORS}
    lists = {
        key: [float(f"{number:.7g}") for number in _numbers(stored[name]).tolist()] for key, name in factors.items()
    }
    rope = {**entries["rope_parameters"], "rope_type": "longrope", **lists}
    return {
        "rope_parameters": {**rope, "original_max_position_embeddings": original},
        "original_max_position_embeddings": original,
    }


def _predicting(header: Header) -> int:
    """Return the number of blocks at the end that predict further tokens."""
    number = header.metadata.get(f"{header.metadata['general.architecture']}.nextn_predict_layers", 0)
    return number if isinstance(number, int) else 0


def _as_written(stored: Mapping[str, Entry], layers: int, predicting: int) -> dict[str, Entry]:
    """Return a file's tensors as this bench writes them, where others write them otherwise.

    Experts each for itself (before 2024), gate and up as one, DeepSeek's keys and values apart; blocks that predict
    further tokens are left out.
    """
    tensors = {name: entry for name, entry in stored.items() if COMPUTED.fullmatch(name) is None}
    tensors = {name: entry for name, entry in tensors.items() if not layers <= _layer(name) < layers + predicting}
    for name in list(tensors):
        if name.endswith("ffn_gate_up_exps.weight"):
            both = tensors.pop(name)
            for part, which in enumerate(("gate", "up")):
                tensors[name.replace("gate_up", which)] = _half(both, part)
        elif name.endswith("attn_k_b.weight") and name.replace("_k_b", "_v_b") in tensors:
            keys, values = tensors.pop(name), tensors.pop(name.replace("_k_b", "_v_b"))
            tensors[name.replace("_k_b", "_kv_b")] = _keys_and_values(keys, values)
    return _stacked(tensors)


def _layer(name: str) -> int:
    match = _BLOCK.match(name)
    return -1 if match is None or len(match[1]) > 9 else int(match[1])


def _stacked(tensors: dict[str, Entry]) -> dict[str, Entry]:
    """Return the tensors with experts that lie each for itself as one."""
    parts: dict[str, dict[int, Entry]] = {}
    for name in list(tensors):
        match = _EXPERT.fullmatch(name)
        if match is not None:
            stack = parts.setdefault(f"{match['block']}.ffn_{match['which']}_exps.weight", {})
            stack[int(match["number"][:9])] = tensors.pop(name)
    for name, experts in parts.items():
        ordered = [experts[number] for number in sorted(experts)]
        if sorted(experts) != list(range(len(experts))) or len({(each.ggml_type, each.shape) for each in ordered}) > 1:
            raise ValueError(f"its experts of {name} have several types, or one is missing")
        tensors[name] = Entry(ordered[0].ggml_type, (len(ordered), *ordered[0].shape), _stack(ordered))
    return tensors


def _stack(entries: Sequence[Entry]) -> Callable[[], Tensor]:
    return lambda: torch.stack([entry.load() for entry in entries])


def _half(both: Entry, part: int) -> Entry:
    """Return the first or second half of the rows of every expert's tensor."""
    experts, rows, columns = both.shape
    half = slice(part * rows // 2, (part + 1) * rows // 2)
    return Entry(both.ggml_type, (experts, rows // 2, columns), lambda: both.load()[:, half])


def _keys_and_values(keys: Entry, values: Entry) -> Entry:
    """Return the projection of a latent state to keys and values.

    ``keys`` [heads, rank, n], ``values`` [heads, m, rank].
    """
    heads, rank, width = keys.shape
    if values.shape[0] != heads or values.shape[2] != rank:
        raise ValueError(f"its attn_k_b and attn_v_b have shapes {list(keys.shape)} and {list(values.shape)}")
    shape = (heads * (width + values.shape[1]), rank)

    def together() -> Tensor:
        return torch.cat([keys.values().transpose(1, 2), values.values()], dim=1).reshape(shape)

    return float_entry(shape, together, torch.float32)


def _label(header: Header) -> str:
    """Return what the file calls its type; of a file that does not say it the type of most weights."""
    from gguf import LlamaFileType

    number = header.metadata.get("general.file_type")
    names = {int(kind): kind.name for kind in LlamaFileType}
    if isinstance(number, int) and number in names and names[number] != "GUESSED":
        return names[number].partition("_")[2]
    weights: Counter[str] = Counter()
    for tensor in header.tensors.values():
        weights[tensor.ggml_type] += tensor.size
    return weights.most_common(1)[0][0].upper()


def _notes(header: Header, predicting: int) -> Iterator[str]:
    """Yield sentences on what was left out, and on types that are not what the file is called by."""
    if predicting:
        yield f"The last blocks, {predicting} that predict further tokens, were left out."
    weights: Counter[str] = Counter()
    for name, tensor in header.tensors.items():
        if len(tensor.shape) > 1 and _BLOCK.match(name):
            weights[tensor.ggml_type] += math.prod(tensor.shape)
    label = _label(header).lower()
    named = next((kind for kind in sorted(weights, key=len, reverse=True) if label.startswith(kind)), None)
    most, number = weights.most_common(1)[0]
    if named != most:
        share = number / weights.total()
        yield f"The file is called {label.upper()}; {share:.0%} of the weights of its blocks are {most.upper()}."


def _tokens(metadata: Mapping[str, Value]) -> Mapping[int, str] | None:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        return None
    return {number: str(token) for number, token in enumerate(tokens) if not _PADDING.fullmatch(str(token))}
