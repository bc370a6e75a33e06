"""Names and shapes on disk: through the bench's view and back they are the family's, bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, GraniteMoeConfig, LlamaConfig

from hemorrhage.models import layout
from hemorrhage.models.weights import Weights


class Sizes(TypedDict):
    """Sizes that every family names alike."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int


SMALL: Sizes = {
    "hidden_size": 80,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
}

CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**SMALL, num_key_value_heads=1),
    "gpt2": GPT2Config(n_embd=80, n_layer=2, n_head=4, vocab_size=50),
    "gpt_neox": GPTNeoXConfig(**SMALL),
    "granitemoe": GraniteMoeConfig(**SMALL, num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2),
}


@pytest.fixture(params=CONFIGS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(CONFIGS[request.param], dtype=torch.bfloat16).save_pretrained(tmp_path)
    return tmp_path


def test_view_and_back_are_the_files(folder: Path) -> None:
    stored, bench = load_file(folder / "model.safetensors"), Weights(folder)
    made = layout.to_family(folder, bench.names())
    assert made.keys() == stored.keys()
    for name, joined in made.items():
        assert torch.equal(joined.join([bench.tensor(source) for source in joined.sources]), stored[name]), name


def test_linear_layers_are_outputs_by_inputs(folder: Path) -> None:
    bench = Weights(folder)
    shapes = {name: tuple(bench.shape(name)) for name in bench.names()}
    if "transformer.h.0.attn.c_attn.weight" in shapes:
        assert shapes["transformer.h.0.attn.c_attn.weight"] == (240, 80)
    experts = [shape for name, shape in shapes.items() if ".experts." in name]
    assert set(experts) <= {(48, 80), (80, 48)}
    assert all(len(shape) <= 2 for name, shape in shapes.items() if name.endswith("proj.weight"))


def test_only_what_is_stored_otherwise_differs() -> None:
    assert not layout.differs({"model_type": "llama"})
    assert layout.differs({"model_type": "gpt2"})
    assert layout.differs({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}})
