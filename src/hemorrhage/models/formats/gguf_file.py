"""Llama models as GGUF files: written with llama.cpp's names, types and metadata, and read back.

A checkpoint of this form has its weights in ``model.gguf`` beside config.json and the tokenizer; transformers
reads it with ``from_pretrained(folder, gguf_file="model.gguf")``. Matrices are in ggml's block types or in a
float type, norms in float32. Rows of queries and keys are stored in llama.cpp's rotary order (pairs next to
each other); a row keeps its blocks whole, so reordering rows changes no block.
"""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hemorrhage.models.formats.dequantized import DequantizedLinear
from hemorrhage.models.formats.gguf_names import LAYER, OUTSIDE, hugging_face_name, problem, rotary_halves

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
}
"""Type of most of a file's weights -> llama.cpp's number for such files (the ones without mixing, ``_S``)."""

FLOATS = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {QWEN2: "qwen2", QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|"): "llama-bpe"}
"""Regular expression that splits the text -> llama.cpp's name of it."""

SPACE = "\u2581"
"""What SentencePiece writes for a space."""


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: type, shape in weights, and what gives its blocks, uint8 [rows, bytes of a row].

    Rows of queries and keys are in Hugging Face's order. A float type's blocks are its numbers.
    """

    kind: str
    shape: tuple[int, ...]
    load: Callable[[], Tensor]

    def values(self) -> Tensor:
        """Return the weights that a reader of the file sees: float32 of ``shape``."""
        return dequantize(self.load(), self.kind)


class BlockLinear(DequantizedLinear):
    """A linear layer of ggml's blocks, dequantized whenever it computes."""

    storage_format = "gguf_file"

    def __init__(self, blocks: Tensor, kind: str, bias: nn.Parameter | None) -> None:
        """``blocks`` uint8 [rows, bytes of a row] of the type ``kind``, a name in lower case."""
        width, size = block_size(kind)
        super().__init__((len(blocks), blocks.shape[1] // size * width), {"blocks": blocks}, bias)
        self.kind = kind

    def dense(self) -> Tensor:
        """Return the weights that a reader of the file sees: float32 [rows, columns]."""
        return dequantize(self.tensors["blocks"].data, self.kind)

    def entry(self) -> Entry:
        """Return the layer's tensor of a file."""
        return Entry(self.kind, (self.out_features, self.in_features), lambda: self.tensors["blocks"].data)


def block_size(kind: str) -> tuple[int, int]:
    """Return the weights of a block of a type, and its bytes."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    return GGML_QUANT_SIZES[GGMLQuantizationType[kind.upper()]]


def dequantize(blocks: Tensor, kind: str) -> Tensor:
    """Return the weights float32 [rows, columns] that ``blocks`` uint8 [rows, bytes of a row] stand for."""
    from gguf import GGMLQuantizationType
    from gguf import dequantize as weights_of

    return torch.from_numpy(weights_of(blocks.numpy(), GGMLQuantizationType[kind.upper()]))


def rotary_pairs(weight: Tensor, heads: int) -> Tensor:
    """Return the rows of a query or key projection ``[heads * d, n]``, from halves to rotary pairs (GGUF)."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def names(layers: int) -> dict[str, str]:
    """Return the names of a Llama's parameters in Hugging Face's model -> in a GGUF file, in the file's order."""
    stems = [*OUTSIDE, *(f"blk.{layer}.{part}" for layer in range(layers) for part in LAYER)]
    return {hugging_face_name(f"{stem}.weight"): f"{stem}.weight" for stem in stems}


def save(model: PreTrainedModel, dtype: torch.dtype, base: Path, folder: Path) -> None:
    """Write ``model.gguf`` of ``model`` into ``folder``; what has no blocks goes into ``dtype``.

    ``base`` is the folder that has the tokenizer; where llama.cpp's name for it is not known, the file has
    none.
    """
    from hemorrhage.models.formats.storage import distinct, formatted_layers

    found = formatted_layers(model)
    entries = {f"{name}.weight": form.entry() for name, form in found.items()}
    inside = tuple(f"{name}." for name in found)
    for name, value in distinct(model).items():
        own = getattr(model.get_submodule(name.rpartition(".")[0]), "gguf_entry", None)
        if not name.startswith(inside):
            entries[name] = own or float_entry(tuple(value.shape), value.detach, dtype)
    unknown = tokenizer_problem(base)
    if unknown:
        log.warning("%s is written without a tokenizer: %s", FILE, unknown)
    most = FILE_TYPES[model.config.hemorrhage["type"]]
    write(folder / FILE, model.config.to_dict(), None if unknown else base, entries, most)


def tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return what of ``model`` goes into a safetensors file: nothing, ``save`` writes it all."""
    return {}


def float_entry(shape: tuple[int, ...], load: Callable[[], Tensor], dtype: torch.dtype) -> Entry:
    """Return the entry of a plain tensor that ``load`` gives: a matrix in ``dtype``, a vector in float32."""
    kind = torch.float32 if len(shape) == 1 else dtype
    return Entry(FLOATS[kind], shape, lambda: load().to(kind).contiguous().view(torch.uint8))


def embed(module: Any, blocks: Tensor, kind: str) -> None:
    """Give an embedding or output matrix the values of ``blocks`` uint8 of the type ``kind``, and keep these.

    The values are float32: the model that is checked has to be the one that is read back.
    """
    module.weight.data = dequantize(blocks, kind)
    module.gguf_entry = Entry(kind, tuple(module.weight.shape), lambda: blocks)


def write(
    path: Path,
    config: Mapping[str, Any],
    tokenizer: Path | None,
    entries: Mapping[str, Entry],
    file_type: int,
) -> None:
    """Write a Llama with this config.json, tensor by tensor; ``entries`` by Hugging Face's names.

    ``tokenizer`` is the folder it is taken from. Raises ValueError where ``problem`` or ``tokenizer_problem``
    has one, and where tensors are missing or have no place.
    """
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter

    reason = problem(config)
    if reason:
        raise ValueError(reason)
    places = {
        name: place
        for name, place in names(config["num_hidden_layers"]).items()
        if not (name == "lm_head.weight" and config.get("tie_word_embeddings"))
    }
    if set(places) != set(entries):
        odd = sorted(set(places) ^ set(entries))
        raise ValueError(f"{odd[0]} and {len(odd) - 1} more tensors do not fit config.json's {len(places)}")
    writer = GGUFWriter(path, "llama")
    _describe(writer, config, file_type)
    if tokenizer is None:
        writer.add_tokenizer_model("none")
    else:
        _add_tokenizer(writer, tokenizer, config["vocab_size"])
    for name, place in places.items():
        entry = entries[name]
        width, size = block_size(entry.kind)
        shape = (*entry.shape[:-1], entry.shape[-1] // width * size)
        kind = GGMLQuantizationType[entry.kind.upper()]
        writer.add_tensor_info(place, shape, np.dtype(np.uint8), math.prod(shape), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name in places:
        blocks, heads = entries[name].load(), _heads(name, config)
        writer.write_tensor_data((rotary_pairs(blocks, heads) if heads else blocks).contiguous().numpy())
    writer.close()


def entries_of(path: Path, config: Mapping[str, Any]) -> dict[str, Entry]:
    """Return the tensors of a file that ``write`` wrote, by Hugging Face's names."""
    import numpy as np
    from gguf import GGUFReader

    def load(data: Any, heads: int | None) -> Tensor:
        blocks = torch.from_numpy(np.array(data).view(np.uint8))
        return rotary_halves(blocks, heads).contiguous() if heads else blocks

    found = {}
    for tensor in GGUFReader(path).tensors:
        name = hugging_face_name(tensor.name)
        shape = tuple(int(number) for number in reversed(tensor.shape))
        supplied = functools.partial(load, tensor.data, _heads(name, config))
        found[name] = Entry(tensor.tensor_type.name.lower(), shape, supplied)
    return found


def stored_bits(path: Path) -> dict[str, float]:
    """Bits of every tensor of a file by Hugging Face's names: not its header, nor the tokenizer in it."""
    from gguf import GGUFReader

    return {hugging_face_name(tensor.name): 8.0 * int(tensor.n_bytes) for tensor in GGUFReader(path).tensors}


def build(folder: Path, config: Any, dtype: str, as_stored: bool = False, base: Path | None = None) -> PreTrainedModel:
    """Return the model of a folder of this form, its weights cast to ``dtype``, torch's name of one.

    ``stored`` means config.json's dtype, to which blocks are dequantized. With ``as_stored`` linear layers keep
    their blocks, and quantized embeddings have their exact values, which need float32. Nothing is shared with ``base``.
    """
    from transformers import LlamaForCausalLM

    from hemorrhage.models.formats.storage import replace

    wanted = (config.dtype or torch.float32) if dtype == "stored" else getattr(torch, dtype)
    state: dict[str, Tensor] = {}
    kept: dict[str, Entry] = {}
    for name, entry in entries_of(folder / FILE, config.to_dict()).items():
        if as_stored and entry.kind not in FLOATS.values():
            # transformers wants to see a tensor, which costs no memory.
            kept[name], state[name] = entry, torch.zeros((), dtype=wanted).expand(entry.shape)
        else:
            state[name] = entry.values().to(wanted)
    model = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=state, dtype=wanted)
    for name, entry in kept.items():
        layer = name.removesuffix(".weight")
        if layer.endswith("_proj"):
            replace(model, layer, BlockLinear(entry.load(), entry.kind, None))
        else:
            embed(model.get_submodule(layer), entry.load(), entry.kind)
    if not as_stored:
        # A dense model that is altered further is stored as what it becomes then.
        vars(model.config).pop("hemorrhage", None)
    return model


def tokenizer_problem(folder: Path) -> str | None:
    """Return why the tokenizer of ``folder`` can't be written into a GGUF file, or None."""
    try:
        _tokenizer_kind(_tokenizer(folder))
    except ValueError as error:
        return str(error)
    return None


def _describe(writer: GGUFWriter, config: Mapping[str, Any], file_type: int) -> None:
    from gguf import GGML_QUANT_VERSION

    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or config
    writer.add_type("model")
    writer.add_name("hemorrhage")
    writer.add_file_type(file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _tokenizer(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))


def _tokenizer_kind(tokenizer: dict[str, Any]) -> tuple[str, str]:
    """llama.cpp's names of the tokenizer's model and of the rule that splits texts before it."""
    model, before = tokenizer["model"], tokenizer.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before] if before else [])
    kinds = [step["type"] for step in steps]
    if model["type"] != "BPE":
        raise ValueError(f"a tokenizer of type {model['type']} is not understood; BPE is")
    if model.get("byte_fallback") and kinds in ([], ["Metaspace"]):
        return "llama", "default"
    if kinds == ["ByteLevel"]:
        return "gpt2", "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "gpt2", "smollm"
    if kinds == ["Split", "ByteLevel"]:
        pattern = steps[0]["pattern"].get("Regex")
        if pattern in PATTERNS:
            return "gpt2", PATTERNS[pattern]
    raise ValueError(f"llama.cpp's name for a tokenizer that splits by {' and '.join(kinds) or 'nothing'} is not known")


