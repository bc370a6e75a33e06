"""The sampling strategies: which tokens they draw among, from which seed, and what they refuse."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from hemorrhage.decode.generation import continuation, generate
from hemorrhage.models.checkpoint import load, load_tokenizer

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
EVERY = (*SAMPLING, *SEARCHING)


def strategy(name: str) -> Any:
    return importlib.import_module(f"hemorrhage.decode.strategies.{name}")


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    return load(tiny)


@pytest.fixture(scope="module")
def prompt(tiny: Path) -> torch.Tensor:
    return load_tokenizer(tiny)("Once upon a time, there was", return_tensors="pt")["input_ids"]


@pytest.fixture
def drawn_from(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The distributions that tokens were drawn from, in order."""
    seen: list[torch.Tensor] = []
    multinomial = torch.multinomial

    def watched(probabilities: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.append(probabilities.clone())
        return multinomial(probabilities, **options)

    monkeypatch.setattr(torch, "multinomial", watched)
    return seen


def sample(model: Any, prompt: torch.Tensor, name: str, new_tokens: int = 1, seed: int = 7, **settings: Any) -> Any:
    module = strategy(name)
    return generate(module, model, prompt, torch.ones_like(prompt), new_tokens, module.Settings(**settings), seed)


def kept(p: list[float], name: str, value: float) -> set[int]:
    """The tokens that a truncation keeps, written down from its definition."""
    entropy = -sum(x * math.log(x) for x in p if x > 0)
    order = sorted(range(len(p)), key=lambda token: -p[token])
    if name == "top_k":
        return set(order[: int(value)])
    if name == "min_p":
        return {token for token in order if p[token] >= value * max(p)}
    if name == "eta":
        cutoff = min(value, math.sqrt(value) * math.exp(-entropy))
        return {token for token in order if p[token] >= cutoff} | {order[0]}
    if name == "epsilon":
        return {token for token in order if p[token] >= value} | {order[0]}
    if name == "mirostat":
        return {token for token in order if -math.log2(p[token]) <= 2 * value} | {order[0]}
    if name == "typical":
        order = sorted(range(len(p)), key=lambda token: abs(-math.log(p[token]) - entropy))
    mass, found = 0.0, set()
    for token in order:
        found.add(token)
        mass += p[token]
        if mass >= value:
            break
    return found


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("top_k", "k", 50),
        ("top_k", "k", 3),
        ("top_p", "p", 0.95),
        ("top_p", "p", 0.5),
        ("min_p", "p_base", 0.1),
        ("typical", "tau", 0.95),
        ("typical", "tau", 0.2),
        ("eta", "epsilon", 6e-4),
        ("eta", "epsilon", 0.1),
        ("epsilon", "epsilon", 3e-4),
        ("epsilon", "epsilon", 0.05),
        ("mirostat", "tau", 3.0),
        ("mirostat", "tau", 0.8),
    ],
)
def test_tokens_are_drawn_among_those_the_definition_keeps(
    model: Any, prompt: torch.Tensor, drawn_from: list[torch.Tensor], name: str, key: str, value: float
) -> None:
    sample(model, prompt, name, **{key: value})
    with torch.no_grad():
        p = model(prompt).logits[0, -1].double().softmax(-1).tolist()
    expected = kept(p, name, value)
    (drawn,) = drawn_from
    assert set(drawn[0].nonzero().flatten().tolist()) == expected
    total = sum(p[token] for token in expected)
    assert all(math.isclose(drawn[0, token], p[token] / total, rel_tol=1e-4) for token in expected)


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
    model: Any, prompt: torch.Tensor, drawn_from: list[torch.Tensor], name: str, settings: dict[str, float]
) -> None:
    sample(model, prompt, name, new_tokens=20, **settings)
    assert len(drawn_from) > 1
    for drawn in drawn_from:
        assert torch.isfinite(drawn).all()
        assert math.isclose(drawn.sum(), 1, abs_tol=1e-5)


def test_temperature_never_changes_the_top_token(
    model: Any, prompt: torch.Tensor, drawn_from: list[torch.Tensor]
) -> None:
    for temperature in (0.05, 0.7, 1.0, 1.5, 10.0):
        sample(model, prompt, "temperature", temperature=temperature)
    top = generate(strategy("greedy"), model, prompt, torch.ones_like(prompt), 1, strategy("greedy").Settings(), 0)
    assert {int(drawn.argmax()) for drawn in drawn_from} == {int(top)}
    entropy = [float(-torch.special.xlogy(p, p).sum()) for p in drawn_from]
    assert entropy == sorted(entropy)


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


def surprise(model: Any, prompt: torch.Tensor, texts: torch.Tensor) -> float:
    """Mean surprise of the tokens of ``texts`` behind ``prompt``, in bits."""
    tokens = torch.cat([prompt.expand(len(texts), -1), texts], dim=1)
    with torch.no_grad():
        logp = model(tokens).logits[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
    return float(-logp[:, prompt.shape[1] - 1 :].mean()) / math.log(2)


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
    processor, ids, total = strategy("mirostat").Mirostat(tau=3.0, rate=0.5), torch.zeros(2, 1, dtype=torch.long), 0.0
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


@pytest.mark.parametrize("name", EVERY)
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
            seed=0,
        )


def test_labels_differ_by_settings() -> None:
    labels = [strategy(name).Settings().label for name in EVERY]
    assert len(set(labels)) == len(EVERY)
    assert strategy("temperature").Settings(temperature=0.7).label == "temperature 0.7"
