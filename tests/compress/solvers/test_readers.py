"""What reads a norm, beside the names that families give it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from hemorrhage.calibrate.statistics import shared_inputs
from hemorrhage.compress.solvers.readers import NormReaders, find_norm_readers
from hemorrhage.models.checkpoint import load
from hemorrhage.models.refused import RefusedError
from tests.families import build
from tests.layers import block_of

EXPERTS = range(4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("families")
    return functools.cache(lambda name: build(root / name, name))


def readers_of(folder: Path) -> list[NormReaders]:
    model = load(folder, "stored")
    return find_norm_readers(model, shared_inputs(model, torch.ones(1, 4)))


def test_norms_of_a_llama_are_read_by_attention_and_mlp(tiny: Path) -> None:
    norms = readers_of(tiny)
    assert len(norms) == 2 * 5
    where = "model.layers.3"
    attention, mlp = (readers for readers in norms if readers.norm.startswith(where))
    assert attention.norm == f"{where}.input_layernorm"
    assert attention.linears == tuple(f"{where}.self_attn.{name}_proj" for name in "qkv")
    assert mlp.norm == f"{where}.post_attention_layernorm"
    assert mlp.linears == (f"{where}.mlp.gate_proj", f"{where}.mlp.up_proj")
    assert attention.inputs == attention.linears[:1]
    assert attention.others == mlp.others == ()


@pytest.mark.parametrize(
    ("family", "projections", "others"),
    [
        ("mixtral", [f"block_sparse_moe.experts.{e}.w{w}" for e in EXPERTS for w in (1, 3)], ["block_sparse_moe.gate"]),
        (
            "qwen2_moe",
            [
                *(f"mlp.experts.{e}.{name}_proj" for e in EXPERTS for name in ("gate", "up")),
                "mlp.shared_expert.gate_proj",
                "mlp.shared_expert.up_proj",
            ],
            ["mlp.gate", "mlp.shared_expert_gate"],
        ),
        (
            "llama4_text",
            [
                *(f"feed_forward.experts.{e}.{name}_proj" for e in EXPERTS for name in ("gate", "up")),
                "feed_forward.shared_expert.gate_proj",
                "feed_forward.shared_expert.up_proj",
            ],
            ["feed_forward.router"],
        ),
        ("hunyuan_v1_moe", None, ["mlp.gate.wg"]),
        ("phimoe", None, ["block_sparse_moe.gate"]),
    ],
)
def test_experts_and_their_router_read_one_norm(
    folder: Any, family: str, projections: list[str] | None, others: list[str]
) -> None:
    where = "model.layers.1"
    mixture = next(readers for readers in readers_of(folder(family)) if readers.others and where in readers.norm)
    assert mixture.norm == f"{where}.post_attention_layernorm"
    assert sorted(mixture.others) == [f"{where}.{name}" for name in others]
    if projections is not None:
        assert sorted(mixture.linears) == sorted(f"{where}.{name}" for name in projections)


def test_inputs_that_are_multiplied_by_a_number_count(folder: Any) -> None:
    norm = next(readers for readers in readers_of(folder("falcon_h1")) if "layers.2.input" in readers.norm)
    where = "model.layers.2"
    linears = {f"{where}.mamba.in_proj", *(f"{where}.self_attn.{name}_proj" for name in "qkv")}
    assert set(norm.linears) == linears


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("olmo2", "no linear layer of model.layers.0 reads what a norm of its block makes"),
        ("gemma", r"the norm before model\.layers\.0\.self_attn\.q_proj takes no factors"),
        ("qwen3_next", r"the norm before model\.layers\.0\.linear_attn\.in_proj_qkvz takes no factors"),
        ("opt-projected", r"the norm before model\.decoder\.layers\.0\.fc1 takes no factors"),
    ],
)
def test_what_takes_no_factors_is_refused(folder: Any, family: str, reason: str) -> None:
    with pytest.raises(RefusedError, match=reason):
        readers_of(folder(family))


@pytest.mark.parametrize("family", ["olmo3", "exaone4", "olmo"])
def test_norms_after_the_layers_or_without_weights_leave_nothing_to_smooth(folder: Any, family: str) -> None:
    with pytest.raises(RefusedError, match=r"no linear layer of model.layers.0 reads what a norm of its block makes"):
        readers_of(folder(family))


def test_a_single_block_without_norms_before_its_layers_is_refused(tiny: Path) -> None:
    model = load(tiny, "stored")
    block = block_of(model, 2)
    for name in ("input_layernorm", "post_attention_layernorm"):
        norm = block.get_submodule(name)
        block.set_submodule(name, torch.nn.RMSNorm(len(norm.weight), elementwise_affine=False))
    with pytest.raises(RefusedError, match=r"no linear layer of model.layers.2 reads what a norm of its block makes"):
        find_norm_readers(model, shared_inputs(model, torch.ones(1, 4)))


def test_the_search_leaves_the_model_as_it_was(folder: Any) -> None:
    model = load(folder("mixtral"), "stored")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    find_norm_readers(model, shared_inputs(model, torch.ones(1, 4)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in block_of(model, 0).modules())
