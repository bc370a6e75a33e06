"""The base model from each source, and loading of plain and of packed checkpoints."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hemorrhage.models.__main__ import prepare
from hemorrhage.models.checkpoint import load, load_tokenizer
from hemorrhage.models.formats import gguf_names
from hemorrhage.models.sources import hub, wheel
from hemorrhage.models.sources.files import INDEX, NAMES, WEIGHTS
from hemorrhage.runtime.artifact import read_manifest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHARED = Path(__file__).resolve().parents[3] / "shared"


def packed(tiny: Path, out: Path, bits: int) -> Path:
    """``tiny`` as a pack-quantized checkpoint: rows asymmetric, written by compressed-tensors itself."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        QuantizationStatus,
        apply_quantization_config,
    )
    from compressed_tensors.quantization.utils import calculate_qparams

    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    arguments = QuantizationArgs(num_bits=bits, type="int", strategy="channel", symmetric=False)
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    apply_quantization_config(
        model,
        QuantizationConfig(
            config_groups={"all": scheme}, ignore=["lm_head"], quantization_status=QuantizationStatus.FROZEN
        ),
    )
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and hasattr(module, "quantization_scheme"):
            low, high = module.weight.data.aminmax(dim=1, keepdim=True)
            scale, zero = calculate_qparams(low, high, arguments)
            module.weight_scale.data = scale.to(module.weight_scale.dtype)
            module.weight_zero_point.data = zero.to(module.weight_zero_point.dtype)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(out)
    compressor.update_config(str(out))
    return out


