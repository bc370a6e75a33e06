"""What a head does is observed: factors, a cap, a bias, as the model's own forward pass has them."""

from __future__ import annotations

from typing import Any, TypedDict

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GraniteConfig, LlamaConfig, PhiConfig

from hemorrhage.models.head import Head, head_of, stored_name


class Sizes(TypedDict):
    """Sizes that every family names alike."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    pad_token_id: int


SMALL: Sizes = {
    "hidden_size": 80,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 50,
    "pad_token_id": 0,
}


def new(config: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(**SMALL), (1.0, 1.0, None)),
        (GraniteConfig(**SMALL, logits_scaling=8.0), (1.0, 1 / 8.0, None)),
        (Gemma2Config(**SMALL, head_dim=20, final_logit_softcapping=30.0), (1.0, 1.0, 30.0)),
        (PhiConfig(**SMALL), (1.0, 1.0, None)),
    ],
    ids=["llama", "granite", "gemma2", "phi"],
)
def test_its_logits_are_the_models_own(config: Any, expected: tuple[float, float, float | None]) -> None:
    model = new(config)
    head = head_of(model)
    assert (head.input_scale, head.output_scale, head.softcap) == expected
    tokens = torch.arange(7)[None]
    with torch.no_grad():
        states = model.get_decoder()(tokens, use_cache=False).last_hidden_state
        assert torch.allclose(head.logits(states), model(tokens, use_cache=False).logits, rtol=1e-5, atol=1e-6)
    assert (head.bias is not None) == (config.model_type == "phi")


def test_a_tile_of_products_becomes_logits() -> None:
    weight, bias, hidden = torch.randn(11, 5), torch.randn(11), torch.randn(3, 5)
    head = Head(weight, bias, input_scale=2.0, output_scale=0.5, softcap=3.0)
    expected = 3.0 * torch.tanh(0.5 * (2.0 * hidden @ weight.T + bias) / 3.0)
    assert torch.allclose(head.logits(hidden), expected)
    tile = head.scale_input(hidden) @ weight[4:9].T
    assert torch.allclose(head.finish(tile, slice(4, 9)), expected[:, 4:9])
    assert (len(head), head.width) == (11, 5)


def test_its_name_is_that_of_its_module() -> None:
    assert stored_name(new(LlamaConfig(**SMALL))) == "lm_head"


@pytest.mark.parametrize("scales", [{}, {"softcap": 3.0, "output_scale": 0.5}])
def test_the_slope_of_a_head_is_its_derivative(scales: dict[str, float]) -> None:
    products = torch.linspace(-9, 9, 31, dtype=torch.float64, requires_grad=True)
    kind = Head(torch.eye(31), None, **scales)
    cap = kind.softcap or 1e9
    made = cap * (kind.output_scale * products / cap).tanh()
    made.sum().backward()
    torch.testing.assert_close(kind.slope(made.detach()).expand(31), products.grad, rtol=1e-6, atol=1e-6)


def test_heads_are_equal_where_all_of_their_numbers_are() -> None:
    weight = torch.randn(20000, 3).bfloat16()
    head = Head(weight, output_scale=0.5)
    assert head.equals(Head(weight.float(), output_scale=0.5)), "a number is the same in a wider dtype"
    changed = weight.clone()
    changed[-1, -1] += 1
    others = [
        Head(weight),
        Head(weight, output_scale=0.5, softcap=30.0),
        Head(weight, torch.zeros(20000), output_scale=0.5),
        Head(weight[:, :2], output_scale=0.5),
        Head(changed, output_scale=0.5),
    ]
    assert not any(head.equals(other) or other.equals(head) for other in others)
    assert [each.is_linear for each in (head, *others)] == [True, True, False, False, True, True]
