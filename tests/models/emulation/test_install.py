"""A loaded model rounds what its checkpoint says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hemorrhage.models.checkpoint import load
from hemorrhage.models.emulation import kv_cache
from hemorrhage.models.emulation.activations import InputRounding, quantization_args
from hemorrhage.models.emulation.install import install
from hemorrhage.models.emulation.kv_cache import TokenRounding
from hemorrhage.models.formats.config import QuantizationScheme
from hemorrhage.models.linears import linears_of


def rounding_layers(model: Any) -> dict[str, InputRounding]:
    return {
        name: hook
        for name, linear in model.named_modules()
        for hook in linear._forward_pre_hooks.values()
        if isinstance(hook, InputRounding)
    }


def group(targets: list[str], rounding: InputRounding) -> QuantizationScheme:
    return {"targets": targets, "input_activations": quantization_args(rounding)}


def test_every_linear_layer_rounds_but_those_that_are_ignored(tiny: Path) -> None:
    model: Any = load(tiny)
    skipped = "model.layers.1.mlp.up_proj"
    groups = {"all": group(["Linear"], InputRounding(8, "token"))}
    install(model, {"config_groups": groups, "ignore": ["lm_head", skipped]}, {}, {})
    expected = set(linears_of(model)) - {skipped}
    assert rounding_layers(model) == dict.fromkeys(expected, InputRounding(8, "token"))


def test_layers_that_a_group_names_round_as_it_says_with_their_own_scales(tiny: Path) -> None:
    model: Any = load(tiny)
    names = ["model.layers.0.mlp.up_proj", "model.layers.2.mlp.up_proj"]
    groups: dict[str, QuantizationScheme] = {
        "few": group(names, InputRounding(8, "static", 0.0)),
        "plain": {"targets": ["model.layers.3.mlp.up_proj"]},
    }
    scales = {f"{name}.input_scale": torch.tensor([place + 0.5]) for place, name in enumerate(names)}
    # Other programs write null where no layer is ignored.
    quantization: Any = {"config_groups": groups, "ignore": None}
    install(model, quantization, scales, {})
    assert rounding_layers(model) == {name: InputRounding(8, "static", place + 0.5) for place, name in enumerate(names)}


def test_a_cache_is_rounded_where_the_configuration_has_a_scheme(tiny: Path) -> None:
    model: Any = load(tiny)
    install(model, {}, {}, {})
    assert not kv_cache.has_rounding(model)
    install(model, {"kv_cache_scheme": kv_cache.quantization_args(TokenRounding(4, 8))}, {}, {})
    assert kv_cache.has_rounding(model)
    assert not rounding_layers(model)