def codes(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The first ``count`` signed codes of each row of packed int32 ``words``, bit by bit."""
    rows = []
    for row in words.tolist():
        stream = "".join(format(word & 0xFFFFFFFF, "032b")[::-1] for word in row)
        values = [int(stream[at * bits : (at + 1) * bits][::-1], 2) for at in range(count)]
        rows.append([value - 2 ** (bits - 1) for value in values])
    return torch.tensor(rows)


@pytest.mark.parametrize("bits", [3, 4])
def test_packed_checkpoint_becomes_dense_scale_times_code(tiny: Path, tmp_path: Path, bits: int) -> None:
    folder = packed(tiny, tmp_path / "packed", bits)
    stored = load_file(folder / "model.safetensors")
    model = load(folder)
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue
        assert set(module.state_dict()) == {"weight"}, name
        assert "forward" not in vars(module), name
        count = int(stored[f"{name}.weight_shape"][1])
        zero = codes(stored[f"{name}.weight_zero_point"].T, bits, len(module.weight)).T
        expected = stored[f"{name}.weight_scale"] * (codes(stored[f"{name}.weight_packed"], bits, count) - zero)
        torch.testing.assert_close(module.weight.data, expected.float(), rtol=0, atol=0)


def test_load_is_a_frozen_plain_model_of_the_asked_dtype(tiny: Path) -> None:
    model = load(tiny)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert load(tiny, "bfloat16").dtype == torch.bfloat16
    stock = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    tokens = torch.arange(1, 60)[None]
    with torch.inference_mode():
        assert torch.equal(model(tokens).logits.cpu(), stock(tokens).logits)


def test_tokenizer_is_the_one_of_tokenizer_json(tiny: Path) -> None:
    text = "Once upon a time, there was a little girl."
    assert load_tokenizer(tiny)(text).input_ids == AutoTokenizer.from_pretrained(tiny)(text).input_ids


def test_path_base_has_the_facts_of_the_folder(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "base"
    spec = {"source": "path", "path": str(tiny)}
    prepare(spec, out)
    manifest = read_manifest(out)
    state = load_file(tiny / "model.safetensors")
    linear = [value for name, value in state.items() if name.startswith("model.layers") and value.ndim == 2]
    assert manifest["parameters"] == sum(value.numel() for value in state.values() if value is not None)
    assert manifest["effective_bits"] == 32.0
    assert manifest["disk_bytes"] == (tiny / "model.safetensors").stat().st_size
    assert manifest["sparsity"] == sum(int((w == 0).sum()) for w in linear) / sum(w.numel() for w in linear)
    assert manifest["context"] == 512
    assert manifest["bos"] == 1
    assert manifest["model"] == spec
    assert (manifest["variant"], manifest["size_ratio"], manifest["changed"], manifest["seed"]) == (
        "base",
        1.0,
        0.0,
        None,
    )
    assert (out / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()
    # Not a link: whoever writes into the original would change what lies at this address.
    assert (out / "model.safetensors").stat().st_ino != (tiny / "model.safetensors").stat().st_ino


def folder_with(where: Path, config: dict[str, object], *files: str) -> Path:
    """A folder with that config.json and empty files."""
    where.mkdir()
    (where / "config.json").write_text(json.dumps(config))
    for name in files:
        (where / name).write_bytes(b"")
    return where


@pytest.mark.parametrize(
    ("config", "files", "reason"),
    [
        ({}, ["pytorch_model.bin", "tokenizer.json"], "only pickled weights"),
        ({}, ["tokenizer.json"], r"no \*\.safetensors"),
        ({}, ["model.safetensors"], "no tokenizer"),
        ({"auto_map": {"AutoModel": "x.Y"}}, ["model.safetensors", "tokenizer.json"], "code of its own"),
        ({"quantization_config": {}}, ["model.safetensors", "tokenizer.json"], "quantized already"),
    ],
)
def test_folders_that_cannot_be_the_base_are_refused(
    tmp_path: Path, config: dict[str, object], files: list[str], reason: str
) -> None:
    folder = folder_with(tmp_path / "folder", config, *files)
    with pytest.raises(ValueError, match=rf"model\.path: .*{reason}"):
        prepare({"source": "path", "path": str(folder)}, tmp_path / "base")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_folder_without_config_and_unknown_source_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        prepare({"source": "path", "path": str(tmp_path)}, tmp_path / "base")
    with pytest.raises(ValueError, match="allowed: wheel, hub, path"):
        prepare({"source": "ftp"}, tmp_path / "base")


def test_hub_takes_what_the_pinned_download_brings(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot(repository: str, **options: object) -> str:
        asked.append((repository, options["revision"], options["allow_patterns"]))
        shutil.copytree(tiny, str(options["local_dir"]), dirs_exist_ok=True)
        return str(options["local_dir"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    spec = {"source": "hub", "id": "some/model", "revision": COMMIT}
    prepare(spec, tmp_path / "base")
    assert asked == [("some/model", COMMIT, [*NAMES, INDEX]), ("some/model", COMMIT, [WEIGHTS])]
    assert not any(name.endswith((".bin", ".py", ".pt")) for name in NAMES)
    assert read_manifest(tmp_path / "base")["model"] == spec
    assert [entry.name for entry in tmp_path.iterdir()] == ["base"]


def test_hub_refuses_branches_and_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"model\.revision: 'main' is no commit"):
        prepare({"source": "hub", "id": "some/model", "revision": "main"}, tmp_path / "base")

    def pickles(repository: str, revision: str, folder: Path, names: object) -> str:
        return str(folder_with(folder / "snapshot", {}, "pytorch_model.bin", "tokenizer.json"))

    monkeypatch.setattr(hub, "download", pickles)
    with pytest.raises(ValueError, match=r"model\.id: some/model holds only pickled weights"):
        prepare({"source": "hub", "id": "some/model", "revision": COMMIT}, tmp_path / "base")
    assert list(tmp_path.iterdir()) == []


def rotary_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of query and key rows: rows i and i + d/2 of a head become 2i and 2i + 1."""
    size = len(weight) // heads
    order = []
    for head in range(heads):
        for i in range(size // 2):
            order += [head * size + i, head * size + size // 2 + i]
    return weight[order]


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
    to_gguf = {new: old for old, new in {**gguf_names.LAYER, **gguf_names.OUTSIDE}.items()}
    for name, tensor in load_file(tiny / "model.safetensors").items():
        value = tensor.float().numpy()
        parts = name.removesuffix(".weight").split(".")
        inside = parts[1] == "layers"
        short = f"blk.{parts[2]}.{to_gguf['.'.join(parts[3:])]}" if inside else to_gguf[".".join(parts)]
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
    assert manifest["bos"] is None
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


def test_rotary_order_is_undone_row_by_row() -> None:
    weight = torch.arange(4 * 6 * 3, dtype=torch.float32).view(24, 3)
    stored = torch.from_numpy(rotary_pairs(weight.numpy(), heads=4))
    assert not torch.equal(stored, weight)
    assert torch.equal(gguf_names.rotary_halves(stored, heads=4), weight)


def test_wheel_names_what_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"model\.name: 'gpt5' is unknown; allowed: smollm2-135m-instruct"):
        wheel.gguf_file("gpt5")


def test_untied_output_counts_as_parameters(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "untied"
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    state = load_file(folder / "model.safetensors")
    state["lm_head.weight"] = torch.zeros_like(state["model.embed_tokens.weight"])
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    prepare({"source": "path", "path": str(folder)}, tmp_path / "base")
    manifest = read_manifest(tmp_path / "base")
    assert manifest["parameters"] == 260032 + 512 * 64
    assert manifest["sparsity"] < 0.01, "the output embedding is no linear layer of a block"


@pytest.mark.slow
def test_smollm2_has_its_published_size_and_perplexity(tmp_path: Path) -> None:
    """WikiText-2 test, rows concatenated, its first 4,092 tokens as 4 windows of 1,023 after a BOS: 23.31."""
    prepare({"source": "wheel", "name": "smollm2-135m-instruct"}, tmp_path / "base")
    assert read_manifest(tmp_path / "base")["parameters"] == 134_515_008
    file = SHARED / "data/hf/Salesforce/wikitext/wikitext-2-raw-v1/test-00000-of-00001.parquet"
    if not file.is_file():
        pytest.skip("no WikiText-2 beside the repository")
    from pyarrow import parquet

    text = "".join(parquet.read_table(file)["text"].to_pylist())[:40000]
    model, tokenizer = load(tmp_path / "base"), load_tokenizer(tmp_path / "base")
    tokens = torch.tensor(tokenizer(text).input_ids[:4092]).view(4, 1023)
    nll = 0.0
    with torch.inference_mode():
        for window in tokens:
            read = torch.cat([torch.tensor([tokenizer.bos_token_id]), window])
            nll += float(model(read[None, :], labels=read[None, :]).loss) * len(window)
    assert math.exp(nll / tokens.numel()) == pytest.approx(23.31, abs=0.01)


@pytest.mark.slow
def test_tiny_model_learns_more_than_the_unigram(tmp_path: Path) -> None:
    from hemorrhage.data.texts import embedded
    from tests.tiny_model import build

    folder = build(tmp_path / "tiny")
    model, tokenizer = load(folder), load_tokenizer(folder)
    text = embedded.JOIN.join(embedded.documents("prose")["evaluation"])[:40000]
    tokens = torch.tensor(tokenizer(text, add_special_tokens=False).input_ids)
    tokens = tokens[: len(tokens) // 127 * 127].view(-1, 127)
    windows = torch.cat([torch.ones(len(tokens), 1, dtype=torch.long), tokens], dim=1)
    with torch.inference_mode():
        perplexity = math.exp(float(model(windows, labels=windows).loss))
    share = torch.bincount(tokens.flatten(), minlength=512).float() / tokens.numel()
    unigram = math.exp(float(torch.special.entr(share).sum()))
    assert perplexity < 0.5 * unigram
    prepare({"source": "path", "path": str(folder)}, tmp_path / "base")
    assert read_manifest(tmp_path / "base")["bos"] == 1
