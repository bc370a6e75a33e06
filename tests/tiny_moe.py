"""Tiny trained models with experts: Mixtral, Qwen2-MoE, Qwen3-MoE and OLMoE, made in a few seconds each.

    python -m tests.tiny_moe models/tiny-mixtral mixtral

Two layers of width 64, four experts of which a token takes two, a tokenizer as that of tests.tiny_model. They learn the
calibration split of HumanEval for some steps: enough that a router's choices differ between tokens.
"""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from hemorrhage.data.texts import embedded
from tests.tiny_model import CONTEXT, SEED, VOCABULARY, save_tokenizer, train, train_tokenizer

EXPERTS = 4

OWN: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": EXPERTS, "intermediate_size": 48},
    "qwen2_moe": {
        "num_experts": EXPERTS,
        "intermediate_size": 96,
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 32,
    },
    "qwen3_moe": {
        "num_experts": EXPERTS,
        "intermediate_size": 96,
        "moe_intermediate_size": 48,
        "norm_topk_prob": True,
        "head_dim": 16,
    },
    "olmoe": {"num_experts": EXPERTS, "intermediate_size": 48},
}
"""Model type -> what its configuration has beside what all have."""


def build(out: Path, kind: str = "mixtral", steps: int = 40, experts: int = EXPERTS) -> Path:
    """Train a model of the type ``kind`` for ``steps`` steps and save it as a folder ``out``, which is returned."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer, tokens = _text()
    save_tokenizer(tokenizer, out)
    model = new_model(kind, experts)
    if steps:
        train(model, tokens, steps, batch=8, length=64)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2)
    model.save_pretrained(out)
    return out


def new_model(kind: str, experts: int = EXPERTS) -> PreTrainedModel:
    """The untrained model, the same at every call."""
    own = {
        name: experts if name in ("num_local_experts", "num_experts") else value for name, value in OWN[kind].items()
    }
    config = AutoConfig.for_model(
        kind,
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts_per_tok=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=1,
        eos_token_id=2,
        **own,
    )
    # transformers initialises from the global generator and takes no other.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


@cache
def _text() -> tuple[Tokenizer, torch.Tensor]:
    texts = embedded.documents("humaneval")["calibration"]
    tokenizer = train_tokenizer(texts)
    joined = embedded.JOIN.join(texts)
    return tokenizer, torch.tensor(tokenizer.encode(joined, add_special_tokens=False).ids)


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.tiny_moe", description="train a tiny model with experts")
    parser.add_argument("out", type=Path)
    parser.add_argument("kind", choices=sorted(OWN))
    arguments = parser.parse_args()
    build(arguments.out, arguments.kind)


if __name__ == "__main__":
    main()
