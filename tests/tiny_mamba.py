"""A tiny trained Mamba, the state-space model of the tests: 170,000 parameters, trained here in seconds.

4 blocks of width 64, tied embeddings, a tokenizer as that of tests/tiny_model.py. Mamba has no context
length, no heads and no MLP, so it shows where the bench takes a model for a Llama.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GenerationConfig, MambaConfig, MambaForCausalLM

from hemorrhage.data.texts import embedded
from tests.tiny_model import SEED, VOCABULARY, save_tokenizer, train, train_tokenizer


def build(out: Path, steps: int = 40) -> Path:
    """Train the model for ``steps`` steps and save it as a Hugging Face folder ``out``, which is returned."""
    texts = embedded.documents("code")["calibration"]
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(texts)
    save_tokenizer(tokenizer, out)
    tokens = torch.tensor(tokenizer.encode(embedded.JOIN.join(texts), add_special_tokens=False).ids)
    model = new_model()
    train(model, tokens, steps, batch=8, length=24)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2)
    model.save_pretrained(out)
    return out


def new_model() -> MambaForCausalLM:
    """The untrained model, the same at every call."""
    config = MambaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        state_size=8,
        num_hidden_layers=4,
        expand=2,
        conv_kernel=4,
        time_step_rank=4,
        initializer_range=0.05,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    # transformers initialises from the global generator and takes no other.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return MambaForCausalLM(config)
