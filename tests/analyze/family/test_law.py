"""The exponents of the law: recovered from losses that follow it, and said of what does not."""

from __future__ import annotations

import math

import pytest

from hemorrhage.analyze.family import law
from hemorrhage.analyze.family.law import BITS, PARAMETERS, TOKENS, Exponent
from hemorrhage.analyze.family.models import Model

MODELS = {
    f"{size}-{tokens}-{seed}": (float(tokens), float(size))
    for size in (300_000, 800_000, 3_000_000)
    for tokens in (200_000, 600_000, 1_800_000)
    for seed in (0, 1)
}


def paper(tokens: float, parameters: float, bits: float) -> float:
    """Equation of arXiv 2411.17691, with its numbers."""
    return float(0.017 * tokens**0.5251 / (parameters**0.2261 * bits**5.4967))


def fitted(noise: float = 0.0) -> dict[str, Exponent]:
    lost = {
        bits: {
            name: math.log(paper(*size, bits)) + noise * (-1) ** place
            for place, (name, size) in enumerate(MODELS.items())
        }
        for bits in (3.0, 4.0, 6.0)
    }
    tokens, sizes = ({name: size[place] for name, size in MODELS.items()} for place in (0, 1))
    return {each.of: each for each in law._fit("gptq", lost, tokens, sizes, 0.95)}


def test_losses_that_follow_the_law_have_its_exponents() -> None:
    for of, exponent in fitted().items():
        assert exponent.value == pytest.approx(law.LAW[of])
    assert set(fitted()) == {TOKENS, PARAMETERS, BITS}


def test_noise_between_seeds_widens_the_interval_of_what_differs_between_models() -> None:
    noisy = fitted(0.2)[TOKENS]
    assert noisy.low < 0.5251 < noisy.high
    assert noisy.verdict == "as the law"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.4, 0.6, "as the law"),
        (0.1, 0.3, "the law's sign, another size"),
        (-0.1, 0.9, "no sign shown"),
        (-0.9, -0.1, "the other sign"),
        (math.nan, math.nan, "no interval"),
    ],
)
def test_a_verdict_is_of_the_sign_first(low: float, high: float, verdict: str) -> None:
    assert Exponent("rtn", TOKENS, 0.5251, (low + high) / 2, low, high, 9).verdict == verdict


def test_models_that_do_not_differ_in_tokens_have_no_law(models: list[Model]) -> None:
    assert law.exponents(models, 0.95) == []
