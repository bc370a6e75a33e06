"""Noise on weights: its size by layer, its place by thirds, and the same draw for a seed whatever is left to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.perturbation import noise
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of


def altered(folder: Path, seed: int = 0, **settings: object) -> dict[str, torch.Tensor]:
    """Return the difference that noise makes to each weight, in float32."""
    model = load(folder)
    before = {name: linear.weight.detach().float().clone() for name, linear in linears_of(model).items()}
    noise.alter(model, noise.Settings.model_validate(settings), Context(seed=seed))
    return {name: linear.weight.detach().float() - before[name] for name, linear in linears_of(model).items()}


def test_noise_has_the_share_of_each_layers_spread(tiny: Path) -> None:
    spreads = {name: linear.weight.detach().float().std() for name, linear in linears_of(load(tiny)).items()}
    for name, difference in altered(tiny, strength=0.25).items():
        # Of n weights the spread of noise is known to about 1 / sqrt(2 n).
        tolerance = 4 / (2 * difference.numel()) ** 0.5
        assert difference.std() / spreads[name] == pytest.approx(0.25, rel=tolerance + 0.01)


@pytest.mark.parametrize(
    ("which", "places"), [("first", [0]), ("middle", [1, 2]), ("last", [3]), ("all", [0, 1, 2, 3])]
)
def test_thirds_hold_every_block_once(which: str, places: list[int]) -> None:
    assert list(noise.third(4, which)) == places


def test_noise_stays_in_its_third(tiny: Path) -> None:
    model = load(tiny)
    number = len(blocks(model))
    for which in ("first", "middle", "last"):
        touched = {name for name, difference in altered(tiny, strength=0.1, blocks=which).items() if difference.any()}
        assert touched == {
            name
            for name in linears_of(model)
            if int(name.split("layers.")[1].split(".")[0]) in noise.third(number, which)
        }


def test_a_draw_is_the_seeds_and_the_layers_own(tiny: Path) -> None:
    first, again, other = (altered(tiny, seed=seed, strength=0.1) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    # A third has the noise that its layers have when all are altered.
    last = altered(tiny, seed=3, strength=0.1, blocks="last")
    assert all(torch.equal(difference, first[name]) for name, difference in last.items() if difference.any())


def test_a_weight_in_bfloat16_stays_one() -> None:
    weight = torch.linspace(-1, 1, 35, dtype=torch.bfloat16).view(5, 7)
    assert noise.noisy(weight, 0.5, (0, 0)).dtype == torch.bfloat16


def test_rounding_is_noise_of_its_step_over_the_root_of_twelve() -> None:
    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    step = 0.05
    rounded = (weight / step).round() * step
    assert (rounded - weight).std() == pytest.approx(step / 12**0.5, rel=0.01)


def test_a_strength_is_more_than_nothing() -> None:
    with pytest.raises(ValidationError, match="strength"):
        noise.Settings(strength=0)
