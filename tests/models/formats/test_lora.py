"""Layers with adapters against peft's merged weights, and what of peft is not read."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from hemorrhage.models.formats.lora import check, describe, group, layer_of, read, scale_of
from tests.models.formats.damage import damaged

CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 16}


def linear(bias: bool = True) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(24, 10, bias=bias)


def factors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "lora_A": torch.randn(4, 24, generator=generator),
        "lora_B": torch.randn(10, 4, generator=generator),
    }


@pytest.mark.parametrize(("rslora", "scale"), [(False, 4.0), (True, 8.0)])
def test_a_weight_is_the_bases_and_the_product_of_the_factors(rslora: bool, scale: float) -> None:
    base, pieces = linear(), factors()
    found = layer_of(base, pieces, CONFIG | {"use_rslora": rslora}, "a")
    for row in range(10):
        for column in range(24):
            product = sum(float(pieces["lora_B"][row, k]) * float(pieces["lora_A"][k, column]) for k in range(4))
            expected = float(base.weight.detach()[row, column]) + scale * product
            assert float(found.dense()[row, column]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    again = read(found.stored(), None)
    assert torch.equal(again.dense(), found.dense())
    x = torch.randn(2, 24, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(found(x), x @ found.dense().T + base.bias)
    assert found.stored()["lora_base"].data_ptr() == base.weight.data_ptr(), "the base's weight is not copied"


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}, {"alpha_pattern": {"0": 3}}])
def test_it_is_the_weight_that_peft_merges(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    base: Any = torch.nn.Sequential(torch.nn.Linear(24, 10))
    before = torch.nn.Linear(24, 10)
    before.load_state_dict(base[0].state_dict())
    model: Any = get_peft_model(base, LoraConfig(r=4, lora_alpha=16, target_modules=["0"], **options))
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data = torch.randn(value.shape) + ("magnitude" in name) * 3
    layer = model.base_model.model[0]
    pieces = {"lora_A": layer.lora_A["default"].weight.data, "lora_B": layer.lora_B["default"].weight.data}
    if options.get("use_dora"):
        pieces["lora_magnitude"] = layer.lora_magnitude_vector["default"].weight.data
    found = layer_of(before, pieces, CONFIG | options, "0")
    torch.testing.assert_close(found.dense(), model.merge_and_unload()[0].weight.data, rtol=1e-5, atol=1e-6)


def test_tensors_are_grouped_by_the_names_that_peft_gives_them() -> None:
    names = [
        "base_model.model.model.layers.0.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.q_proj.lora_B.weight",
        "base_model.model.model.layers.0.q_proj.lora_magnitude_vector",
        "base_model.model.model.layers.0.q_proj.base_layer.bias",
        "base_model.model.lm_head.weight",
        "base_model.model.model.norm.modules_to_save.default.weight",
    ]
    adapter = group(names)
    assert adapter.layers == {
        "model.layers.0.q_proj": {"lora_A": names[0], "lora_B": names[1], "lora_magnitude": names[2]}
    }
    assert adapter.replaced == {
        "model.layers.0.q_proj.bias": names[3],
        "lm_head.weight": names[4],
        "model.norm.weight": names[5],
    }
    with pytest.raises(ValueError, match=r"embed_tokens\.lora_embedding_A is not read; lora_A, lora_B"):
        group(["base_model.model.model.embed_tokens.lora_embedding_A"])
    with pytest.raises(ValueError, match=r"a\.lora_A\.weight and a\.lora_A\.default\.weight are one tensor twice"):
        group(["a.lora_A.weight", "a.lora_A.default.weight"])


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not read; LORA is"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is not read"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is not read"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4' alters the base's weights"),
        ({"alpha_pattern": {".*q_proj": 4}}, "alpha_pattern is read where its keys are names"),
        ({"rank_pattern": [1]}, "rank_pattern is read where its keys are names"),
    ],
)
def test_other_adapters_are_refused_by_the_setting(config: dict[str, Any], line: str) -> None:
    check(CONFIG)
    check(CONFIG | {"init_lora_weights": "gaussian", "rank_pattern": {"^model.a": 8}})
    with pytest.raises(ValueError, match=re.escape(line)):
        check(CONFIG | config)


def test_patterns_give_a_layer_its_own_rank_and_alpha() -> None:
    config = CONFIG | {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"^a.q_proj": 4}}
    assert scale_of(config, "a.q_proj", 8) == 0.5
    assert scale_of(config, "b.a.q_proj", 8) == 2.0
    assert scale_of(config, "a.k_proj", 4) == 4.0
    with pytest.raises(ValueError, match=r"lora_A has rank 4, and adapter_config.json says 8"):
        scale_of(config, "a.q_proj", 4)
    with pytest.raises(ValueError, match="lora_alpha is 'x', not a number"):
        scale_of(CONFIG | {"lora_alpha": "x"}, "a", 4)


@pytest.mark.parametrize(
    ("changes", "config", "line"),
    [
        ({"lora_A": torch.ones(4, 23)}, {}, "lora_A has the shape [4, 23], not [4, 24]"),
        ({"lora_B": torch.ones(10, 5)}, {}, "lora_B has the shape [10, 5], not [10, 4]"),
        ({"lora_B": torch.full((10, 4), float("nan"))}, {}, "lora_B has numbers that are not finite"),
        ({"lora_magnitude": torch.ones(10)}, {}, "use_dora of adapter_config.json and lora_magnitude_vector"),
        ({}, {"use_dora": True}, "use_dora of adapter_config.json and lora_magnitude_vector"),
        ({"lora_magnitude": torch.ones(9)}, {"use_dora": True}, "lora_magnitude_vector has the shape [9], not [10]"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(changes: dict[str, Tensor], config: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)):
        layer_of(linear(), factors() | changes, CONFIG | config, "a")


def test_damaged_tensors_are_refused_or_give_a_weight() -> None:
    refused = 0
    for tensors in damaged(factors(), 60):
        try:
            found = layer_of(linear(), tensors, CONFIG, "a")
        except ValueError:
            refused += 1
            continue
        assert found.dense().shape == (10, 24)
    assert refused > 30


def test_the_adapter_in_words() -> None:
    assert describe(CONFIG, 14) == "LoRA adapter, rank 4, 14 layers"
    assert describe(CONFIG | {"use_dora": True, "rank_pattern": {"a": 8}}, 2) == "DoRA adapter, several ranks, 2 layers"
    assert describe({"use_rslora": True}, 2) == "rsLoRA adapter, rank 8, 2 layers"