def _add_tokenizer(writer: GGUFWriter, folder: Path, size: int) -> None:
    from gguf import SpecialVocab, TokenType

    tokenizer = _tokenizer(folder)
    kind, split = _tokenizer_kind(tokenizer)
    model = tokenizer["model"]
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [TokenType.UNUSED] * size
    for token, number in model["vocab"].items():
        tokens[number], types[number] = token, TokenType.NORMAL
        if kind == "llama" and len(token) == len("<0x00>") and token.startswith("<0x"):
            types[number] = TokenType.BYTE
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    if kind == "llama" and model.get("unk_token") in model["vocab"]:
        types[model["vocab"][model["unk_token"]]] = TokenType.UNKNOWN
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if kind == "llama":
        writer.add_token_scores(_scores(tokens, model["merges"]))
    special = SpecialVocab(folder, load_merges=kind == "gpt2", n_vocab=size)
    special.add_special_token = {"bos": False, **special.add_special_token}
    special.add_to_gguf(writer, quiet=True)
    writer.add_add_space_prefix(kind == "llama" and _prepends(tokenizer))


def _scores(tokens: list[str], merges: list[Any]) -> list[float]:
    """SentencePiece's scores: the earlier a token is merged, the higher; what is never merged comes last."""
    rank: dict[str, int] = {}
    for place, merge in enumerate(merges):
        rank.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), place)
    return [-float(rank.get(token, len(merges))) for token in tokens]


def _prepends(tokenizer: dict[str, Any]) -> bool:
    """Return whether a space is put in front of a text."""
    normalizer, before = tokenizer.get("normalizer") or {}, tokenizer.get("pre_tokenizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    if before.get("type") == "Metaspace":
        return before.get("prepend_scheme", "always") != "never"
    return any(step.get("type") == "Prepend" and step.get("prepend") == SPACE for step in steps)


def _heads(name: str, config: Mapping[str, Any]) -> int | None:
    """Heads of a query or key projection; None of other tensors."""
    heads = config["num_attention_heads"]
    if name.endswith("q_proj.weight"):
        return heads
    if name.endswith("k_proj.weight"):
        return config.get("num_key_value_heads") or heads
    return None
