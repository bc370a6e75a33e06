"""Packed checkpoints of families: transformers computes with them what it does with dense ones, or says why not."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, PreTrainedModel

from hemorrhage.compress.__main__ import compress
from hemorrhage.models.__main__ import prepare
from hemorrhage.models.architecture import architecture
from hemorrhage.models.checkpoint import load
from hemorrhage.models.packed_folder import check_family, packed_folder, packed_layers
from hemorrhage.models.refused import RefusedError
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.tools.export import export
from tests.families import build

TOKENS = torch.randint(3, 500, (2, 24), generator=torch.Generator().manual_seed(1))

SYMMETRIC = ("rtn", {"bits": 4, "group_size": 16, "symmetric": True})
ASYMMETRIC = ("rtn", {"bits": 4, "group_size": 16, "symmetric": False})
ROUNDED_INPUTS = ("activations", {"bits": 8, "activation_bits": 8})
FOUR_BY_EIGHT = ("activations", {"bits": 4, "group_size": 16, "activation_bits": 8})
CODES: tuple[str, dict[str, Any]] = ("codebook", {})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function of family, method and settings that gives a variant and its base."""
    root = tmp_path_factory.mktemp("variants")

    @functools.cache
    def base(family: str) -> Path:
        prepare({"source": "path", "path": str(build(root / family / "original", family))}, root / family / "base")
        return root / family / "base"

    def variant(family: str, method: str, settings: dict[str, Any]) -> tuple[Path, Path]:
        out = root / family / "-".join(map(str, [method, *settings.values()]))
        if not out.is_dir():
            spec = {"sweep": "s", "method": method, "settings": settings, "seed": 0}
            compress(out, "v", base(family), None, None, [], spec)
            assert "failure" not in read_manifest(out), read_manifest(out)["failure"]
        return out, base(family)

    return variant


def plain(folder: Path) -> PreTrainedModel:
    """The model of a folder as transformers alone loads it, in its own dtype."""
    model, about = architecture(AutoConfig.from_pretrained(folder)).from_pretrained(
        folder, dtype="auto", output_loading_info=True
    )
    assert not {what: names for what, names in about.items() if names}
    loaded: PreTrainedModel = model.eval()
    return loaded


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        values: torch.Tensor = model(TOKENS, use_cache=False).logits.float()
        return values


@pytest.mark.parametrize(
    "family",
    [
        "mixtral", "phimoe", "qwen2_moe", "olmoe", "deepseek_v2", "deepseek_v3", "glm4_moe", "ernie4_5_moe",
        "hunyuan_v1_moe", "qwen3_next", "gpt_neox", "llava", "gemma3", "qwen2_5_vl", "falcon_h1",
    ],
)  # fmt: skip
def test_transformers_computes_with_packed_weights_what_it_does_with_dense_ones(
    made: Any, tmp_path: Path, family: str
) -> None:
    variant, base = made(family, *SYMMETRIC)
    for layout in ("packed", "dense"):
        export(variant, tmp_path / layout, layout, base)
    packed = plain(tmp_path / "packed")
    assert torch.equal(logits(packed), logits(plain(tmp_path / "dense")))
    with (
        safe_open(base / "model.safetensors", "pt") as file,
        safe_open(tmp_path / "packed" / "model.safetensors", "pt") as ours,
    ):
        layers = {name.removesuffix(".weight") for name in file.keys()}  # noqa: SIM118 - not a dict
        names = set(ours.keys())
    assert {name.rpartition(".")[0] for name in names if name.endswith("weight_packed")} <= layers
    assert "hemorrhage" not in json.loads((tmp_path / "packed" / "config.json").read_text())


@pytest.mark.parametrize("family", ["llama", "llava", "gpt_neox"])
def test_zero_points_outside_of_experts_are_read(made: Any, tmp_path: Path, family: str) -> None:
    variant, base = made(family, *ASYMMETRIC)
    for layout in ("packed", "dense"):
        export(variant, tmp_path / layout, layout, base)
    assert torch.equal(logits(plain(tmp_path / "packed")), logits(plain(tmp_path / "dense")))


