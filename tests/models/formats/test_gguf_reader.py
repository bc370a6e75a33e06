"""GGUF files that others made: what gguf dequantizes, what llama.cpp's converter writes, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, quants
from transformers import AutoConfig, PreTrainedModel

from hemorrhage.models.checkpoint import load
from hemorrhage.models.formats import gguf_header, gguf_reader
from hemorrhage.models.formats.gguf_file import BlockLinear
from hemorrhage.models.formats.gguf_header import GgufError, Header
from hemorrhage.models.formats.gguf_reader import build, open_gguf
from hemorrhage.models.formats.storage import distinct, formatted_layers
from hemorrhage.tools.export import export
from tests.gguf_files import copy, split, tensors_of
from tests.models.formats.test_gguf_families_step import MODELS, base_of, logits, tried

READABLE = [
    kind for kind in GGML_QUANT_SIZES if kind.name not in ("Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64", "Q1_0")
]
"""Types that gguf dequantizes."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Llama's base and its file."""
    folder = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        export(base_of("llama", folder / "base", patch), folder / "model.gguf", "gguf")
    return folder


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a Llama whose rows are whole super-blocks."""
    folder = tmp_path_factory.mktemp("wide")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "wide", {**MODELS["llama"], "model_type": "llama", "hidden_size": 256})
        export(base_of("wide", folder / "base", patch), folder / "model.gguf", "gguf")
    return folder / "model.gguf"


def eager(model: PreTrainedModel) -> PreTrainedModel:
    model.set_attn_implementation("eager")
    return model


@pytest.mark.parametrize("name", tried(MODELS))
def test_a_file_alone_is_the_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_of(name, tmp_path / "base", monkeypatch)
    export(base, tmp_path / "model.gguf", "gguf")
    opened = open_gguf([tmp_path / "model.gguf"])
    expected = logits(eager(load(base)))
    found = logits(eager(build(opened)).eval())
    if name == "gpt_oss":
        # The model itself does not round the bounds of its rotary embedding, as llama.cpp does and as this one does.
        assert opened.config.rope_parameters["truncate"] is False
    else:
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert opened.label == "BF16"
    assert sum(opened.stored_bits.values()) == sum(8 * t.n_bytes for t in GGUFReader(tmp_path / "model.gguf").tensors)


def test_the_settings_of_a_file_are_those_of_its_base(written: Path) -> None:
    ours, theirs = open_gguf([written / "model.gguf"]).config, AutoConfig.from_pretrained(written / "base")
    names = ("hidden_size", "head_dim", "num_key_value_heads", "attention_bias", "mlp_bias", "rms_norm_eps")
    assert {name: getattr(ours, name) for name in names} == {name: getattr(theirs, name) for name in names}
    assert (ours.bos_token_id, ours.eos_token_id) == (1, 2)


@pytest.mark.parametrize("kind", READABLE, ids=lambda kind: kind.name)
def test_layers_of_every_type_are_what_gguf_dequantizes(kind: GGMLQuantizationType, wide: Path, tmp_path: Path) -> None:
    generator, tensors = np.random.default_rng(int(kind)), tensors_of(wide)
    width, size = GGML_QUANT_SIZES[kind]
    names = [name for name in tensors if name.endswith(("ffn_up.weight", "token_embd.weight"))]
    for name in names:
        rows = len(tensors[name][0])
        if kind.name in ("F32", "F16"):
            data = generator.normal(size=(rows, 256)).astype(np.float32 if kind.name == "F32" else np.float16)
        else:
            data = generator.integers(0, 60, (rows, 256 // width * size)).astype(np.uint8)
        tensors[name] = (data, kind)
    opened = open_gguf([copy(wide, tmp_path / "file.gguf", tensors=tensors)])
    model = build(opened)
    for name in names:
        module = "model.embed_tokens" if "embd" in name else f"model.layers.{name.split('.')[1]}.mlp.up_proj"
        layer: Any = model.get_submodule(module)
        value = layer.dense() if isinstance(layer, BlockLinear) else layer.weight.data
        assert torch.equal(value, torch.from_numpy(quants.dequantize(*tensors[name])).float()), name
    assert opened.types[kind.name.lower()] >= len(names) == 5


def test_files_of_a_model_are_read_as_one(written: Path, tmp_path: Path) -> None:
    files = split(written / "model.gguf", tmp_path, 3)
    whole, parts = open_gguf([written / "model.gguf"]), open_gguf(files)
    assert whole.stored_bits == parts.stored_bits
    assert torch.equal(logits(build(whole)), logits(build(parts)))
    with pytest.raises(GgufError, match=r"is part 1 of 3; its name says 0 of 3"):
        open_gguf([files[1], files[0], files[2]])
    with pytest.raises(GgufError, match=r"is one of 3 files of a model"):
        open_gguf(files[:1])
    twice = copy(files[1], tmp_path / "twice.gguf", tensors=tensors_of(files[0]))
    with pytest.raises(GgufError, match=r"as another file of the model has"):
        open_gguf([files[0], twice, files[2]])


def changed(file: Path, out: Path, rename: dict[str, str], **added: np.ndarray) -> Path:
    """A copy of a file with tensors under other names (no name: without it), and more of them."""
    tensors = {rename.get(name, name): value for name, value in tensors_of(file).items() if rename.get(name, name)}
    more = {name: (value.astype(np.float32), GGMLQuantizationType.F32) for name, value in added.items()}
    return copy(file, out, tensors=tensors | more)


def values(file: Path, name: str) -> np.ndarray:
    return np.asarray(quants.dequantize(*tensors_of(file)[name]))


def same_model(first: Path, second: Path) -> None:
    expected, found = (distinct(load_dense(file)) for file in (first, second))
    assert set(expected) == set(found)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def load_dense(file: Path) -> PreTrainedModel:
    from hemorrhage.models.formats.gguf_file import assemble

    opened = open_gguf([file])
    return assemble(opened.entries, opened.config, "float32", as_stored=False)


def test_experts_each_for_itself_are_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "stacked.gguf"
    export(base_of("mixtral", tmp_path / "base", monkeypatch), file, "gguf")
    names = [name for name in tensors_of(file) if name.endswith("_exps.weight")]
    apart = {
        name.replace("_exps", f".{number}"): expert
        for name in names
        for number, expert in enumerate(values(file, name))
    }
    same_model(file, changed(file, tmp_path / "apart.gguf", dict.fromkeys(names, ""), **apart))
    del apart["blk.1.ffn_up.2.weight"]
    with pytest.raises(GgufError, match=r"blk\.1\.ffn_up_exps\.weight have several types, or one is missing"):
        open_gguf([changed(file, tmp_path / "less.gguf", dict.fromkeys(names, ""), **apart)])


def test_gate_and_up_of_experts_as_one_are_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "apart.gguf"
    export(base_of("qwen2_moe", tmp_path / "base", monkeypatch), file, "gguf")
    names = [name for name in tensors_of(file) if re.search(r"(gate|up)_exps", name)]
    together = {
        name.replace("gate", "gate_up"): np.concatenate(
            [values(file, name), values(file, name.replace("gate", "up"))], axis=1
        )
        for name in names
        if "gate" in name
    }
    same_model(file, changed(file, tmp_path / "together.gguf", dict.fromkeys(names, ""), **together))


def test_keys_and_values_of_a_latent_state_apart_are_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, apart = tmp_path / "file.gguf", {}
    export(base_of("deepseek_v3", tmp_path / "base", monkeypatch), file, "gguf")
    names = [name for name in tensors_of(file) if "attn_kv_b" in name]
    for name in names:
        # llama.cpp's converter: four heads of 16 unrotated keys and 24 values, keys transposed.
        both = values(file, name).reshape(4, 40, 32)
        apart[name.replace("kv_b", "k_b")] = both[:, :16].transpose(0, 2, 1)
        apart[name.replace("kv_b", "v_b")] = both[:, 16:]
    split_up = changed(file, tmp_path / "apart.gguf", dict.fromkeys(names, ""), **apart)
    latent = {"key_length_mla": 24, "value_length_mla": 24, "key_length": 40, "value_length": 32, "head_count_kv": 1}
    said = {f"deepseek2.attention.{key}": value for key, value in latent.items()}
    same_model(file, copy(split_up, tmp_path / "mla.gguf", said))


def test_blocks_that_predict_further_tokens_are_left_out(written: Path, tmp_path: Path) -> None:
    tensors = tensors_of(written / "model.gguf")
    tensors |= {name.replace("blk.0", "blk.4"): value for name, value in tensors.items() if name.startswith("blk.0.")}
    said = {"llama.block_count": 5, "llama.nextn_predict_layers": 1}
    file = copy(written / "model.gguf", tmp_path / "longer.gguf", said, tensors)
    opened = open_gguf([file])
    assert opened.notes == ("The last blocks, 1 that predict further tokens, were left out.",)
    assert torch.equal(logits(build(opened)), logits(build(open_gguf([written / "model.gguf"]))))


@pytest.mark.parametrize(("low", "high", "factor"), [(1.0, 4.0, 8.0), (1.0, 4.0, 32.0), (2.0, 6.0, 4.0)])
def test_factors_of_rotary_embeddings_are_llama_3s(
    low: float, high: float, factor: float, written: Path, tmp_path: Path
) -> None:
    """The factors as llama.cpp's converter computes them, for heads of 48 and the original length that it has."""
    factors = []
    for place in range(24):
        length = 2 * np.pi * 1e4 ** (2 * place / 48)
        smooth = (8192 / length - low) / (high - low)
        factors.append(
            1.0 if length < 8192 / high else factor if length > 8192 / low else 1 / ((1 - smooth) / factor + smooth)
        )
    file = changed(written / "model.gguf", tmp_path / "f.gguf", {}, **{"rope_freqs.weight": np.array(factors)})
    rope = open_gguf([file]).config.rope_parameters
    names = ("low_freq_factor", "high_freq_factor", "factor", "original_max_position_embeddings")
    assert [rope[name] for name in names] == pytest.approx([low, high, factor, 8192], rel=1e-3)
    odd = changed(written / "model.gguf", tmp_path / "odd.gguf", {}, **{"rope_freqs.weight": np.arange(1.0, 25.0)})
    with pytest.raises(GgufError, match=r"rope_freqs\.weight\) are none of Llama 3's"):
        open_gguf([odd])


