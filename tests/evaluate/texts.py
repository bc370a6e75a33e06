"""Texts that the tests evaluate on."""

from __future__ import annotations

from typing import Any

import torch

from hemorrhage.data.tasks.probes import make

WINDOW = 24


def stream_of(task: str, tokenizer: Any) -> torch.Tensor:
    """Tokens of a text: the prompts of a task."""
    text = ". ".join(item["prompt"] for item in make(task, 100, 0))
    return torch.tensor(tokenizer(text, add_special_tokens=False).input_ids, dtype=torch.int32)
