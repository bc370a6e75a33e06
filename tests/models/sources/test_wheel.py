"""A model out of the GGUF file of an installed package."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from hemorrhage.models.__main__ import prepare
from hemorrhage.models.checkpoint import load
from hemorrhage.models.sources import wheel
from hemorrhage.runtime.artifact import read_manifest
from tests.models.formats.test_gguf_names import BLOCK, OUTSIDE, rotary_pairs

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefgh0123Ġ", "ab", "Ġa", "Ġab"]


def write_gguf(tiny: Path, file: Path) -> None:
    """The model ``tiny`` as a GGUF file: projections Q8_0 (blocks of 32), the rest float32."""
    config = json.loads((tiny / "config.json").read_text())
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_uint32("llama.vocab_size", config["vocab_size"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["a b", "Ġ a", "Ġ ab"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for message in messages %}<|im_start|>{{ message.content }}{% endfor %}")
    for name, tensor in load_file(tiny / "model.safetensors").items():
        value = tensor.float().numpy()
        parts = name.removesuffix(".weight").split(".")
        inside = parts[1] == "layers"
        short = f"blk.{parts[2]}.{BLOCK['.'.join(parts[3:])]}" if inside else OUTSIDE[".".join(parts)]
        heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}.get(parts[-1])
        if heads:
            value = rotary_pairs(value, heads)
        if value.ndim == 2 and value.shape[1] % 32 == 0:
            blocks = gguf.quants.quantize(value, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(f"{short}.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(f"{short}.weight", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_wheel_rebuilds_the_model_of_a_gguf_file(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tiny, tmp_path / "tiny.gguf")
    monkeypatch.setattr(wheel, "gguf_file", lambda name: tmp_path / "tiny.gguf")
    prepare({"source": "wheel", "name": "tiny"}, tmp_path / "base")
    manifest = read_manifest(tmp_path / "base")
    assert manifest["parameters"] == 260032
    assert manifest["effective_bits"] == 16.0
    assert manifest["leading"] == []
    assert "dequantized 4-bit file" in manifest["note"]
    assert manifest["quantized_before"]["type"] == "Q4_1"
    assert manifest["quantized_before"]["bytes"] < manifest["disk_bytes"]

    was, model = load(tiny), load(tmp_path / "base")
    for name, value in model.state_dict().items():
        # Q8_0 rounds to 1/254 of the largest of 32, bf16 to 1/256 of the value.
        torch.testing.assert_close(value, was.state_dict()[name], rtol=0.004, atol=float(value.abs().max()) / 250)
    tokens = torch.randint(3, 500, (1, 100), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = was(tokens).logits.log_softmax(-1), model(tokens).logits.log_softmax(-1)
    assert (expected.exp() * (expected - found)).sum(-1).mean() < 0.005

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert tokenizer.convert_ids_to_tokens(tokenizer("ab ab10<|im_end|>").input_ids) == [
        "ab", "Ġab", "1", "0", "<|im_end|>"
    ]  # fmt: skip
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        TOKENS[1],
        TOKENS[2],
        TOKENS[2],
    )
    message = [{"role": "user", "content": "ab"}]
    assert tokenizer.apply_chat_template(message, tokenize=False) == "<|im_start|>ab"


def test_wheel_names_what_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"model\.name: 'gpt5' is unknown; allowed: smollm2-135m-instruct"):
        wheel.gguf_file("gpt5")
