"""The residual stream found by trying: norms of each kind, writers, readers, stages; and what does not turn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from hemorrhage.compress.solvers.basis import alike, find_stream, is_multiple, kept_shift, norm_of, stream_basis
from hemorrhage.models.experts import unfuse
from hemorrhage.models.refused import RefusedError
from tests.families import new_model
from tests.layers import block_of

WIDTH = 80


def model_of(name: str) -> PreTrainedModel:
    model = new_model(name)
    unfuse(model)
    return model


class Offset(nn.Module):
    """Gemma's norm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.square().mean(-1, keepdim=True).rsqrt() * (1 + self.weight)


def drawn(module: Any) -> Any:
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(0.5 + torch.rand_like(value))
    return module


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (drawn(nn.RMSNorm(WIDTH)), (False, 0)),
        (nn.RMSNorm(WIDTH, elementwise_affine=False), (False, 0)),
        (drawn(nn.LayerNorm(WIDTH)), (True, 0)),
        (nn.LayerNorm(WIDTH, elementwise_affine=False), (True, 0)),
        (Offset(), (False, 1)),
        (nn.Identity(), None),
        (nn.Tanh(), None),
        (nn.Softmax(-1), None),
        (drawn(nn.GroupNorm(4, WIDTH)), None),
        (drawn(nn.RMSNorm(WIDTH // 2)), None),
    ],
)
def test_kinds_of_norms(module: Any, expected: tuple[bool, float] | None) -> None:
    norm = norm_of(module, WIDTH)
    assert (norm and (norm.subtracts_mean, norm.offset)) == expected


def test_a_norm_made_plain_gives_what_it_gave_over_its_gain() -> None:
    x = torch.randn(5, WIDTH)
    for module in (drawn(nn.RMSNorm(WIDTH)), drawn(nn.LayerNorm(WIDTH)), Offset()):
        before, norm = module(x), norm_of(module, WIDTH)
        assert norm is not None
        gain = norm.gain
        norm.make_plain(kept_shift(norm))
        torch.testing.assert_close(module(x) * gain, before, rtol=1e-4, atol=1e-5)


def test_a_bias_on_silent_features_can_not_stay() -> None:
    module = drawn(nn.LayerNorm(WIDTH))
    with torch.no_grad():
        module.weight[3] = 0
    norm = norm_of(module, WIDTH)
    assert norm is not None
    with pytest.raises(RefusedError, match="features that its weight silences"):
        kept_shift(norm)


@pytest.mark.parametrize("keeps_mean", [False, True])
@pytest.mark.parametrize("width", [48, 80, 86, 128])
def test_a_basis_is_orthogonal_and_keeps_the_mean_where_it_has_to(width: int, keeps_mean: bool) -> None:
    basis = stream_basis(width, keeps_mean, 4).rotate(torch.eye(width))
    torch.testing.assert_close(basis @ basis.T, torch.eye(width), rtol=0, atol=1e-5)
    ones = torch.ones(width)
    assert torch.allclose(basis @ ones, ones, atol=1e-4) == keeps_mean


def test_sequential_blocks_have_two_stages() -> None:
    stream = find_stream(model_of("llama"))
    first, second = stream.stages[0]
    assert first.reads == {"input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")}
    assert (first.writers, second.writers) == (("self_attn.o_proj",), ("mlp.down_proj",))
    assert second.reads == {"post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj")}
    assert (stream.last, stream.readers["lm_head"], stream.keeps_mean) == ("model.norm", "model.norm", False)
    assert "model.embed_tokens" in stream.writers


def test_parallel_blocks_have_one_stage() -> None:
    (stage,) = find_stream(model_of("phi")).stages[2]
    assert set(stage.reads["input_layernorm"]) == {*(f"self_attn.{x}_proj" for x in "qkv"), "mlp.fc1"}
    assert set(stage.writers) == {"self_attn.dense", "mlp.fc2"}
    (stage,) = find_stream(model_of("gpt_neox")).stages[0]
    assert set(stage.reads) == {"input_layernorm", "post_attention_layernorm"}


def test_factors_of_what_is_written_are_measured() -> None:
    stream = find_stream(model_of("granite"))
    assert stream.stages[0][0].gives == pytest.approx({"self_attn.o_proj": 0.3}, rel=1e-3)


def test_routers_and_all_experts_read_and_write() -> None:
    stream = find_stream(model_of("deepseek_v3"))
    _, second = stream.stages[1]
    experts = {f"mlp.experts.{index}" for index in range(4)} | {"mlp.shared_experts"}
    expected = {"mlp.gate", *(f"{expert}.{name}" for expert in experts for name in ("gate_proj", "up_proj"))}
    assert set(second.reads["post_attention_layernorm"]) == expected
    assert set(second.writers) == {f"{expert}.down_proj" for expert in experts}
    assert stream.stages[0][1].writers == ("mlp.down_proj",)


def test_learned_positions_write() -> None:
    stream = find_stream(model_of("gpt2"))
    assert {"transformer.wte", "transformer.wpe"} <= set(stream.writers)
    assert stream.keeps_mean
    assert stream.is_centred


def test_state_space_blocks() -> None:
    (stage,) = find_stream(model_of("mamba")).stages[0]
    assert stage.reads == {"norm": ("mixer.in_proj",)}
    assert stage.writers == ("mixer.out_proj",)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("olmo2", "post_attention_layernorm normalises what self_attn.o_proj writes"),
        ("gemma2", "post_attention_layernorm normalises what self_attn.o_proj writes"),
        ("opt-projected", "does more to it than add what linear layers write"),
        ("bloom", "numbers that no layer holds are added to the embeddings, or a norm follows them"),
        ("llava", "what it makes of images is written to the stream"),
    ],
)
def test_what_does_not_turn_is_refused_in_one_line(name: str, why: str) -> None:
    with pytest.raises(RefusedError, match=why) as refused:
        find_stream(model_of(name))
    assert "\n" not in str(refused.value)


def test_a_block_that_reads_features_in_place_is_refused() -> None:
    """A gate for each feature, which a basis would mix, changes no reader and no writer."""
    model = model_of("llama")
    norm = block_of(model, 1).post_attention_layernorm
    norm.register_forward_hook(lambda _, __, output: output * output.abs().clamp(max=0.1))
    block = block_of(model, 1)
    block.extra = nn.Identity()
    with pytest.raises(RefusedError, match="does not compute in a turned stream what it did"):
        find_stream(model)


def test_groups_and_multiples() -> None:
    names = ["experts.0.up", "experts.1.up", "experts.0.down", "gate"]
    assert alike(names) == [["experts.0.up", "experts.1.up"], ["experts.0.down"], ["gate"]]
    vector = torch.randn(8)
    assert is_multiple(torch.outer(torch.tensor([2.0, 0, -1]), vector), vector)
    assert not is_multiple(torch.zeros(3, 8), vector)
    assert not is_multiple(torch.randn(3, 8), vector)
    assert not is_multiple(None, vector)
