"""Mirostat: its bound, and the surprise it aims at."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hemorrhage.models.checkpoint import load
from tests.decode.literal import check_draws, ranked, sample, strategy, surprise


def test_mirostat_is_the_literal_one(model: Any, prompt: torch.Tensor, drawn_from: list[torch.Tensor]) -> None:
    tau, rate = 1.5, 0.7
    generated = sample(model, prompt, "mirostat", new_tokens=40, tau=tau, rate=rate)[0].tolist()
    ids, bound = prompt[0].tolist(), 2 * tau
    for drawn, token in zip(drawn_from, generated, strict=True):
        with torch.no_grad():
            p = model(torch.tensor([ids]), use_cache=False).logits[0, -1].double().softmax(-1).tolist()
        surprise = [-math.log2(x) for x in p]
        # A rounding apart from the bound is not what is tested.
        near = {i for i, bits in enumerate(surprise) if abs(bits - bound) < 1e-3}
        found = set(drawn[0].nonzero().flatten().tolist())
        assert found - near == {i for i, bits in enumerate(surprise) if bits <= bound or p[i] == max(p)} - near
        bound -= rate * (surprise[token] - tau)
        ids.append(token)


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_the_mean_surprise_of_mirostat_approaches_its_target(tiny: Path, prompt: torch.Tensor, share: float) -> None:
    """A target between the surprise of greedy search and that of plain sampling, of a model that never ends a text."""
    model = load(tiny)
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    prompts = prompt.repeat(12, 1)
    least = surprise(model, prompt, sample(model, prompt, "greedy", new_tokens=120))
    natural = surprise(model, prompt, sample(model, prompts, "temperature", new_tokens=120, temperature=1.0))
    tau = least + share * (natural - least)
    found = surprise(model, prompt, sample(model, prompts, "mirostat", new_tokens=120, tau=tau))
    assert abs(found - tau) < 0.1 * (natural - least)


def test_mirostat_corrects_every_error_by_its_rate() -> None:
    # What the bound has lost is what the surprises exceeded the target by: the mean error falls like 1 / n.
    generator = torch.Generator().manual_seed(0)
    processor, ids = strategy("mirostat").Mirostat(tau=3.0, rate=0.5), torch.zeros(2, 1, dtype=torch.long)
    total = torch.zeros(2)
    steps = 1500
    for _ in range(steps):
        # 1 to 6 bits of entropy: the target lies between.
        scores = torch.randn(2, 1000, generator=generator) * (2.5 + 2.5 * torch.rand(2, 1, generator=generator))
        kept = processor(ids, scores).softmax(-1)
        token = torch.multinomial(kept, 1, generator=generator)
        total += -scores.log_softmax(-1).gather(1, token)[:, 0] / math.log(2)
        ids = torch.cat([ids, token], 1)[:, -1:]
    processor(ids, scores)
    lost = (2 * 3.0 - processor.bound[:, 0]) / 0.5
    assert torch.allclose(total - 3.0 * steps, lost, atol=0.5)
    assert (total / steps - 3.0).abs().max() < 0.02


@pytest.mark.parametrize("tau", [3.0, 0.8])
def test_the_first_token_is_drawn_below_twice_the_target(
    model: Any, prompt: torch.Tensor, drawn_from: list[torch.Tensor], tau: float
) -> None:
    def kept(p: list[float]) -> set[int]:
        return {token for token, share in enumerate(p) if -math.log2(share) <= 2 * tau} | {ranked(p)[0]}

    check_draws(model, prompt, drawn_from, "mirostat", kept, tau=tau)