def test_factors_for_long_texts_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file.gguf"
    export(base_of("phi3", tmp_path / "base", monkeypatch), file, "gguf")
    factors = {f"rope_factors_{which}.weight": np.linspace(1, end, 10) for which, end in (("long", 9), ("short", 2))}
    said = {"phi3.rope.scaling.original_context_length": 128}
    long = copy(changed(file, tmp_path / "more.gguf", {}, **factors), tmp_path / "long.gguf", said)
    config = open_gguf([long]).config
    assert config.rope_parameters["rope_type"] == "longrope"
    assert config.rope_parameters["long_factor"] == pytest.approx(np.linspace(1, 9, 10).tolist())
    assert config.original_max_position_embeddings == 128
    assert config.rope_parameters["partial_rotary_factor"] == 0.5


def test_a_file_that_is_not_what_it_is_called_says_so(written: Path, tmp_path: Path) -> None:
    file = copy(written / "model.gguf", tmp_path / "named.gguf", {"general.file_type": 15})
    opened = open_gguf([file])
    assert opened.label == "Q4_K_M"
    assert opened.notes == ("The file is called Q4_K_M; 100% of the weights of its blocks are BF16.",)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": ({"general.architecture": "bert"}, "its architecture is bert; read are arcee, bloom"),
    "no head count": ({"llama.attention.head_count": None}, "has no llama.attention.head_count"),
    "too many heads": ({"llama.attention.head_count": 10**6}, "head_count is 1000000 for 160 numbers"),
    "no heads": ({"llama.attention.head_count": 0}, "head_count is 0"),
    "many blocks": ({"llama.block_count": 10**9}, "its block_count is 1000000000 for 67 tensors"),
    "one block less": ({"llama.block_count": 3}, "the GGUF file has blk.3."),
    "another width": ({"llama.embedding_length": 80}, "its embedding_length is 80"),
    "another inner width": ({"llama.feed_forward_length": 32}, "of the shape [224, 160]; config.json says [32, 160]"),
    "experts of nothing": ({"llama.expert_count": 10**6}, "its expert_count is 1000000 for 67 tensors"),
    "heads of another width": ({"llama.attention.key_length": 32}, "config.json says [128, 160]"),
    "no number": ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "layer_norm_rms_epsilon is nan"),
    "a word": ({"llama.rope.freq_base": "ten"}, "rope.freq_base is ten"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(what: str, written: Path, tmp_path: Path) -> None:
    metadata, reason = REFUSED[what]
    file = copy(written / "model.gguf", tmp_path / "file.gguf", metadata)
    with pytest.raises(GgufError, match=re.escape(reason)) as error:
        open_gguf([file])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rename", "reason"),
    [
        ({"blk.2.ffn_down.weight": ""}, "the GGUF file lacks blk.2.ffn_down.weight"),
        ({"blk.2.ffn_down.weight": "blk.2.ffn_other.weight"}, "lacks blk.2.ffn_down.weight"),
        ({"token_embd.weight": "embeddings"}, "it has no token_embd.weight"),
    ],
)
def test_missing_tensors_are_named(rename: dict[str, str], reason: str, written: Path, tmp_path: Path) -> None:
    with pytest.raises(GgufError, match=re.escape(reason)):
        open_gguf([changed(written / "model.gguf", tmp_path / "file.gguf", rename)])