@pytest.mark.parametrize(
    ("family", "kind", "reason"),
    [
        ("mixtral", ASYMMETRIC, "it reads no zero points of experts"),
        ("deepseek_v3", ASYMMETRIC, "it reads no zero points of experts"),
        ("mixtral", ROUNDED_INPUTS, "it does not round what experts read"),
        ("qwen2_moe", FOUR_BY_EIGHT, "it does not round what experts read"),
        ("mixtral", CODES, "it reads no experts that bitsandbytes packed"),
        ("granitemoe", SYMMETRIC, "is a part of one tensor of all experts in a granitemoe"),
        ("gpt_oss", SYMMETRIC, "is a part of one tensor of all experts in a gpt_oss"),
        ("llama4_text", SYMMETRIC, "is a part of one tensor of all experts in a llama4_text"),
        ("gpt2", SYMMETRIC, r"c_attn is a Conv1D in a gpt2, and compressed-tensors packs linear layers"),
        ("falcon", SYMMETRIC, r"it has no place for transformer\.h\.0\.self_attention\.query_key_value\.weight_packed"),
        ("mamba2", SYMMETRIC, "a Mamba2Mixer reads a dense weight of its layers when it is made"),
    ],
)
def test_what_transformers_cannot_load_is_refused_before_anything_is_written(
    made: Any, tmp_path: Path, family: str, kind: tuple[str, dict[str, Any]], reason: str
) -> None:
    variant, base = made(family, *kind)
    otherwise = "" if kind in (ROUNDED_INPUTS, FOUR_BY_EIGHT) else "; --as dense writes it"
    with pytest.raises(RefusedError, match=f"transformers can't load it: .*{reason}.*{otherwise}$"):
        export(variant, tmp_path / "out", "packed", base, theoretical=True)
    assert not list(tmp_path.iterdir())


def test_routers_are_ignored_under_the_names_of_both_sides(made: Any) -> None:
    variant, base = made("phimoe", *SYMMETRIC)
    packed = packed_folder(variant, Weights(variant, base).names())
    assert {"model.layers.0.block_sparse_moe.gate", "model.layers.0.mlp.router"} <= set(packed.quantization["ignore"])


def test_the_grid_of_experts_is_the_one_that_transformers_takes_for_them(made: Any, tmp_path: Path) -> None:
    variant, base = made("mixtral", *SYMMETRIC)
    names = Weights(variant, base).names()
    layers = packed_layers(names)
    attention = [layer for layer in layers if "experts" not in layer]
    experts = [layer for layer in layers if "experts" in layer]
    config = json.loads((variant / "config.json").read_text())
    (group,) = config["quantization_config"]["config_groups"].values()

    def packed_with(**changes: Any) -> Any:
        groups = {"group_0": {**group, "targets": attention}, "group_1": {**group, "targets": experts}, **changes}
        quantization = {**config["quantization_config"], "config_groups": groups}
        (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
        return packed_folder(tmp_path, names).quantization["config_groups"]

    assert set(experts) <= set(packed_with()["group_0"]["targets"])
    eight = {**group, "weights": {**group["weights"], "num_bits": 8}}
    two = {
        "group_1": {**group, "targets": experts[:-1]},
        "group_2": {**eight, "targets": experts[-1:]},
    }
    with pytest.raises(RefusedError, match="it reads experts of one grid, and these have 2"):
        packed_with(**two)


def test_without_packed_layers_there_is_nothing_to_write(made: Any) -> None:
    variant, base = made("mixtral", "magnitude", {"sparsity": 0.5})
    with pytest.raises(RefusedError, match="it has no packed weights; --as dense writes it"):
        packed_folder(variant, Weights(variant, base).names())


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("llama", None),
        ("mixtral", None),
        ("gpt_neox", None),
        ("falcon", "it has no place for"),
        ("mamba", "dense weight"),
    ],
)
def test_what_is_said_of_a_family_is_what_becomes_of_its_packed_variant(
    family: str, reason: str | None, tmp_path: Path
) -> None:
    prepare({"source": "path", "path": str(build(tmp_path / "original", family))}, tmp_path / "base")
    spec = {"sweep": "s", "method": SYMMETRIC[0], "settings": SYMMETRIC[1], "seed": 0}
    compress(tmp_path / "v", "v", tmp_path / "base", None, None, [], spec)
    model = load(tmp_path / "base", "stored")
    if reason is None:
        check_family(tmp_path / "base", model)
        export(tmp_path / "v", tmp_path / "packed", "packed", tmp_path / "base")
        return
    with pytest.raises(RefusedError, match=reason) as said:
        check_family(tmp_path / "base", model)
    with pytest.raises(RefusedError) as done:
        export(tmp_path / "v", tmp_path / "packed", "packed", tmp_path / "base")
    assert str(said.value) == str(done.value)
