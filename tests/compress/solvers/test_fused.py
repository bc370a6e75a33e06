"""Groups of layers that engines compute as one: of a dense block, of a parallel one, of a mixture of experts."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hemorrhage.calibrate.statistics import shared_inputs
from hemorrhage.compress.solvers.fused import fused_groups
from hemorrhage.models.experts import unfuse

SIZES = {
    "vocab_size": 50, "hidden_size": 80, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def groups_of(model_type: str, **settings: object) -> list[list[str]]:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **SIZES, **settings)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    unfuse(model)
    with torch.no_grad():
        return fused_groups(model, shared_inputs(model, torch.arange(8)[None]))


def short(groups: list[list[str]], block: int) -> list[set[str]]:
    prefix = f"model.layers.{block}."
    return [{name.removeprefix(prefix) for name in names} for names in groups if names[0].startswith(prefix)]


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_a_dense_block_has_query_key_and_value_and_gate_and_up(model_type: str) -> None:
    assert short(groups_of(model_type), 1) == [
        {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
        {"self_attn.o_proj"},
        {"mlp.gate_proj", "mlp.up_proj"},
        {"mlp.down_proj"},
    ]


def test_attention_and_mlp_of_a_parallel_block_are_no_group() -> None:
    """In Phi both read the same normalised states."""
    assert short(groups_of("phi"), 0) == [
        {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
        {"mlp.fc1"},
        {"self_attn.dense"},
        {"mlp.fc2"},
    ]


def test_all_experts_of_a_block_are_one_group_and_the_shared_expert_is_another() -> None:
    groups = groups_of(
        "qwen2_moe", num_experts=3, num_experts_per_tok=2, moe_intermediate_size=48, shared_expert_intermediate_size=64
    )
    names = ("gate_proj", "up_proj", "down_proj")
    in_block = short(groups, 1)
    assert {f"mlp.experts.{index}.{name}" for index in range(3) for name in names} in in_block
    assert {"mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"} in in_block
    assert {"mlp.shared_expert.down_proj"} in in_block
    assert len(in_block) == 5
    mixtral = short(groups_of("mixtral", num_local_experts=2), 0)
    of_experts = {f"block_sparse_moe.experts.{index}.{name}" for index in range(2) for name in ("w1", "w2", "w3")}
    assert mixtral[-1] == of_experts