def test_numbers_that_are_not_finite_are_named(written: Path, tmp_path: Path) -> None:
    tensors = tensors_of(written / "model.gguf")
    tensors["output_norm.weight"][0][3] = np.inf
    opened = open_gguf([copy(written / "model.gguf", tmp_path / "file.gguf", tensors=tensors)])
    with pytest.raises(GgufError, match=r"output_norm\.weight has numbers that are not finite"):
        build(opened)


def test_any_metadata_is_read_or_refused(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator, header = np.random.default_rng(5), gguf_header.read_header(written / "model.gguf")
    names = [name for name in header.metadata if name.startswith("llama.")]
    names += [f"llama.{name}" for name in ("expert_count", "rope.scaling.type", "attention.sliding_window")]
    names += [f"tokenizer.ggml.{name}_token_id" for name in ("bos", "padding")]
    odd: list[Any] = [0, 1, 3, 2**31, 2**32 - 1, 0.0, -1.0, float("inf"), "", "yarn", "x" * 90, True]
    odd += [[1, 2], ["a"], None]
    lines = []
    for _ in range(150):
        metadata = dict(header.metadata)
        for name in generator.choice(names, size=2, replace=False):
            metadata[str(name)] = odd[generator.integers(len(odd))]
        given = {name: value for name, value in metadata.items() if value is not None}
        monkeypatch.setattr(gguf_reader, "read_header", lambda _, given=given: Header(given, header.tensors))
        try:
            open_gguf([written / "model.gguf"])
        except GgufError as error:
            lines.append(str(error))
    assert not any("\n" in line for line in lines)
    assert len(lines) > 75


def test_the_model_keeps_what_the_file_has(written: Path) -> None:
    model = build(open_gguf([written / "model.gguf"]))
    layers = formatted_layers(model)
    assert len(layers) == 4 * 7
    assert {layer.ggml_type for layer in layers.values() if isinstance(layer, BlockLinear)} == {"bf16"}
    assert model.config.hemorrhage == {"form": "gguf_file", "type": "bf16", "published": True}
