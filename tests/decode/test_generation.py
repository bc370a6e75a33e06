"""One way into generate."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from hemorrhage.decode import generation
from hemorrhage.decode.generation import Decoding, continuation, generate, masks_padding
from hemorrhage.decode.strategies import (
    beam,
    contrastive_decoding,
    contrastive_search,
    diverse_beam,
    dola,
    fsd,
    typical,
)
from hemorrhage.models.checkpoint import load
from hemorrhage.models.refused import RefusedError
from tests.families import build, new_model


@pytest.mark.parametrize(
    ("ids", "mask", "new_tokens", "message"),
    [
        ([[5, 6]], [[1, 1]], 0, "at least 1"),
        ([[5, 6], [5, 6]], [[1, 1], [0, 0]], 4, "row 1 is empty"),
        ([[]], [[]], 4, "not empty"),
        ([[5, 6]], [[1]], 4, "the same"),
        ([[5, 6]], [[1, 0]], 4, "on the left"),
        ([[5, 6]], [[1, 1]], 10_000, "exceed the model's context"),
    ],
)
def test_bad_prompts_are_refused_before_generation(
    model: Any, ids: Any, mask: Any, new_tokens: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "generate", None)
    with pytest.raises(ValueError, match=message):
        continuation(
            model,
            torch.tensor(ids, dtype=torch.long),
            torch.tensor(mask, dtype=torch.long),
            new_tokens,
            Decoding(),
            seed=0,
        )


@pytest.mark.parametrize("family", ["llama", "jamba", "falcon_h1"])
def test_candidates_repeat_all_that_a_cache_holds(family: str, tmp_path: Path) -> None:
    model = load(build(tmp_path / family, family))
    ids = torch.randint(3, 500, (2, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    reading = generation.read(model, ids, mask)
    assert reading is not None
    decoding = beam.parameters(model, beam.Settings(beams=4), generation.Prompts(mask, 4))
    uncached = dataclasses.replace(decoding, options={**decoding.options, "use_cache": False})
    plain = continuation(model, ids, mask, 4, uncached, seed=0)
    assert torch.equal(
        generation.generate(beam, model, ids, mask, 4, beam.Settings(beams=4), 0, reading=reading), plain
    )
    for strategy in (diverse_beam, contrastive_search):
        together = generation.generate(strategy, model, ids, mask, 4, strategy.Settings(), 0, reading=reading)
        for row, tokens, places in zip(together, ids, mask, strict=True):
            alone = tokens[places != 0][None]
            found = generation.generate(strategy, model, alone, torch.ones_like(alone), 4, strategy.Settings(), 0)[0]
            assert torch.equal(row[: len(found)], found)


@pytest.mark.parametrize("family", ["mamba2", "recurrent_gemma"])
def test_searches_of_ours_are_refused_where_a_cache_does_not_hold_all(family: str) -> None:
    model = new_model(family).float()
    assert not generation.takes_cache(model)
    mask = torch.ones(1, 4, dtype=torch.long)
    assert generation.read(model, mask, mask) is None
    for strategy in (diverse_beam, contrastive_search, fsd, dola, contrastive_decoding):
        with pytest.raises(RefusedError, match=r"the search goes on from caches, and .* takes none"):
            strategy.parameters(model, strategy.Settings(), generation.Prompts(mask, 4))
    assert generation.takes_cache(new_model("gpt2").float())


@pytest.mark.parametrize(("family", "masks"), [("llama", True), ("jamba", True), ("recurrent_gemma", False)])
def test_prompts_go_one_by_one_where_padding_would_be_read(family: str, masks: bool) -> None:
    model = new_model(family).float()
    assert masks_padding(model) == masks
    prompts = [torch.arange(3, 12), torch.arange(40, 44)]
    ids = torch.stack([torch.nn.functional.pad(each, (9 - len(each), 0)) for each in prompts])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(each), (9 - len(each), 0)) for each in prompts])
    settings = typical.Settings(tau=1e-6)
    together = generate(typical, model, ids, mask, 4, settings, 0)
    for row, prompt in zip(together.tolist(), prompts, strict=True):
        alone = generate(typical, model, prompt[None], torch.ones_like(prompt[None]), 4, settings, 0)
        assert row == alone[0].tolist()
