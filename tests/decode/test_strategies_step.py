"""What holds of every strategy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from hemorrhage.decode.generation import generate, read, until_end
from hemorrhage.decode.strategies import (
    assisted,
    beam,
    contrastive_decoding,
    contrastive_search,
    diverse_beam,
    dola,
    fsd,
    fsd_d,
    greedy,
)
from tests.decode.literal import padded, sample, strategy, texts

EVERY = [greedy, beam, diverse_beam, contrastive_search, contrastive_decoding, dola, fsd, fsd_d, assisted]


@pytest.mark.parametrize("module", EVERY)
def test_a_batch_gives_the_texts_of_one_at_a_time(model: Any, prompts: list[list[int]], module: Any) -> None:
    settings = module.Settings()
    assert settings.deterministic
    together = texts(model, generate(module, model, *padded(prompts), 20, settings, 0))
    alone = [texts(model, generate(module, model, *padded([ids]), 20, settings, 0))[0] for ids in prompts]
    assert together == alone


@pytest.mark.parametrize("module", EVERY)
def test_a_batch_read_beforehand_changes_nothing_and_stays_usable(
    model: Any, prompts: list[list[int]], module: Any
) -> None:
    ids, mask = padded(prompts)
    reading = read(model, ids, mask)
    assert reading is not None
    fresh = generate(module, model, ids, mask, 10, module.Settings(), 0)
    for _ in range(2):
        assert torch.equal(generate(module, model, ids, mask, 10, module.Settings(), 0, reading), fresh)


@pytest.mark.parametrize("module", [greedy, contrastive_search, contrastive_decoding, dola, fsd, fsd_d, assisted])
def test_sequences_end_on_their_own(
    model: Any, prompts: list[list[int]], module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = texts(model, generate(module, model, *padded(prompts), 24, module.Settings(), 0))
    stop = free[0][5]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [stop, 2])
    monkeypatch.setattr(model.generation_config, "pad_token_id", 3)
    stopped = generate(module, model, *padded(prompts), 24, module.Settings(), 0).tolist()
    for row, whole in zip(stopped, free, strict=True):
        expected = until_end(whole, {stop, 2})
        assert row == expected + [3] * (len(row) - len(expected))


SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical", "eta", "epsilon", "mirostat")


SEARCHING = (
    "greedy",
    "beam",
    "diverse_beam",
    "contrastive_search",
    "contrastive_decoding",
    "dola",
    "fsd",
    "fsd_d",
    "assisted",
)


NAMES = (*SAMPLING, *SEARCHING)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("min_p", {"p_base": 1.0}),
        ("typical", {"tau": 1e-6}),
        ("eta", {"epsilon": 0.999}),
        ("epsilon", {"epsilon": 0.999}),
        ("mirostat", {"tau": 1e-3, "rate": 5.0}),
        ("top_p", {"p": 1e-6}),
        ("temperature", {"temperature": 0.01}),
    ],
)
def test_the_candidate_set_is_never_empty(
    model: Any, prompt: torch.Tensor, drawn_from: list[torch.Tensor], name: str, settings: dict[str, Any]
) -> None:
    sample(model, prompt, name, new_tokens=20, **settings)
    assert len(drawn_from) > 1
    for drawn in drawn_from:
        assert torch.isfinite(drawn).all()
        assert math.isclose(drawn.sum(), 1, abs_tol=1e-5)


@pytest.mark.parametrize("name", SAMPLING)
def test_draws_come_from_the_seed_and_leave_the_global_generator_alone(
    model: Any, prompt: torch.Tensor, name: str
) -> None:
    assert not strategy(name).Settings().deterministic
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = sample(model, prompt, name, new_tokens=8, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(sample(model, prompt, name, new_tokens=8, seed=3), first)
    others = [sample(model, prompt, name, new_tokens=8, seed=seed) for seed in (4, 5, 6)]
    assert any(not torch.equal(other, first) for other in others)


@pytest.mark.parametrize("name", NAMES)
def test_a_models_own_generation_defaults_count_for_nothing(
    model: Any, prompt: torch.Tensor, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = sample(model, prompt, name, new_tokens=12)
    for key, value in {
        "do_sample": True,
        "temperature": 3.0,
        "top_k": 2,
        "top_p": 0.1,
        "min_p": 0.9,
        "repetition_penalty": 1.8,
        "no_repeat_ngram_size": 2,
        "max_length": 9,
        "num_beams": 3,
        "suppress_tokens": [int(plain[0, 0])],
    }.items():
        monkeypatch.setattr(model.generation_config, key, value)
    assert torch.equal(sample(model, prompt, name, new_tokens=12), plain)
    assert model.generation_config.temperature == 3.0


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("temperature", {"temperature": 0}),
        ("temperature", {"temperature": float("nan")}),
        ("top_k", {"k": 0}),
        ("top_p", {"p": 1.5}),
        ("min_p", {"p_base": 0}),
        ("typical", {"tau": 1}),
        ("eta", {"epsilon": -1}),
        ("beam", {"beams": 1}),
        ("contrastive_search", {"alpha": 1.0}),
        ("fsd", {"n": 1}),
        ("fsd_d", {"n": 1}),
        ("fsd_d", {"alpha": 1}),
        ("fsd_d", {"beta": 1.1}),
        ("epsilon", {"epsilon": 1}),
        ("mirostat", {"tau": 0}),
        ("mirostat", {"rate": float("inf")}),
        ("diverse_beam", {"beams": 8, "groups": 3}),
        ("diverse_beam", {"penalty": -1}),
        ("contrastive_decoding", {"alpha": 0}),
        ("contrastive_decoding", {"layers": 2, "amateur": "somewhere"}),
        ("dola", {"layers": "middle"}),
        ("dola", {"layers": []}),
        ("dola", {"repetition_penalty": 0.9}),
        ("assisted", {"layers": 0}),
        ("greedy", {"temperature": 1.0}),
    ],
)
def test_impossible_settings_are_refused(name: str, settings: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        strategy(name).Settings(**settings)


@pytest.mark.parametrize(("name", "key"), [("top_k", "k"), ("contrastive_search", "k"), ("fsd", "k"), ("fsd_d", "k")])
def test_more_candidates_than_the_vocabulary_are_refused(model: Any, prompt: torch.Tensor, name: str, key: str) -> None:
    with pytest.raises(ValueError, match=f"{key}: 10000 is more than the vocabulary's"):
        sample(model, prompt, name, **{key: 10_000})


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("contrastive_decoding", {"layers": 5}, "layers: 5, between 1 and 4 wanted for a model of 5 blocks"),
        ("contrastive_decoding", {"amateur": "nowhere"}, "amateur: no checkpoint at nowhere"),
        ("dola", {"layers": [1, 5]}, "some of 0 to 4 wanted for a model of 5 blocks"),
        ("assisted", {"layers": 9}, "layers: 9, between 1 and 4 wanted"),
    ],
)
def test_a_model_that_is_not_deep_enough_is_refused_before_generation(
    model: Any, prompt: torch.Tensor, name: str, settings: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "generate", None)
    with pytest.raises(ValueError, match=message):
        sample(model, prompt, name, **settings)


@pytest.mark.parametrize("name", SEARCHING)
def test_every_search_refuses_what_does_not_fit_the_context(
    model: Any, prompt: torch.Tensor, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "generate", None)
    with pytest.raises(ValueError, match="exceed the model's context"):
        sample(model, prompt, name, new_tokens=10_000)


def test_labels_differ_by_settings() -> None:
    labels = [strategy(name).Settings().label for name in NAMES]
    assert len(set(labels)) == len(NAMES)
    assert strategy("temperature").Settings(temperature=0.7).label == "temperature 0.7"
