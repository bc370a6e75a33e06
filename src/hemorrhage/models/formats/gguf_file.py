"""Models as GGUF files: written with llama.cpp's names, types and metadata, and read back.

A checkpoint of this format has its weights in ``model.gguf`` next to config.json and the tokenizer; transformers
reads it with ``from_pretrained(folder, gguf_file="model.gguf")``. Matrices are in ggml's block types or in a
float type, norms, biases, routers and tables of positions in float32. The experts of a layer are one tensor. Of some
families rows are stored in another order, which changes no block, as a row keeps its blocks whole; of some the norms
are stored as what they multiply with, 1 + weight (hemorrhage.models.formats.gguf_names).
"""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hemorrhage.models.formats import gguf_metadata
from hemorrhage.models.formats.dequantized import DequantizedLinear
from hemorrhage.models.formats.gguf_names import (
    FAMILIES,
    file_names,
    problem,
    rope_type,
    ropes,
    rotary_width,
    row_order,
)

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

FILE = "model.gguf"

FILE_TYPES = {
    "f32": 0,
    "f16": 1,
    "q8_0": 7,
    "q2_k": 10,
    "q3_k": 11,
    "q4_k": 14,
    "q5_k": 16,
    "q6_k": 18,
    "bf16": 32,
    "mxfp4": 38,
}
"""Type of most of a file's weights -> llama.cpp's number for such files (the ones without mixing, ``_S``)."""

FLOATS = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}

