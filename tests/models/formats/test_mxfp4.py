"""MXFP4 experts, as transformers dequantizes gpt-oss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from hemorrhage.models.formats import reader
from hemorrhage.models.formats.mxfp4 import MicroscaledLinear, describe, read_published, read_stack, regroup
from tests.models.formats.damage import read_damaged

EXPERTS, WIDTH, HIDDEN = 3, 64, 96


def stack() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def octets(*shape: int, low: int = 0, high: int = 256) -> Tensor:
        return torch.randint(low, high, shape, generator=generator).to(torch.uint8)

    return {
        "gate_up_proj_blocks": octets(EXPERTS, 2 * WIDTH, HIDDEN // 32, 16),
        "gate_up_proj_scales": octets(EXPERTS, 2 * WIDTH, HIDDEN // 32, high=200),
        "gate_up_proj_bias": torch.randn(EXPERTS, 2 * WIDTH, generator=generator).bfloat16(),
        "down_proj_blocks": octets(EXPERTS, HIDDEN, WIDTH // 32, 16),
        "down_proj_scales": octets(EXPERTS, HIDDEN, WIDTH // 32, high=200),
        "down_proj_bias": torch.randn(EXPERTS, HIDDEN, generator=generator).bfloat16(),
    }


def test_each_expert_is_what_transformers_dequantizes_of_the_stack() -> None:
    stored = stack()
    layers = read_stack(stored, {}, "experts")
    assert len(layers) == 3 * EXPERTS
    # [experts, columns, rows], gate and up in turn.
    gate_up = convert_moe_packed_tensors(stored["gate_up_proj_blocks"], stored["gate_up_proj_scales"])
    down = convert_moe_packed_tensors(stored["down_proj_blocks"], stored["down_proj_scales"])
    for index in range(EXPERTS):
        for name, theirs, bias in (
            ("gate_proj", gate_up[index, :, 0::2], stored["gate_up_proj_bias"][index, 0::2]),
            ("up_proj", gate_up[index, :, 1::2], stored["gate_up_proj_bias"][index, 1::2]),
            ("down_proj", down[index], stored["down_proj_bias"][index]),
        ):
            layer = layers[f"experts.{index}.{name}"]
            assert torch.equal(layer.dense(), theirs.T.float()), name
            assert layer.bias is not None
            assert torch.equal(layer.bias.data, bias)


def test_a_checkpoint_of_ours_reads_back() -> None:
    layer = read_stack(stack(), {}, "experts")["experts.1.up_proj"]
    _, layers = reader.read({f"a.{suffix}": value for suffix, value in layer.stored().items()}, None)
    assert isinstance(layers["a"], MicroscaledLinear)
    assert torch.equal(layers["a"].dense(), layer.dense())


def test_tensors_of_experts_are_grouped_by_their_block() -> None:
    names = [f"model.layers.{index}.mlp.experts.{suffix}" for index in range(2) for suffix in stack()]
    others = ["model.layers.0.mlp.router.weight", "model.layers.2.mlp.experts.down_proj_bias"]
    assert regroup([*names, *others]) == {
        f"model.layers.{index}.mlp.experts": {
            suffix: f"model.layers.{index}.mlp.experts.{suffix}" for suffix in stack()
        }
        for index in range(2)
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"down_proj_scales": None}, "down_proj_scales is missing"),
        ({"down_proj_scales": torch.zeros(3, 96, 3, dtype=torch.uint8)}, "down_proj_blocks .* don't fit down_proj_sc"),
        ({"down_proj_bias": torch.zeros(3, 95)}, r"down_proj_bias of shape \[3, 95\] does not fit \[3, 96\] rows"),
        ({"down_proj_scales": torch.full((3, 96, 2), 255, dtype=torch.uint8)}, "a scale is not a number"),
        ({"down_proj_blocks": torch.zeros(3, 96, 2, 15, dtype=torch.uint8)}, "don't fit scales of shape"),
        ({"down_proj_blocks": torch.zeros(3, 96, 2, 16)}, "are not MXFP4"),
        ({"up_blocks": torch.zeros(1)}, "unexpected tensor up_blocks"),
        ({name: value[:2] for name, value in stack().items() if "down" in name}, "different numbers of experts"),
        ({name: value[:, :-1] for name, value in stack().items() if "gate" in name}, "127 rows: an odd number"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(changes: dict[str, Tensor | None], message: str) -> None:
    tensors = {name: value for name, value in {**stack(), **changes}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        read_stack(tensors, {}, "experts")


def test_layers_that_are_no_stack_are_refused() -> None:
    with pytest.raises(ValueError, match="down_proj_blocks of a layer that is no stack of experts"):
        read_published({"down_proj_blocks": torch.zeros(1)}, {}, "a")
    assert describe({}) == "MXFP4 experts, groups of 32"


def test_damaged_tensors_end_in_one_line_or_in_numbers() -> None:
    stacks, lines = read_damaged(lambda tensors: read_stack(tensors, {}, "experts"), stack(), 90)
    assert not any(layer.dense().isnan().any() for layers in stacks for layer in layers.values())
    assert len(lines) > 40
