"""Groups of quantization_config, and what else a checkpoint of compressed-tensors says."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.utils.match import match_targets
from torch import Tensor

from hemorrhage.models.formats.compressed import CompressedLinear
from hemorrhage.models.formats.compressed_tensors import (
    Configuration,
    cache_scale,
    describe,
    read_published,
    rounds_cache,
    scheme_of_layer,
)
from hemorrhage.models.formats.config import QuantizationScheme
from hemorrhage.models.formats.modelopt import ModelOptLinear
from hemorrhage.models.formats.settings import parse
from tests.compressed import FORMATS, columns_of, compressed, qparams, quantization_config
from tests.models.formats.damage import read_damaged

LAYER = "model.layers.0.mlp.up_proj"


def weight_of(name: str, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(20, columns_of(name), generator=torch.Generator().manual_seed(1)).to(dtype)


def scheme_for(layer: str, quantization: Mapping[str, Any]) -> QuantizationScheme:
    return scheme_of_layer(layer, parse(Configuration, quantization))


def group(*targets: str, bits: int = 8, **changes: object) -> dict[str, Any]:
    return {"targets": list(targets), "weights": {"num_bits": bits, "strategy": "channel"}, **changes}


@pytest.mark.parametrize("name", FORMATS)
def test_a_layer_is_what_the_library_decompresses_and_says_so_in_its_scheme(name: str) -> None:
    stored, scheme, theirs = compressed(name, weight_of(name))
    layer = read_published(stored, quantization_config(scheme), LAYER)
    assert torch.equal(layer.dense(), theirs.float())
    assert layer.scheme is not None
    assert layer.scheme["format"] == FORMATS[name][0]
    assert layer.scheme["weights"]["scale_dtype"]
    # The library takes the group as it is.
    QuantizationArgs(**layer.scheme["weights"])


def test_names_go_before_expressions_and_these_before_classes() -> None:
    entries = {
        "classes": group("Linear", bits=2),
        "expressions": group("re:.*mlp.*", bits=3),
        "names": group(LAYER, bits=4),
        "more": group(r"re:.*layers\.1.*", bits=5),
    }
    quantization = {"config_groups": entries, "ignore": ["lm_head"]}

    targets = [target for entry in entries.values() for target in entry["targets"]]
    for layer in (
        LAYER,
        "model.layers.0.mlp.down_proj",
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    ):
        theirs = match_targets(layer, torch.nn.Linear(1, 1), targets)[0]
        expected = next(entry["weights"] for entry in entries.values() if theirs in entry["targets"])
        assert scheme_for(layer, quantization)["weights"]["num_bits"] == expected["num_bits"], layer


def test_a_layer_that_no_group_targets_is_named_where_there_are_several() -> None:
    one = {"config_groups": {"only": group("re:mlp.*")}}
    assert scheme_for(LAYER, one)["weights"]["num_bits"] == 8
    several = {"config_groups": {"a": group("re:mlp.*"), "b": group("Embedding")}}
    with pytest.raises(ValueError, match="no group of quantization_config targets this quantized layer"):
        scheme_for(LAYER, several)
    with pytest.raises(ValueError, match="config_groups of quantization_config is empty"):
        scheme_for(LAYER, {})


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a": group("re:(")}, r"target re:\( of config_groups is no regular expression"),
        ({"a": 5}, "quantization_config's config_groups.a.Group: Input should be"),
        ({"a": {"targets": ["Linear"]}}, "group a of config_groups does not quantize weights"),
        ({"W99": ["Linear"]}, "group W99 of config_groups is not among the presets"),
        (
            {"a": group("Linear", weights={"num_bits": "8"})},
            "weights.num_bits: Input should be a valid integer",
        ),
        ({"a": group("Linear", weights={"type": "posit"})}, "weights.type: Input should be 'int' or 'float'"),
        ([group("Linear")], "quantization_config's config_groups: Input should be a valid dictionary"),
    ],
)
def test_groups_that_can_not_be_read_are_one_clear_line(entries: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scheme_for(LAYER, {"config_groups": entries})


def test_a_preset_stands_for_its_scheme() -> None:
    scheme = scheme_for(LAYER, {"config_groups": {"FP8_DYNAMIC": ["Linear"]}})
    assert scheme["weights"]["type"] == "float"
    assert scheme["weights"]["strategy"] == "channel"
    inputs = scheme["input_activations"]
    assert inputs is not None
    assert (inputs["strategy"], inputs["dynamic"]) == ("token", True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "marlin-24"}, "format marlin-24 is not read"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "format sparse-24-bitmask is not read"),
        ({"format": "strange"}, "format strange is unknown; known are dense, "),
        (
            {"transform_config": {"config_groups": {"R3": {"apply": [{"location": "q_attn"}]}}}},
            "transform R3 at q_attn rotates while the model computes",
        ),
    ],
)
def test_what_is_not_read_is_refused_by_its_name(changes: dict[str, Any], message: str) -> None:
    stored, scheme, _ = compressed("pack group", weight_of("pack group"))
    with pytest.raises(ValueError, match=message):
        read_published(stored, quantization_config(scheme, **changes), LAYER)
    with pytest.raises(ValueError, match=message):
        describe(changes)


def test_a_rotation_that_is_in_the_weights_is_no_matter() -> None:
    rotated = {"transform_config": {"config_groups": {"R1": {"apply": [{"location": "weight_input"}]}}}}
    assert describe(rotated) == "compressed-tensors dense"


@pytest.mark.parametrize("name", ["pack asymmetric", "int channel", "int tensor", "float tensor", "float channel"])
def test_a_weight_that_is_not_compressed_yet_is_rounded_as_the_library_rounds_it(name: str) -> None:
    _, scheme, _ = compressed(name, weight_of(name))
    assert scheme.weights is not None
    weight = weight_of(name)
    grid = qparams(weight, scheme.weights)
    theirs = fake_quantize(weight, grid["weight_scale"], grid["weight_zero_point"], scheme.weights)
    frozen = quantization_config(scheme, format="dense", quantization_status="frozen")
    layer = read_published({"weight": weight, **grid}, frozen, LAYER)
    assert torch.equal(layer.dense(), theirs.float())
    with pytest.raises(ValueError, match=r"weight of type torch\.bfloat16 has a scale, and quantization_status"):
        read_published({"weight": weight, **grid}, quantization_config(scheme), LAYER)


def test_the_name_of_a_global_scale_says_whether_it_divides() -> None:
    stored, scheme, theirs = compressed("nvfp4", weight_of("nvfp4"))
    divides = read_published(stored, quantization_config(scheme), LAYER)
    assert isinstance(divides, CompressedLinear)
    total = stored["weight_global_scale"]
    named = {"weight": stored["weight_packed"], "weight_scale": stored["weight_scale"], "weight_scale_2": 1 / total}
    multiplies = read_published(named, quantization_config(scheme), LAYER)
    assert isinstance(multiplies, ModelOptLinear)
    torch.testing.assert_close(multiplies.dense(), theirs.float(), rtol=2**-8, atol=0)


def test_zero_points_of_symmetric_grids_are_left_out() -> None:
    stored, scheme, theirs = compressed("int channel", weight_of("int channel"))
    zeros = {"weight_zero_point": torch.zeros(20, 1, dtype=torch.int8), "input_zero_point": torch.zeros(1)}
    layer = read_published({**stored, **zeros}, quantization_config(scheme), LAYER)
    assert set(layer.stored()) == {"weight", "weight_scale"}
    assert torch.equal(layer.dense(), theirs.float())


def test_the_label_says_what_was_done() -> None:
    _, scheme, _ = compressed("pack asymmetric", weight_of("pack asymmetric"))
    words = quantization_config(scheme, kv_cache_scheme={"num_bits": 8, "type": "float"})
    words["config_groups"]["group_0"]["weights"]["actorder"] = "group"
    words["config_groups"]["W8A8"] = ["Linear"]
    assert describe(words) == (
        "compressed-tensors pack-quantized: 4-bit integers in groups of 16, asymmetric, act-order + "
        "8-bit integers per channel, inputs 8-bit integers per token; keys and values in 8-bit float"
    )
    assert describe({"kv_cache_scheme": None, "format": "dense"}) == "compressed-tensors dense"


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_tensors_end_in_one_line_or_in_numbers(name: str) -> None:
    stored, scheme, _ = compressed(name, weight_of(name))
    quantization = quantization_config(scheme)
    tensors = {**stored, "input_scale": torch.ones(1)}
    layers, lines = read_damaged(lambda damaged: read_published(damaged, quantization, LAYER), tensors, 75)
    for layer in layers:
        dense = layer.dense()
        assert dense.shape == (layer.out_features, layer.in_features)
        assert not dense.isnan().any()
    assert len(lines) > 25


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ({"num_bits": 8, "type": "float", "strategy": "tensor"}, "attention.k_scale"),
        ({"num_bits": 8, "type": "float", "strategy": "attn_head"}, None),
        ({"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": True}, None),
        ({"num_bits": 8, "type": "int", "strategy": "tensor"}, None),
        (None, None),
    ],
)
def test_a_cache_of_one_fixed_scale_of_fp8_has_it_under_its_name(scheme: Any, expected: str | None) -> None:
    assert cache_scale({"kv_cache_scheme": scheme}, "attention", "k") == expected
    assert rounds_cache({"kv_cache_scheme": scheme}) == (scheme is not None)


def changed(content: Any, path: tuple[str | int, ...], value: object) -> Any:
    """``content`` with another ``value`` at ``path``."""
    if not path:
        return value
    copied = copy.copy(content)
    copied[path[0]] = changed(content[path[0]], path[1:], value)
    return copied


def paths(content: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from paths(value, (*path, key))


@pytest.mark.parametrize("name", ["pack asymmetric", "float block"])
def test_a_configuration_of_wrong_types_ends_in_one_line_or_in_numbers(name: str) -> None:
    stored, scheme, _ = compressed(name, weight_of(name))
    quantization = quantization_config(
        scheme,
        kv_cache_scheme={"num_bits": 8, "type": "float"},
        sparsity_config={"format": "dense"},
        transform_config={"config_groups": {"R1": {"apply": [{"location": "weight_input"}]}}},
    )
    refused = []
    for path in paths(quantization):
        for value in (None, 5, "x", [], {}, True, -1, 0, 1e300, "re:(", [1], ["a"], {"a": 1}, 10**12):
            try:
                assert describe(wrong := changed(quantization, path, value))
                assert read_published(stored, wrong, LAYER).dense().isfinite().all()
            except ValueError as error:
                refused.append(str(error))
    assert len(refused) > 100
    assert not [line for line in refused if "\n" in line]
