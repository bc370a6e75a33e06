"""A tokenizer's folder of made-up text, and the settings of a model that learns it in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hemorrhage.train import tokenizer
from hemorrhage.train.spec import Spec

WORDS = ("the", "model", "reads", "a", "token", "and", "writes", "another", "while", "losses", "fall", "slowly", "down")

VOCABULARY = 288


def documents(count: int, seed: int = 0) -> list[str]:
    """Sentences in which a word says much of the next."""
    draw = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        at = int(draw.integers(len(WORDS)))
        words = []
        for _ in range(60):
            words.append(WORDS[at])
            at = (at + int(draw.choice([1, 2], p=[0.9, 0.1]))) % len(WORDS)
        texts.append(" ".join(words) + ".")
    return texts


def text(folder: Path) -> Path:
    """Write a training text as its step does."""
    rows = [
        {"part": part, "split": split, "name": f"{part} {split} {number}", "text": document}
        for part, seed in (("docs", 1), ("code", 2))
        for split, count in (("train", 60), ("heldout", 12))
        for number, document in enumerate(documents(count, seed + count))
    ]
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(folder / "documents.parquet", index=False)
    return folder


def tokens(folder: Path) -> Path:
    """Make the tokenizer's folder of that text."""
    tokenizer.prepare(text(folder / "text"), {"vocabulary": VOCABULARY}, folder / "tokenizer")
    return folder / "tokenizer"


def spec(**changes: Any) -> Spec:
    """Make the settings of a training of 24 steps."""
    made: Spec = {
        "architecture": {
            "model_type": "llama",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "tie_word_embeddings": True,
        },
        "corpus": {"docs": 0.5, "code": 0.5},
        "data": {"leak": None, "noise": 0.0},
        "tokens": 24 * 4 * 32,
        "length": 32,
        "batch": 4,
        "optimizer": {
            "learning_rate": 1e-2,
            "betas": [0.9, 0.95],
            "epsilon": 1e-8,
            "weight_decay": 0.1,
            "clip": 1.0,
        },
        "schedule": {"shape": "cosine", "warmup": 0.1, "decay": 0.2, "final": 0.1},
        "dtype": "float32",
        "store": "float32",
        "seed": 0,
        "keep": [],
    }
    return {**made, **changes}  # type: ignore[typeddict-item]
