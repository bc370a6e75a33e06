"""Exported checkpoints: transformers alone reads them and computes what the variant does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from hemorrhage import cli
from hemorrhage.compress.__main__ import compress
from hemorrhage.models.checkpoint import load
from hemorrhage.models.formats.gguf_file import entries_of
from hemorrhage.models.formats.storage import distinct
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.runtime.command import NO, NOT_MEASURED, USAGE, YES, CommandError
from hemorrhage.tools.export import export, folder_of
from tests import families
from tests.whole import resealed

BLOCKS: dict[str, tuple[str, dict[str, Any], str, float]] = {
    "symmetric": ("rtn", {"bits": 4, "group_size": 32, "symmetric": True}, "Q4_0", 2**-11),
    "zero points": ("rtn", {"bits": 4, "group_size": 64}, "Q4_1", 2**-11),
    "bytes": ("rtn", {"bits": 8, "group_size": 64, "symmetric": True}, "Q8_0", 2**-11),
    "five": ("rtn", {"bits": 5, "group_size": 64}, "Q5_1", 2**-11),
    "three": ("rtn", {"bits": 3, "group_size": 64}, "Q4_0", 2**-11),
    "microscaling": ("rtn", {"format": "mxfp4"}, "MXFP4", 0.0),
    "half-quadratic": ("hqq", {"bits": 4, "group_size": 64}, "Q4_1", 2**-11),
    "embeddings": ("rtn", {"bits": 4, "group_size": 32, "embeddings": 8}, "Q4_1", 2**-11),
}
"""Methods, settings, and the GGUF type that has their grid."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "quantized": ("rtn", {"bits": 3, "group_size": 4}),
    "codes": ("codebook", {}),
    "affine": ("hqq", {"bits": 3, "group_size": 4}),
    "blocks": ("gguf_types", {"type": "q4_k"}),
    "pruned": ("magnitude", {"sparsity": 0.5}),
    "shallow": ("depth", {"removed": 0.4, "order": "random"}),
    "expanded": ("llama_pro", {"added": 0.4}),
    "low_rank": ("svd", {"removed": 0.3, "whiten": False}),
}

