"""A tiny trained Llama for machines that have none: 260,000 parameters, trained here in under a minute.

    python -m tests.tiny_model models/tiny
    python -m tests.tiny_model tests/tiny/plain
    python -m tests.tiny_model tests/tiny/scaled --steps 400 --scaled

The shape is that of the stories260K model: 5 layers of width 64, grouped queries, tied embeddings, a
vocabulary and a context of 512 tokens; texts start with a beginning-of-sequence token. It learns the
calibration split of the embedded prose, enough that compressing it does damage that can be measured.

The tests carry two (tests/tiny), so that they need no training and all machines see the same numbers. ``scaled``
learned for longer, and its features were given unequal scales, as those of large models have: the function is the
same, but methods that look at inputs know more than those that do not.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import trange
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from hemorrhage.data.texts import embedded

VOCABULARY = 512
CONTEXT = 512
SPECIAL = ["<unk>", "<s>", "</s>"]
SEED = 0


def build(out: Path, steps: int = 150) -> Path:
    """Train the model for ``steps`` steps and save it as a Hugging Face folder ``out``, which is returned."""
    texts = embedded.documents("prose")["calibration"]
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(texts)
    save_tokenizer(tokenizer, out)
    tokens = torch.tensor(tokenizer.encode(embedded.JOIN.join(texts), add_special_tokens=False).ids)
    model = new_model()
    train(model, tokens, steps)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2)
    model.save_pretrained(out)
    return out


def scale_features(model: LlamaForCausalLM, first: float = 0.3, last: float = 1.0) -> None:
    """Multiply each feature between norm and linear layer, and between up and down projection, by a log-normal number.

    What reads the feature is divided by it, so the function stays. The deviation of the logarithm goes from ``first``
    in the first block to ``last`` in the last.
    """
    generator = torch.Generator().manual_seed(SEED)
    layers = model.model.layers
    with torch.no_grad():
        for index, block in enumerate(layers):
            deviation = first + (last - first) * index / (len(layers) - 1)
            attention, mlp = block.self_attn, block.mlp
            for source, readers in (
                (block.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (block.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
                (mlp.up_proj, (mlp.down_proj,)),
            ):
                scale = (deviation * torch.randn(len(source.weight), generator=generator)).exp()
                source.weight *= scale.view(-1, *[1] * (source.weight.dim() - 1))
                for reader in readers:
                    reader.weight /= scale


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE of 512 tokens that puts ``<s>`` in front."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, out: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        **dict(zip(("unk_token", "bos_token", "eos_token"), SPECIAL, strict=True)),
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def new_model() -> LlamaForCausalLM:
    """The untrained model, the same at every call."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=1,
        eos_token_id=2,
    )
    # transformers initialises from the global generator and takes no other.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return LlamaForCausalLM(config)


def train(model: PreTrainedModel, tokens: torch.Tensor, steps: int, batch: int = 16, length: int = 128) -> None:
    """AdamW with a warm-up and a cosine decay on random windows, ``<s>`` in front of each."""
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 6e-3 * min((step + 1) / 30, 0.5 * (1 + math.cos(math.pi * step / steps)))
    )
    model.train()
    beginning = torch.ones((batch, 1), dtype=torch.long)
    for _ in trange(steps, desc="training the tiny model", mininterval=5):
        starts = torch.randint(len(tokens) - length + 1, (batch,), generator=generator)
        windows = torch.cat([beginning, torch.stack([tokens[at : at + length - 1] for at in starts])], dim=1)
        loss = model(input_ids=windows, labels=windows).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.tiny_model", description="train a tiny Llama")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--scaled", action="store_true", help="give its features unequal scales")
    arguments = parser.parse_args()
    build(arguments.out, arguments.steps)
    if arguments.scaled:
        model = LlamaForCausalLM.from_pretrained(arguments.out, dtype=torch.float32)
        scale_features(model)
        model.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
