"""Differences of differences against plain numpy, and what chance gives."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hemorrhage.analyze.rows.interaction import interaction
from hemorrhage.analyze.spec import Spec

SPEC = Spec(resamples=400, confidence=0.95, seed=0)


def test_the_interaction_is_a_difference_of_differences() -> None:
    generator = np.random.default_rng(1)
    base, variant = generator.random((40, 3)), generator.random((40, 3))
    variant[:, 1] -= 2.0
    found = interaction(base, variant, "prose", SPEC)
    changes = variant.mean(axis=0) - base.mean(axis=0)
    assert found.estimates == pytest.approx(changes - changes.mean())
    assert found.estimates.sum() == pytest.approx(0)
    assert found.size == pytest.approx(math.sqrt((found.estimates**2).mean()))
    assert (found.low < found.estimates).all()
    assert (found.estimates < found.high).all()
    assert found.high[1] < 0
    assert found.p[1] < 0.01
    assert found.overall == pytest.approx(1 / 401)
    # An item without one of the outcomes takes no part.
    base[0, 0] = np.nan
    assert interaction(base, variant, "prose", SPEC).items == 39


def test_a_cost_that_all_strategies_share_is_no_interaction() -> None:
    generator = np.random.default_rng(2)
    found_by_chance = []
    for _ in range(60):
        base = generator.random((20, 4))
        variant = base - 0.5 + 0.1 * generator.normal(size=(20, 4))
        found_by_chance.append(interaction(base, variant, "prose", Spec(100, 0.95, 0)).overall <= 0.05)
    assert np.mean(found_by_chance) <= 0.12
