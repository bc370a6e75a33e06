"""What a method refuses of a model before any work, on small models of families as they lie on disk."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from hemorrhage.compress.catalogue import method_of
from hemorrhage.compress.method import Settings
from hemorrhage.compress.suitability import check_config, check_model
from hemorrhage.models.architecture import text_entries
from hemorrhage.models.checkpoint import load
from hemorrhage.models.refused import RefusedError
from hemorrhage.models.sources.files import architecture
from hemorrhage.study.registry import METHODS
from tests.families import FAMILIES, build, config_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("families")
    return functools.cache(lambda name: build(root / name, name))


def settings(method: str, **values: Any) -> Settings:
    return method_of(method).settings.model_validate(values)


REFUSED = [
    ("zamba2", settings("magnitude", sparsity=0.5), "share weights"),
    ("gemma", settings("awq", bits=8, group_size="channel"), "awq moves factors into the norm before a layer"),
    ("olmo2", settings("activations", smooth=0.5), "there is nothing to smooth"),
    ("bloom", settings("kv_cache", bits=8, group_size=4), "BloomAttention takes its cache as layer_past"),
    ("jamba", settings("duplication", added=0.25), "the blocks of a jamba depend on their place"),
    ("minicpm3", settings("depth", removed=0.25, order="influence"), "would have another residual_scale"),
    ("olmo2", settings("duplication", added=0.25, scale=0.5), "normalises what its blocks write"),
    ("opt-projected", settings("llama_pro", added=0.25), "does not only add to the residual stream"),
    (
        "mixtral",
        settings("width", removed=0.25, importance="magnitude", protect_first=0, protect_last=0),
        "takes channels out of MLPs, and .* has experts",
    ),
    ("olmo2", settings("slicegpt", removed=0.2), "post_attention_layernorm normalises what self_attn.o_proj writes"),
    ("bloom", settings("rotation", transform="quarot", bits=4, group_size=16), "numbers that no layer holds are added"),
    ("gpt2", settings("rtn", bits=4, group_size=32), "group_size 32 does not divide the 80 inputs of transformer.h.0"),
    ("gpt2", settings("wanda", sparsity="3:7"), "sparsity 3:7 does not divide the 80 inputs of transformer.h.0"),
]


@pytest.mark.parametrize(("family", "chosen", "reason"), REFUSED, ids=[f"{name}-{s.curve}" for name, s, _ in REFUSED])
def test_a_model_that_a_method_does_not_go_with_is_refused_and_left_as_it_is(
    folder: Any, family: str, chosen: Settings, reason: str
) -> None:
    model = load(folder(family), "stored")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = model.config.to_dict()
    with pytest.raises(RefusedError, match=reason):
        check_model(chosen, model)
    assert unchanged(model, before)
    assert model.config.to_dict() == config


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "mamba", "llava"])
def test_what_goes_with_a_model_leaves_it_as_it_is(folder: Any, family: str) -> None:
    model = load(folder(family), "stored")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for chosen in (
        settings("rtn", bits=4, group_size=16),
        settings("awq", bits=4, group_size="channel"),
        settings("duplication", added=0.25, scale=0.5),
        settings("depth", removed=0.25, order="deepest"),
    ):
        assert check_model(chosen, model) is None
    assert unchanged(model, before)


def test_what_depends_on_the_blocks_that_calibration_picks_is_said(folder: Any) -> None:
    chosen = settings("depth", removed=0.25, order="influence")
    assert "depends on which blocks go: the blocks of a jamba" in (check_model(chosen, load(folder("jamba"))) or "")


def test_config_json_alone_refuses(folder: Any) -> None:
    with pytest.raises(RefusedError, match="this model has no attention"):
        check_config(settings("kv_cache", bits=8), folder("mamba"))
    with pytest.raises(RefusedError, match=r"removed 0\.1 of 4"):
        check_config(settings("depth", removed=0.1, order="deepest"), folder("llama"))
    check_config(settings("depth", removed=0.25, order="deepest"), folder("llama"))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_refuses_what_the_step_refuses_by_config_json(family: str, tmp_path: Path) -> None:
    config_of(family).save_pretrained(tmp_path)
    of_plan, of_step = architecture(tmp_path), text_entries(tmp_path)
    # Zamba2's heads are of twice the width that its config.json says.
    if family != "zamba2":
        for name in METHODS:
            for chosen in method_of(name).examples:
                assert (chosen.check(of_plan) is None) == (chosen.check(of_step) is None), name
    assert of_plan["model_type"] == of_step["model_type"]
    assert of_plan["num_hidden_layers"] == of_step["num_hidden_layers"]


def unchanged(model: PreTrainedModel, before: dict[str, torch.Tensor]) -> bool:
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], value) for name, value in before.items())
