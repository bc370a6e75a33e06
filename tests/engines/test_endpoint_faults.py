"""Each fault has its line where it is there, and an honest answer has none, also one of a kernel that rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from hemorrhage.engines import endpoint_faults as faults
from hemorrhage.engines.endpoint_dialects import Answer, Vocabulary
from tests.engines.lying_server import Floats, Table, pieces

SIZE = 64
VOCABULARY = Vocabulary(pieces(SIZE), pieces(SIZE), str)
TOKENS = np.random.default_rng(0).integers(SIZE, size=40).tolist()


def answer(rows: Floats, tokens: Sequence[int] = TOKENS, top: int = 8) -> Answer:
    """The answer that has these log-probabilities, ``[n - 1, vocabulary]``."""
    ids = np.argsort(-rows, axis=1)[:, :top]
    given = np.take_along_axis(rows, ids, 1)
    return Answer(rows[np.arange(len(rows)), tokens[1:]], ids, given, given[:, -1])


def served(seed: int = 0, noise: float = 0.0, tokens: Sequence[int] = TOKENS) -> Answer:
    rows = Table(seed=seed)(tokens)[:-1]
    rows = rows + np.random.default_rng(seed).normal(0, noise, rows.shape)
    return answer(rows - np.log(np.exp(rows).sum(1, keepdims=True)), tokens)


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.03])
@pytest.mark.parametrize("seed", range(20))
def test_an_honest_answer_has_no_fault(seed: int, noise: float) -> None:
    first, again = served(seed, noise), served(seed)
    assert faults.in_answer(first, TOKENS, VOCABULARY, "tiny") == []
    assert faults.in_values([first], SIZE) == []
    assert faults.between(first, again, "x") == []
    assert faults.limits([first], 8) == []


def test_a_model_that_is_sure_of_everything_is_not_normalised_over_the_top() -> None:
    rows = 12 * Table(seed=3).tables[0][TOKENS][:-1]
    assert faults.in_values([answer(rows - np.log(np.exp(rows).sum(1, keepdims=True)))], SIZE) == []


@pytest.mark.parametrize("digits", range(5))
def test_rounding_to_decimals_is_named(digits: int) -> None:
    first = served()
    rounded = replace(first, logprobs=np.round(first.logprobs, digits), target=np.round(first.target, digits))
    named = " ".join(faults.in_values([rounded], SIZE))
    assert "rounds log-probabilities to" in named
    assert digits == 0 or f"to {digits} decimals" in named


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_to_a_dtype_is_named(dtype: str) -> None:
    def rounded(values: Floats) -> Floats:
        if dtype == "float16":
            return values.astype(np.float16).astype(np.float64)
        bits = values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
        return bits.view(np.float32).astype(np.float64)

    first = served()
    named = faults.in_values([replace(first, logprobs=rounded(first.logprobs), target=rounded(first.target))], SIZE)
    assert named == [f"rounds log-probabilities to {dtype}"]


def test_other_models_other_counts_and_other_tokens_are_named() -> None:
    first = served()

    def named(**changes: object) -> str:
        return " ".join(faults.in_answer(replace(first, **changes), TOKENS, VOCABULARY, "tiny"))  # type: ignore[arg-type]

    assert "for the model 'big'" in named(model="big")
    assert "reads 42 tokens where 40 were sent" in named(read=42)
    assert "reads other tokens" in named(tokens=tuple(TOKENS[::-1]))
    assert "another vocabulary: token" in named(texts=("zebra",) * 40)
    assert "another vocabulary: it names token 163" in named(ids=first.ids + 100)
    assert "gives no log-probability for 1 of" in named(target=np.where(np.arange(39) == 3, np.nan, first.target))
    assert "to others" in named(is_ordered=False)
    assert "to others" in named(target=first.target - 0.1)
    assert "above 0" in named(target=-first.target)
    assert named(texts=tuple(pieces(SIZE)[token] for token in TOKENS)) == ""


def test_a_target_may_be_missing_where_a_dialect_has_none() -> None:
    first = replace(served(), target=np.full(39, np.nan))
    assert faults.in_answer(first, TOKENS, VOCABULARY, "tiny", is_complete=False) == []


def test_answers_of_two_models_differ() -> None:
    assert "twice: log-probabilities differ by" in faults.between(served(0), served(1), "twice")[0]


def test_greedy_and_warm_samples() -> None:
    model, prompt = Table(), TOKENS[:10]

    def sampled(temperature: float, count: int = 24) -> Answer:
        rng, tokens = np.random.default_rng(2), list(prompt)
        for _ in range(count):
            row = model(tokens)[-1]
            noise = rng.gumbel(size=SIZE) if temperature else 0.0
            tokens.append(int(np.argmax(row / (temperature or 1) + noise)))
        return answer(model(tokens)[:-1], tokens)

    assert faults.in_greedy(sampled(0.0), 10) == []
    assert "ignores temperature 0" in faults.in_greedy(sampled(1.0), 10)[0]
    assert faults.in_sampled(sampled(1.5), 10, 1.5) == []
    assert "all 24 sampled tokens are the likeliest" in faults.in_sampled(sampled(0.0), 10, 1.5)[0]
    # So few tokens may all be the likeliest by chance.
    assert faults.in_sampled(sampled(0.0, count=2), 10, 1.5) == []