IN_FLOAT32 = (
    "_norm",
    "ffn_gate_inp",
    "ffn_gate_inp_shexp",
    "position_embd",
    "exp_probs_b",
    "shortconv.conv",
    "ssm_conv1d",
)
"""What llama.cpp has in float32 also where it has two dimensions."""

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {QWEN2: "qwen2", QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|"): "llama-bpe"}
"""Regular expression that splits the text -> llama.cpp's name of it."""

ROPE_FACTORS = "rope_freqs.weight"
"""The tensor of Llama 3's rotary embedding, which transformers computes from config.json."""

READ_BY_OTHERS = (".dt_proj",)
"""Linear layers that are never called: a mixer reads their weights."""

IGNORED = (ROPE_FACTORS,)
"""Tensors that transformers computes by itself."""

SPACE = "\u2581"
"""What SentencePiece writes for a space."""


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: type, shape in weights, and what gives its blocks, uint8 [rows, bytes of a row].

    Rows of queries and keys are in Hugging Face's order. A float type's blocks are its numbers.
    """

    ggml_type: str
    shape: tuple[int, ...]
    load: Callable[[], Tensor]

    def values(self) -> Tensor:
        """Return the weights that a reader of the file sees: float32 of ``shape``."""
        return dequantize(self.load(), self.ggml_type)


class BlockLinear(DequantizedLinear):
    """A linear layer of ggml's blocks, dequantized whenever it computes."""

    storage_format = "gguf_file"

    def __init__(self, blocks: Tensor, ggml_type: str, bias: nn.Parameter | None) -> None:
        """``blocks`` uint8 [rows, bytes of a row] of the type ``ggml_type``, a name in lower case."""
        width, size = block_size(ggml_type)
        super().__init__((len(blocks), blocks.shape[1] // size * width), {"blocks": blocks}, bias)
        self.ggml_type = ggml_type

    def dense(self) -> Tensor:
        """Return the weights that a reader of the file sees: float32 [rows, columns]."""
        return dequantize(self.tensors["blocks"].data, self.ggml_type)

    def entry(self) -> Entry:
        """Return the layer's tensor of a file."""
        return Entry(self.ggml_type, (self.out_features, self.in_features), lambda: self.tensors["blocks"].data)


def block_size(ggml_type: str) -> tuple[int, int]:
    """Return the weights of a block of a type, and its bytes."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    return GGML_QUANT_SIZES[GGMLQuantizationType[ggml_type.upper()]]


def dequantize(blocks: Tensor, ggml_type: str) -> Tensor:
    """Return the weights float32 [rows, columns] that ``blocks`` uint8 [rows, bytes of a row] stand for."""
    from gguf import GGMLQuantizationType
    from gguf import dequantize as weights_of

    return torch.from_numpy(weights_of(blocks.numpy(), GGMLQuantizationType[ggml_type.upper()]))


def save(model: PreTrainedModel, dtype: torch.dtype, base: Path, folder: Path) -> None:
    """Write ``model.gguf`` of ``model`` into ``folder``; what has no blocks goes into ``dtype``, or stays float32.

    Float32 it stays where somebody else made the file, whose values are not rounded again.

    ``base`` is the folder that has the tokenizer; where llama.cpp's name for it is not known, the file has
    none.
    """
    from hemorrhage.models.formats.storage import distinct, formatted_layers

    stored = torch.float32 if model.config.hemorrhage.get("published") else dtype
    layers = {name: layer for name, layer in formatted_layers(model).items() if isinstance(layer, BlockLinear)}
    entries = {f"{name}.weight": layer.entry() for name, layer in layers.items()}
    prefixes = tuple(f"{name}." for name in layers)
    for name, value in distinct(model).items():
        module, _, parameter = name.rpartition(".")
        quantized = getattr(model.get_submodule(module), "gguf_entry", None) if parameter == "weight" else None
        if not name.startswith(prefixes) or name.endswith(".bias"):
            entries[name] = quantized or float_entry(tuple(value.shape), value.detach, stored)
    unknown = tokenizer_problem(base)
    if unknown:
        log.warning("%s is written without a tokenizer: %s", FILE, unknown)
    from hemorrhage.models.architecture import entries as text_entries

    file_type = file_type_of(model.config.hemorrhage["type"])
    write(folder / FILE, text_entries(model.config), None if unknown else base, entries, file_type)


def tensors(_model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the tensors of a model that go into a safetensors file: none, ``save`` writes them all."""
    return {}


def float_entry(shape: tuple[int, ...], load: Callable[[], Tensor], dtype: torch.dtype) -> Entry:
    """Return the entry of a plain tensor that ``load`` gives: a matrix in ``dtype``, a vector in float32."""
    stored = torch.float32 if len(shape) == 1 else dtype
    return Entry(FLOATS[stored], shape, lambda: load().to(stored).contiguous().view(torch.uint8))


def embed(module: Any, blocks: Tensor, ggml_type: str) -> None:
    """Give an embedding or output matrix the values of ``blocks`` uint8 of the type ``ggml_type``, and keep these.

    The values are float32: the model that is checked has to be the one that is read back.
    """
    module.weight.data = dequantize(blocks, ggml_type)
    module.gguf_entry = Entry(ggml_type, tuple(module.weight.shape), lambda: blocks)


def write(
    path: Path,
    config: Mapping[str, Any],
    tokenizer: Path | None,
    entries: Mapping[str, Entry],
    file_type: int,
) -> None:
    """Write a model with this config.json, tensor by tensor; ``entries`` by Hugging Face's names.

    ``tokenizer`` is the folder it is taken from. Raises ValueError where ``problem`` or ``tokenizer_problem``
    has one, and where tensors are missing or unexpected.
    """
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter

    reason = problem(config)
    # A file that somebody else made has been run already.
    if reason and not (config.get("hemorrhage") or {}).get("published"):
        raise ValueError(reason)
    stored = {name: _in_file(name, sources, entries, config) for name, sources in file_names(config, entries).items()}
    stored |= _rope_factors(config)
    writer = GGUFWriter(path, FAMILIES[config["model_type"]].architecture)
    _describe(writer, config, file_type)
    if tokenizer is None:
        writer.add_tokenizer_model("none")
    else:
        _add_tokenizer(writer, tokenizer, config["vocab_size"])
    for gguf_name, entry in stored.items():
        width, size = block_size(entry.ggml_type)
        shape = (*entry.shape[:-1], entry.shape[-1] // width * size)
        ggml_type = GGMLQuantizationType[entry.ggml_type.upper()]
        writer.add_tensor_info(gguf_name, shape, np.dtype(np.uint8), math.prod(shape), ggml_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for entry in stored.values():
        writer.write_tensor_data(entry.load().contiguous().numpy())
    writer.close()


def parameters(config: Any) -> dict[str, torch.Size]:
    """Return the bench's names of what a model of ``config`` has on disk, and the shapes."""
    from hemorrhage.models.architecture import skeleton
    from hemorrhage.models.experts import unfuse
    from hemorrhage.models.formats.storage import distinct

    model = skeleton(config)
    unfuse(model)
    return {name: value.shape for name, value in distinct(model).items()}


def entries_of(path: Path, config: Any) -> dict[str, Entry]:
    """Return the tensors of a file that ``write`` wrote, by the bench's names; ``config`` as transformers has it."""
    import numpy as np
    from gguf import GGUFReader

    def load(data: Any) -> Tensor:
        return torch.from_numpy(np.array(data).view(np.uint8))

    stored = {}
    for tensor in GGUFReader(path).tensors:
        shape = tuple(int(number) for number in reversed(tensor.shape))
        stored[tensor.name] = Entry(tensor.tensor_type.name.lower(), shape, functools.partial(load, tensor.data))
    return taken_apart(stored, config)


def taken_apart(stored: Mapping[str, Entry], config: Any) -> dict[str, Entry]:
    """Return the tensors of a file by the bench's names, as transformers has them.

    Raises ValueError where one is missing, left over, or of another shape than the architecture's.
    """
    from hemorrhage.models.architecture import entries as text_entries

    settings, shapes = text_entries(config), parameters(config)
    sources = file_names(settings, shapes)
    odd = sorted(set(sources) ^ (set(stored) - set(IGNORED)))
    if odd:
        verb = "lacks" if odd[0] in sources else "has"
        raise ValueError(f"the GGUF file {verb} {odd[0]}: {len(odd)} tensors do not fit a {settings['model_type']}")
    entries = {}
    for gguf_name, names in sources.items():
        for number, name in enumerate(names):
            part = stored[gguf_name] if len(names) == 1 else _part(stored[gguf_name], number)
            entries[name] = _from_file(name, part, settings, tuple(shapes[name]))
    return entries


def stored_bits(path: Path) -> dict[str, float]:
    """Bits of every tensor of a checkpoint's file by the bench's names: not its header, nor the tokenizer in it."""
    from gguf import GGUFReader
    from transformers import AutoConfig

    from hemorrhage.models.architecture import entries as text_entries

    config = AutoConfig.from_pretrained(path.parent, local_files_only=True, trust_remote_code=False)
    sources = file_names(text_entries(config), parameters(config))
    bits: dict[str, float] = {}
    for tensor in GGUFReader(path).tensors:
        names = sources.get(tensor.name, (tensor.name,))
        bits |= dict.fromkeys(names, 8.0 * int(tensor.n_bytes) / len(names))
    return bits


def file_type_of(label: str) -> int:
    """Return llama.cpp's number of files of this label, such as ``q8_0`` or ``q4_k_m``."""
    from gguf import LlamaFileType

    if label in FILE_TYPES:
        return FILE_TYPES[label]
    return int(getattr(LlamaFileType, f"MOSTLY_{label.upper()}", LlamaFileType.GUESSED))


def build(folder: Path, config: Any, dtype: str, as_stored: bool = False, _base: Path | None = None) -> PreTrainedModel:
    """Return the model of a folder of this format, its weights cast to ``dtype``, torch's name of one.

    ``stored`` means config.json's dtype, to which blocks are dequantized. With ``as_stored`` linear layers keep
    their blocks, and quantized embeddings have their exact values, which need float32. No base model is needed.
    """
    return assemble(entries_of(folder / FILE, config), config, dtype, as_stored)


def assemble(
    entries: Mapping[str, Entry], config: Any, dtype: str, as_stored: bool, every_layer: bool = False
) -> PreTrainedModel:
    """Return the model of a file's tensors by the bench's names: ``build`` without the file.

    With ``every_layer`` layers and embeddings of a float type keep it, too, whatever the model's dtype.
    """
    from hemorrhage.models.architecture import architecture
    from hemorrhage.models.experts import unfuse
    from hemorrhage.models.formats.storage import replace
    from hemorrhage.models.layout import to_memory

    wanted = (config.dtype or torch.float32) if dtype == "stored" else getattr(torch, dtype)
    kept = _layers_and_embeddings(config) if every_layer else set()
    state: dict[str, Tensor] = {}
    quantized: dict[str, Entry] = {}
    for name, entry in entries.items():
        if as_stored and (name in kept if every_layer else entry.ggml_type not in FLOATS.values()):
            # transformers wants to see a tensor, which costs no memory.
            quantized[name], state[name] = entry, torch.zeros((), dtype=wanted).expand(entry.shape)
        else:
            state[name] = entry.values().to(wanted)
    state = to_memory(state, config.model_type)
    model: PreTrainedModel = architecture(config).from_pretrained(None, config=config, state_dict=state, dtype=wanted)
    unfuse(model)
    for name, entry in quantized.items():
        layer = name.removesuffix(".weight")
        module: Any = model.get_submodule(layer)
        if isinstance(module, nn.Linear) and module is not model.get_output_embeddings():
            replace(model, layer, BlockLinear(entry.load(), entry.ggml_type, module.bias))
        else:
            embed(module, entry.load(), entry.ggml_type)
    if not as_stored:
        # A dense model that is altered further is stored as what it becomes then.
        vars(model.config).pop("hemorrhage", None)
    return model


def _layers_and_embeddings(config: Any) -> set[str]:
    from hemorrhage.models.architecture import skeleton
    from hemorrhage.models.experts import mixtures, router, unfuse

    model = skeleton(config)
    unfuse(model)
    routing = {module for mixture in mixtures(model).values() for module in router(mixture).modules()}
    inside = (nn.Linear, nn.Embedding)
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, inside) and module not in routing and not name.endswith(READ_BY_OTHERS)
    }


def tokenizer_problem(folder: Path) -> str | None:
    """Return why the tokenizer of ``folder`` can't be written into a GGUF file, or None."""
    try:
        _read_tokenizer(folder)
    except ValueError as error:
        return str(error)
    return None


def _describe(writer: GGUFWriter, config: Mapping[str, Any], file_type: int) -> None:
    from gguf import GGML_QUANT_VERSION, GGUFValueType

    types = {
        list: GGUFValueType.ARRAY,
        bool: GGUFValueType.BOOL,
        int: GGUFValueType.UINT32,
        float: GGUFValueType.FLOAT32,
        str: GGUFValueType.STRING,
    }
    writer.add_type("model")
    writer.add_name("hemorrhage")
    writer.add_file_type(file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    architecture = FAMILIES[config["model_type"]].architecture
    for key, value in gguf_metadata.describe(config).items():
        of = GGUFValueType.UINT32 if isinstance(value, list) else None
        writer.add_key_value(f"{architecture}.{key}", value, types[type(value)], sub_type=of)


def _rope_factors(config: Mapping[str, Any]) -> dict[str, Entry]:
    """Return the tensor of Llama 3's rotary embedding: what each frequency is divided by, as llama.cpp computes it."""
    rope, _ = ropes(config)
    if rope_type(rope) != "llama3":
        return {}
    width, original = rotary_width(config), rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    frequencies = 1.0 / (float(rope["rope_theta"]) ** (torch.arange(0, width, 2, dtype=torch.float32) / width))
    turns = original * frequencies / (2 * math.pi)
    smooth = (turns - low) / (high - low)
    factors = 1 / ((1 - smooth) / rope["factor"] + smooth)
    factors = factors.masked_fill(turns < low, rope["factor"]).masked_fill(turns > high, 1.0)
    return {ROPE_FACTORS: float_entry(tuple(factors.shape), lambda: factors, torch.float32)}


@dataclass(frozen=True)
class _Tokenizer:
    """A tokenizer.json as a GGUF file holds it.

    ``model`` and ``splitting``: llama.cpp's names of the model and of the rule that splits texts before it;
    ``special``: token, number, and whether it is a control token, of the added ones; ``adds_space``: in front of a
    text.
    """

    model: str
    splitting: str
    vocabulary: Mapping[str, int]
    merges: Sequence[str | Sequence[str]]
    unknown: str | None
    special: Sequence[tuple[str, int, bool]]
    adds_space: bool


def _read_tokenizer(folder: Path) -> _Tokenizer:
    """Read tokenizer.json. Raises ValueError where llama.cpp's names for it are not known."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model, splitter, normalizer = (content.get(key) or {} for key in ("model", "pre_tokenizer", "normalizer"))
    name, splitting = _llama_cpp_names(model, splitter)
    return _Tokenizer(
        name,
        splitting,
        model["vocab"],
        model["merges"],
        model.get("unk_token"),
        [(token["content"], token["id"], token["special"]) for token in content.get("added_tokens") or ()],
        _adds_space(normalizer, splitter),
    )


def _llama_cpp_names(model: Mapping[str, Any], splitter: Mapping[str, Any]) -> tuple[str, str]:
    """Return llama.cpp's names of the tokenizer's model and of the rule that splits texts before it."""
    steps = splitter.get("pretokenizers", [splitter] if splitter else [])
    types = [step["type"] for step in steps]
    if model["type"] != "BPE":
        raise ValueError(f"a tokenizer of type {model['type']} is not supported; BPE is")
    if model.get("byte_fallback") and types in ([], ["Metaspace"]):
        return "llama", "default"
    if types == ["ByteLevel"]:
        return "gpt2", "gpt-2"
    if types == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "gpt2", "smollm"
    if types == ["Split", "ByteLevel"]:
        pattern = steps[0]["pattern"].get("Regex")
        if pattern in PATTERNS:
            return "gpt2", PATTERNS[pattern]
    raise ValueError(f"llama.cpp's name for a tokenizer that splits by {' and '.join(types) or 'nothing'} is not known")


def _adds_space(normalizer: Mapping[str, Any], splitter: Mapping[str, Any]) -> bool:
    """Return whether a space is put in front of a text."""
    if splitter.get("type") == "Metaspace":
        return bool(splitter.get("prepend_scheme", "always") != "never")
    steps = normalizer.get("normalizers", [normalizer])
    return any(step.get("type") == "Prepend" and step.get("prepend") == SPACE for step in steps)


def _add_tokenizer(writer: GGUFWriter, folder: Path, size: int) -> None:
    from gguf import SpecialVocab, TokenType

    tokenizer = _read_tokenizer(folder)
    is_llama = tokenizer.model == "llama"
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [TokenType.UNUSED] * size
    for token, number in tokenizer.vocabulary.items():
        tokens[number], types[number] = token, TokenType.NORMAL
        if is_llama and len(token) == len("<0x00>") and token.startswith("<0x"):
            types[number] = TokenType.BYTE
    for token, number, is_control in tokenizer.special:
        tokens[number] = token
        types[number] = TokenType.CONTROL if is_control else TokenType.USER_DEFINED
    if is_llama and tokenizer.unknown is not None and tokenizer.unknown in tokenizer.vocabulary:
        types[tokenizer.vocabulary[tokenizer.unknown]] = TokenType.UNKNOWN
    writer.add_tokenizer_model(tokenizer.model)
    writer.add_tokenizer_pre(tokenizer.splitting)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if is_llama:
        writer.add_token_scores(_scores(tokens, tokenizer.merges))
    special = SpecialVocab(folder, load_merges=not is_llama, n_vocab=size)
    special.add_special_token = {"bos": False, **special.add_special_token}
    special.add_to_gguf(writer, quiet=True)
    writer.add_add_space_prefix(is_llama and tokenizer.adds_space)


def _scores(tokens: list[str], merges: Sequence[str | Sequence[str]]) -> list[float]:
    """Return SentencePiece's scores: the earlier a token is merged, the higher; what is never merged comes last."""
    rank: dict[str, int] = {}
    for position, merge in enumerate(merges):
        rank.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), position)
    return [-float(rank.get(token, len(merges))) for token in tokens]


def _in_file(gguf_name: str, names: Sequence[str], entries: Mapping[str, Entry], config: Mapping[str, Any]) -> Entry:
    """Return a tensor as the file has it: experts stacked, rows in llama.cpp's order, norms as what they multiply with.

    ``names`` are the bench's of its parts, whose ``entries`` are given.
    """
    parts = [_as_in_file(gguf_name, name, entries[name], config) for name in names]
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    if any((part.ggml_type, part.shape) != (first.ggml_type, first.shape) for part in parts):
        raise ValueError(f"the parts of {gguf_name} have several types or shapes, and a GGUF file has one")
    return Entry(first.ggml_type, (len(parts), *first.shape), lambda: torch.stack([part.load() for part in parts]))


def _as_in_file(gguf_name: str, name: str, entry: Entry, config: Mapping[str, Any]) -> Entry:
    order = row_order(name, config)
    if order is not None:
        return _changed(entry, lambda blocks: blocks[order])
    if gguf_name.rpartition(".")[0].endswith(IN_FLOAT32):
        entry = _in_float32(entry)
    if name.endswith(".A_log"):
        # What a state decays by is stored as it is used.
        return float_entry(entry.shape, lambda: -entry.values().exp(), torch.float32)
    offset = _offset(name, config)
    return _changed(entry, lambda blocks: _add(blocks, offset)) if offset else entry


def _from_file(name: str, entry: Entry, config: Mapping[str, Any], shape: tuple[int, ...]) -> Entry:
    """Return a tensor of a file as transformers has it, what ``_as_in_file`` has undone."""
    if math.prod(shape) != math.prod(entry.shape) or shape[-1] != entry.shape[-1]:
        raise ValueError(f"the GGUF file has {name} of the shape {list(entry.shape)}; config.json says {list(shape)}")
    entry = Entry(entry.ggml_type, shape, functools.partial(_shaped, entry, shape))
    if name.endswith(".A_log"):
        return float_entry(shape, lambda: (-entry.values()).log(), torch.float32)
    order, offset = row_order(name, config), _offset(name, config)
    if order is not None:
        return _changed(entry, lambda blocks: blocks[order.argsort()])
    return _changed(entry, lambda blocks: _add(blocks, -offset)) if offset else entry


def _shaped(entry: Entry, shape: tuple[int, ...]) -> Tensor:
    return entry.load().view(*shape[:-1], -1)


def _part(stack: Entry, number: int) -> Entry:
    """Return one of the tensors that lie as one: an expert's, a head's."""
    return Entry(stack.ggml_type, stack.shape[1:], lambda: stack.load()[number])


def _in_float32(entry: Entry) -> Entry:
    """Return float weights as float32 ones, without dimensions of 1, which llama.cpp does not have."""
    shape = (*(length for length in entry.shape[:-1] if length > 1), entry.shape[-1])
    return Entry("f32", shape, lambda: entry.values().reshape(shape).contiguous().view(torch.uint8))


def _offset(name: str, config: Mapping[str, Any]) -> float:
    """Return what a file's weights have on top of transformers'."""
    offset: float = FAMILIES[config["model_type"]].norm_offset
    return offset if name.endswith("norm.weight") else 0.0


def _changed(entry: Entry, change: Callable[[Tensor], Tensor]) -> Entry:
    """Return a tensor with ``change`` of its blocks uint8 [rows, bytes of a row]; a bias has a row a number."""

    def load() -> Tensor:
        blocks = entry.load()
        return change(blocks.reshape(entry.shape[0], -1)).reshape(blocks.shape).contiguous()

    return Entry(entry.ggml_type, entry.shape, load)


def _add(blocks: Tensor, offset: float) -> Tensor:
    """Return float32 numbers uint8 [n, 4] with ``offset`` added."""
    return (blocks.contiguous().view(torch.float32) + offset).view(torch.uint8)