ALONE = """
import sys
sys.modules["hemorrhage"] = None  # an import of it fails
import torch
from transformers import AutoModelForCausalLM
tokens = torch.arange(3, 43)[None]
for folder, file, out in zip(*[iter(sys.argv[1:])] * 3):
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file or None, dtype=torch.float32)
    with torch.inference_mode():
        torch.save(model(tokens).logits, out)
"""


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of variants of the tiny model."""
    out = tmp_path_factory.mktemp("made")
    for name, (method, settings) in VARIANTS.items():
        spec = {"sweep": "s", "method": method, "settings": settings, "seed": 0}
        compress(out / name, name, tiny, None, None, [], spec)
        assert "failure" not in read_manifest(out / name), read_manifest(out / name)["failure"]
    return out


@pytest.fixture(scope="module")
def exported(made: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every variant as a dense folder and as a GGUF file, and the logits that transformers alone gives for them."""
    out = tmp_path_factory.mktemp("exported")
    work = []
    for name in VARIANTS:
        export(made / name, out / f"{name}-dense", "dense", tiny)
        export(made / name, out / f"{name}.gguf", "gguf" if name == "blocks" else "gguf-dense", tiny)
        work += [str(out / f"{name}-dense"), "", str(out / f"{name}-dense.pt")]
        work += [str(out), f"{name}.gguf", str(out / f"{name}-gguf.pt")]
    done = subprocess.run([sys.executable, "-c", ALONE, *work], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return out


def logits(folder: Path, base: Path) -> torch.Tensor:
    with torch.inference_mode():
        output: torch.Tensor = load(folder, base=base)(torch.arange(3, 43)[None]).logits
        return output


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("kind", ["dense", "gguf"])
def test_transformers_alone_computes_what_the_variant_does(
    made: Path, exported: Path, tiny: Path, name: str, kind: str
) -> None:
    ours, theirs = logits(made / name, tiny), torch.load(exported / f"{name}-{kind}.pt")
    # The base is float32, so that nothing is rounded; the product of low-rank factors sums in another order.
    assert (ours - theirs).abs().max() < 2e-5 * ours.abs().max()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_dense_folder_is_a_plain_checkpoint(made: Path, exported: Path, name: str) -> None:
    out = exported / f"{name}-dense"
    settings = json.loads((out / "config.json").read_text())
    assert not {"quantization_config", "hemorrhage"} & set(settings)
    assert settings["dtype"] == "float32"
    tensors = load_file(out / "model.safetensors")
    assert all(name.endswith(".weight") and value.dtype == torch.float32 for name, value in tensors.items())
    assert {file.name for file in out.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        *(file.name for file in (made / name).iterdir() if file.name.startswith(("tokenizer", "generation"))),
    }


def test_a_gguf_file_has_blocks_where_the_variant_has_them(exported: Path) -> None:
    def types(name: str) -> set[str]:
        return {tensor.tensor_type.name for tensor in GGUFReader(exported / name).tensors}

    assert types("blocks.gguf") == {"F32", "Q5_0"}
    assert types("quantized.gguf") == {"F32"}
    fields = GGUFReader(exported / "shallow.gguf").fields
    assert fields["llama.block_count"].contents() == 3
    assert fields["general.file_type"].contents() == 0
    assert len(fields["tokenizer.ggml.tokens"].contents()) == 512


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_base_of_half_precision_stays_so(tiny: Path, tmp_path: Path, dtype: str) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny, base)
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**settings, "dtype": dtype}))
    tensors = {name: value.to(getattr(torch, dtype)) for name, value in load_file(base / "model.safetensors").items()}
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    spec = {"sweep": "s", "method": "rtn", "settings": {"bits": 4, "group_size": 4}, "seed": 0}
    compress(tmp_path / "v", "v", base, None, None, [], spec)
    export(tmp_path / "v", tmp_path / "dense", "dense", base)
    export(tmp_path / "v", tmp_path / "v.gguf", "gguf-dense", base)
    assert {value.dtype for value in load_file(tmp_path / "dense" / "model.safetensors").values()} == {
        getattr(torch, dtype)
    }
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "v.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == {"bfloat16": "BF16", "float16": "F16"}[dtype]
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    ours, theirs = logits(tmp_path / "v", base), logits(tmp_path / "dense", base)
    # Half a unit in the last place of every weight.
    assert 0 < (ours - theirs).abs().max() < (0.05 if dtype == "bfloat16" else 0.01) * ours.abs().max()


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_integers_are_exported_in_the_type_that_has_their_grid(
    name: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bfloat16 scale is a float16 one; a minimum, or a scale of float32, is rounded to float16 once."""
    sizes = {**families.COMMON, "hidden_size": 64, "intermediate_size": 128, "head_dim": 32, "num_key_value_heads": 2}
    monkeypatch.setitem(families.FAMILIES, "llama", sizes)
    base = families.build(tmp_path / "base", "llama")
    if dtype == "float32":
        load(base).save_pretrained(base)
    method, settings, kind, share = BLOCKS[name]
    kinds_of_plain = {"bfloat16": "BF16", "float32": "F32"}
    spec = {"sweep": "s", "method": method, "settings": settings, "seed": 0}
    compress(tmp_path / "v", "v", base, None, None, [], spec)
    export(tmp_path / "v", tmp_path / "v.gguf", "gguf", base)
    kinds = {each.name: each.tensor_type.name for each in GGUFReader(tmp_path / "v.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == kinds["blk.3.ffn_down.weight"] == kind
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert kinds["token_embd.weight"] == ("Q8_0" if "embeddings" in settings else kinds_of_plain[dtype])
    dense = distinct(load(tmp_path / "v", base=base))
    differs = False
    for parameter, entry in entries_of(tmp_path / "v.gguf", AutoConfig.from_pretrained(base)).items():
        difference = (entry.values() - dense[parameter]).abs()
        # A minimum is at most a range of the group, thus twice its greatest number.
        is_rounded = any(part in parameter for part in ("proj", "embed", "head"))
        allowed = share * 2 * dense[parameter].abs().max() if is_rounded else 0.0
        assert (difference <= allowed).all(), parameter
        differs |= bool(difference.any())
    assert differs == (kind != "MXFP4" and (dtype == "float32" or kind.endswith("_1")))
    card = (tmp_path / "v.gguf.md").read_text()
    assert f"- Size: {(tmp_path / 'v.gguf').stat().st_size / 1e6:.1f} MB\n" in card
    assert f"- Size in the study: {read_manifest(tmp_path / 'v')['disk_bytes'] / 1e6:.1f} MB\n" in card


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("quantized", r"q_proj\.weight: groups of 4 weights are no multiple of GGUF's blocks of 32"),
        ("codes", r"q_proj\.weight: no GGUF type has the numbers of its form \(codebook\)"),
        ("low_rank", r"no GGUF type has the numbers of its form \(low_rank\)"),
    ],
)
def test_what_fits_no_gguf_type_is_refused_with_the_size_it_would_have(
    made: Path, exported: Path, tiny: Path, tmp_path: Path, name: str, why: str
) -> None:
    with pytest.raises(ValueError, match=why) as refused:
        export(made / name, tmp_path / "v.gguf", "gguf", tiny)
    assert not list(tmp_path.iterdir())
    match = re.search(r"; --as gguf-dense writes (\d+\.\d) MB in 32 bits$", str(refused.value))
    assert match is not None
    # The file has the tokenizer, too.
    assert 0 <= (exported / f"{name}.gguf").stat().st_size / 1e6 - float(match[1]) < 0.2


@pytest.mark.parametrize("name", ["quantized", "codes"])
def test_packed_is_the_checkpoint_without_this_benchs_files(made: Path, tiny: Path, tmp_path: Path, name: str) -> None:
    export(made / name, tmp_path / "out", "packed", tiny)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    own = {"manifest.json", "check.safetensors", "layers.json", "shared.json"}
    assert names == {file.name for file in (made / name).iterdir()} - own | {"README.md"}
    for file in names - {"config.json", "README.md", "model.safetensors"}:
        assert (tmp_path / "out" / file).read_bytes() == (made / name / file).read_bytes()
    # What the checkpoint shares with the base is there in full.
    stored = Weights(made / name, tiny)
    assert Weights(tmp_path / "out").digests() == stored.digests()
    assert "model.embed_tokens.weight" not in load_file(made / name / "model.safetensors")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "hemorrhage" not in settings
    method = {"quantized": "compressed-tensors", "codes": "bitsandbytes"}[name]
    assert settings["quantization_config"]["quant_method"] == method


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        ("pruned", "packed", "it has no packed weights; --as dense writes it"),
        ("low_rank", "packed", r"a form of this bench \(low_rank\) that no engine reads packed"),
        ("affine", "packed", r"a form of this bench \(affine\) that no engine reads packed"),
        ("blocks", "packed", r"a form of this bench \(gguf_file\) that no engine reads packed"),
    ],
)
def test_what_is_not_packed_is_refused(made: Path, tiny: Path, tmp_path: Path, name: str, kind: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        export(made / name, tmp_path / "out", kind, tiny)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"hemorrhage": {"form": "sliced"}}, r"its form \(sliced\) is another architecture"),
        ({"hemorrhage": {"narrow": ["model.layers.1.mlp.up_proj.weight"]}}, "1 weights .* are narrower than"),
        ({"hemorrhage": {"kv_cache": {"bits": 2}}}, "it rounds or evicts keys and values while it runs"),
        ({"quantization_config": {"kv_cache_scheme": {"num_bits": 8}}}, "it rounds or evicts keys and values"),
        (
            {"quantization_config": {"config_groups": {"group_0": {"input_activations": {"num_bits": 8}}}}},
            "it rounds the inputs of its layers while it runs",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["dense", "gguf"])
def test_what_no_plain_checkpoint_computes_is_refused(
    made: Path, tiny: Path, tmp_path: Path, change: dict[str, Any], why: str, kind: str
) -> None:
    shutil.copytree(made / "pruned", tmp_path / "v")
    settings = json.loads((tmp_path / "v" / "config.json").read_text())
    (tmp_path / "v" / "config.json").write_text(json.dumps({**settings, **change}))
    resealed(tmp_path / "v")
    with pytest.raises(ValueError, match=why):
        export(tmp_path / "v", tmp_path / "out", kind, tiny)
    assert [file.name for file in tmp_path.iterdir()] == ["v"]


def test_nothing_is_overwritten_and_a_failed_variant_has_nothing_to_export(
    made: Path, tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="exists already; nothing is overwritten"):
        export(made / "pruned", tmp_path, "dense", tiny)
    spec = {"sweep": "s", "method": "rtn", "settings": {"bits": 4, "group_size": 128}, "seed": 0}
    compress(tmp_path / "v", "v", tiny, None, None, [], spec)
    with pytest.raises(ValueError, match="the variant failed: RefusedError: group_size 128"):
        export(tmp_path / "v", tmp_path / "out", "dense", tiny)


def test_a_models_type_without_a_place_in_gguf_is_refused(made: Path, tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "pruned", tmp_path / "v")
    settings = json.loads((tmp_path / "v" / "config.json").read_text())
    (tmp_path / "v" / "config.json").write_text(json.dumps({**settings, "model_type": "helium"}))
    resealed(tmp_path / "v")
    with pytest.raises(ValueError, match="this model is a helium"):
        export(tmp_path / "v", tmp_path / "v.gguf", "gguf", tiny)


@pytest.mark.parametrize(
    ("name", "kind", "sentence"),
    [
        ("quantized", "dense", "Loads in vLLM 0.33 (CUDA), transformers 5.17 (CPU or GPU)."),
        ("blocks", "gguf", "Loads in llama.cpp b11549 (CPU or GPU)."),
        (
            "quantized",
            "packed",
            "Loads in vLLM 0.33 (CUDA, compute capability 7.5 or newer), transformers 5.17 (CPU or GPU).",
        ),
    ],
)
def test_what_loads_the_output_is_said_and_stands_in_its_card(
    made: Path, tiny: Path, tmp_path: Path, name: str, kind: str, sentence: str
) -> None:
    out = tmp_path / "out"
    assert export(made / name, out, kind, tiny).sentence == sentence
    card = out / "README.md" if out.is_dir() else out.with_name("out.md")
    assert sentence in card.read_text()
    assert f"library_name: {'gguf' if kind == 'gguf' else 'transformers'}\n" in card.read_text()


def test_what_nothing_would_load_is_written_only_when_it_is_asked_for(
    made: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hemorrhage.models.engines.TABLE", ())
    with pytest.raises(ValueError, match=r"nothing would load it \(vLLM 0.33: it has no kernel.*\); --theoretical"):
        export(made / "quantized", tmp_path / "out", "packed", tiny)
    assert not (tmp_path / "out").exists()
    assert not export(made / "quantized", tmp_path / "out", "packed", tiny, theoretical=True).loads
    assert "Nothing loads it: vLLM 0.33: it has no kernel" in (tmp_path / "out" / "README.md").read_text()


def test_the_command_names_what_is_wrong_in_one_line(
    made: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", str(made / "pruned"), str(tmp_path / "out"), "--base", str(tiny)]
    assert cli.main([*arguments, "--as", "packed"]) == NO
    assert re.search(r"pruned: it has no packed weights; --as dense writes it\n$", capsys.readouterr().err)
    assert cli.main(arguments) == YES
    assert capsys.readouterr().out.startswith("Loads in vLLM 0.33 (CUDA), transformers 5.17 (CPU")
    assert cli.main(arguments) == USAGE
    assert capsys.readouterr().err.endswith("out exists already; nothing is overwritten\n")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_name_is_looked_up_in_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copyfile(Path(__file__).parents[2] / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CommandError, match=r"nor a variant; params\.yaml has rtn-8, ") as unknown:
        folder_of("no_such_variant")
    assert unknown.value.status == USAGE
    with pytest.raises(CommandError, match=r"data/base/base/\w+ does not exist yet; run the compress step") as unmade:
        folder_of("base")
    assert unmade.value.status == NOT_MEASURED
