"""The served variant is named, an honest server raises no alarm, and few tokens decide nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from hemorrhage.engines.endpoint_dialects import Answer
from hemorrhage.engines.identity import (
    ALPHA,
    Identification,
    distances,
    identify,
    identify_samples,
    margins,
    predicted,
    sampled,
)
from tests.engines.lying_server import Floats, Table

SIZE = 64
MODELS = {"base": Table(), **{f"rtn-{bits}": Table(bits=bits) for bits in (6, 4, 3)}}
TEMPLATE = (1, 2)
NOISE = 0.01
"""Standard deviation of what honest kernels add to a log-probability."""


def normal(rows: Floats) -> Floats:
    return np.asarray(rows - np.log(np.exp(rows).sum(-1, keepdims=True)))


def answer(rows: Floats, tokens: Sequence[int], top: int) -> Answer:
    ids = np.argsort(-rows, axis=1)[:, :top]
    given = np.take_along_axis(rows, ids, 1)
    return Answer(rows[np.arange(len(rows)), tokens[1:]], ids, given, given[:, -1] if top else np.zeros(len(rows)))


def asked(
    served: Table, count: int, top: int, seed: int, temperature: float = 1.0, noise: float = NOISE
) -> Identification:
    """What is decided about a server after some windows of 40 tokens; the claim is "base"."""
    rng = np.random.default_rng(seed)
    parts: dict[str, list[Floats]] = {}
    honest = []
    for _ in range(count):
        tokens = rng.integers(SIZE, size=40).tolist()
        rows = normal(served(tokens)[:-1] / temperature)
        said = answer(normal(rows + rng.normal(0, noise, rows.shape)), tokens, top)
        own = {name: predicted(model(tokens)[:-1], tokens, said) for name, model in MODELS.items()}
        own["temperature 0.7"] = predicted(MODELS["base"](tokens)[:-1], tokens, said, 0.7)
        for name, values in own.items():
            parts.setdefault(name, []).append(distances(said, values))
        base = normal(MODELS["base"](tokens)[:-1])
        again = answer(normal(base + rng.normal(0, noise, base.shape)), tokens, top)
        honest.append(distances(again, predicted(base, tokens, again)))
    joined = {name: np.concatenate(values) for name, values in parts.items()}
    return identify(joined, "base", np.concatenate(honest))


@pytest.mark.parametrize("top", [20, 5, 0])
def test_an_honest_server_raises_no_alarm_thirty_times(top: int) -> None:
    verdicts = [asked(MODELS["base"], 8, top, seed).verdict for seed in range(30)]
    assert set(verdicts) <= {"same", "unclear"}
    assert verdicts.count("same") >= 29


@pytest.mark.parametrize("top", [20, 5, 0])
@pytest.mark.parametrize("name", ["rtn-6", "rtn-4", "rtn-3"])
def test_another_variant_is_named(name: str, top: int) -> None:
    for seed in range(5):
        result = asked(MODELS[name], 8, top, seed)
        assert (result.verdict, result.nearest) == ("other", name)
        assert f"{name} explains it, base does not" in result.reason


def test_another_temperature_is_named() -> None:
    result = asked(MODELS["base"], 8, 20, 0, temperature=0.7)
    assert (result.verdict, result.nearest) == ("other", "temperature 0.7")


def test_a_model_that_is_none_of_them_is_unknown() -> None:
    result = asked(Table(seed=9), 8, 20, 0)
    assert result.verdict == "unknown"
    assert "no variant explains it" in result.reason


def test_variants_closer_than_the_kernels_are_not_told_apart() -> None:
    models = {"base": MODELS["base"], "twin": Table(bits=16)}
    tokens = np.random.default_rng(0).integers(SIZE, size=300).tolist()
    rows = normal(MODELS["base"](tokens)[:-1])
    said = answer(normal(rows + np.random.default_rng(1).normal(0, NOISE, rows.shape)), tokens, 20)
    each = {name: distances(said, predicted(model(tokens)[:-1], tokens, said)) for name, model in models.items()}
    result = identify(each, "base", each["base"])
    assert (result.verdict, result.alike) == ("unclear", ("twin",))


def test_distance_is_of_the_served_tokens_by_their_probability_and_clipped() -> None:
    rows = normal(np.array([[2.0, 1, 0, -1], [2.0, 1, 0, -1]]))
    tokens = [0, 0, 3]
    said = answer(rows, tokens, 2)
    assert distances(said, predicted(rows, tokens, said)) == pytest.approx([0, 0])
    other = rows.copy()
    other[0, 1] += 0.3
    other[1, 3] -= 50
    p = np.exp(rows[0])
    expected = [0.3 * p[1] / (p[0] + p[1]), 2.0 * p[3] / (p[0] + p[1] + p[3])]
    moved = predicted(rows, tokens, said)
    moved.logprobs[0, 1] += 0.3
    moved.target[1] -= 50
    assert distances(said, moved) == pytest.approx(expected)


def test_positions_without_a_value_do_not_count() -> None:
    rows = normal(np.random.default_rng(0).normal(0, 1, (100, SIZE)))
    tokens = [0, *np.random.default_rng(1).integers(SIZE, size=100).tolist()]
    said = answer(rows, tokens, 0)
    said.target[::10] = np.nan
    each = {"base": distances(said, predicted(rows, tokens, said))}
    assert np.isnan(each["base"]).sum() == 10
    assert identify(each, "base", each["base"]).positions == 90


def drawn(model: Table, count: int, temperature: float, seed: int) -> tuple[list[int], np.ndarray]:
    """Contexts and the tokens that a server samples after them."""
    rng, tokens = np.random.default_rng(seed), [0]
    for _ in range(count):
        # The table reads the last two tokens.
        tokens.append(int(np.argmax(model(tokens[-2:])[-1] / temperature + rng.gumbel(size=SIZE))))
    return tokens[:-1], np.array(tokens[1:])


def judged(model: Table, count: int, served: float, seed: int) -> Identification:
    contexts, tokens = drawn(model, count, served, seed)
    each = {name: sampled(normal(other(contexts)), tokens, 1.0) for name, other in MODELS.items() if name != "rtn-6"}
    each["temperature 0.7"] = sampled(normal(MODELS["base"](contexts)), tokens, 0.7)
    return identify_samples(each, "base")


def test_an_honest_sampler_raises_no_alarm_a_hundred_times() -> None:
    verdicts = [judged(MODELS["base"], 300, 1.0, seed).verdict for seed in range(100)]
    assert set(verdicts) <= {"same", "unclear"}


def test_another_sampler_is_named() -> None:
    verdicts = [judged(MODELS["rtn-3"], 600, 1.0, seed) for seed in range(5)]
    assert {(verdict.verdict, verdict.nearest) for verdict in verdicts} == {("other", "rtn-3")}
    assert {judged(MODELS["base"], 300, 0.7, seed).nearest for seed in range(5)} == {"temperature 0.7"}
    assert {judged(Table(seed=9), 300, 1.0, seed).verdict for seed in range(5)} == {"unknown"}


def test_the_likelihood_ratio_of_an_honest_sampler_exceeds_its_bound_as_rarely_as_ville_says() -> None:
    """At alpha = 0.2, where it can be seen, on a thousand servers of a model of two tokens."""
    rng, alpha, alarms = np.random.default_rng(0), 0.2, 0
    p, q = normal(np.array([[0.0, 0.3]])), normal(np.array([[0.0, -0.3]]))
    for _ in range(1000):
        tokens = (rng.random(200) < np.exp(p[0, 1])).astype(np.int64)
        rows = {"base": np.repeat(p, 200, 0), "other": np.repeat(q, 200, 0)}
        each = {name: sampled(values, tokens, 1.0) for name, values in rows.items()}
        alarms += float((each["other"].logprobs - each["base"].logprobs).sum()) >= -np.log(alpha)
    assert alarms <= 1000 * alpha


def test_greedy_tokens_are_decided_by_their_margins() -> None:
    def decided(served: Table, seed: int) -> Identification:
        contexts = np.random.default_rng(seed).integers(SIZE, size=400).tolist()
        tokens = served(contexts).argmax(1)
        each = {name: margins(normal(model(contexts)), tokens) for name, model in MODELS.items() if name != "rtn-6"}
        return identify(each, "base", each["base"] * 0)

    assert {decided(MODELS["base"], seed).nearest for seed in range(10)} == {"base"}
    assert {decided(MODELS["base"], seed).verdict for seed in range(10)} <= {"same", "unclear"}
    assert {decided(MODELS["rtn-3"], seed).nearest for seed in range(10)} == {"rtn-3"}


def test_too_few_tokens_are_one_line() -> None:
    few = np.zeros(20)
    with pytest.raises(ValueError, match="20 positions were served; 72 are the fewest"):
        identify({"base": few}, "base", few)
    with pytest.raises(ValueError, match="20 tokens were sampled; 72 are the fewest"):
        identify_samples({"base": sampled(np.zeros((20, 4)), np.zeros(20, np.int64), 1.0)}, "base")
    assert ALPHA == 1e-3
