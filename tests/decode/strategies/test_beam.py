"""Beam search against all pairs of tokens."""

from __future__ import annotations

from typing import Any

import torch

from hemorrhage.decode.generation import generate
from hemorrhage.decode.strategies import (
    beam,
)


def test_beam_search_finds_the_most_probable_pair(model: Any, prompts: list[list[int]]) -> None:
    ids = torch.tensor([prompts[0]])
    with torch.no_grad():
        first = model(ids).logits[0, -1].log_softmax(-1)
        vocabulary = len(first)
        after = torch.cat([ids.expand(vocabulary, -1), torch.arange(vocabulary)[:, None]], dim=1)
        pairs = first[:, None] + model(after).logits[:, -1].log_softmax(-1)
    best = int(pairs.argmax())
    found = generate(beam, model, ids, torch.ones_like(ids), 2, beam.Settings(beams=64), 0)
    assert found.tolist() == [[best // vocabulary, best % vocabulary]]
