"""Tests of shuffle."""

from __future__ import annotations

import torch

from hemorrhage.compress.solvers.shuffle import shuffle, shuffler


def test_shuffled_values_are_the_same_at_other_positions() -> None:
    values = torch.arange(60.0).view(5, 12)
    shuffled = shuffle(values, shuffler(True, seed=1))
    assert shuffled.shape == values.shape
    assert not torch.equal(shuffled, values)
    assert torch.equal(shuffled.flatten().sort().values, values.flatten())


def test_the_seed_decides_the_order() -> None:
    values = torch.arange(40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(7))
    assert torch.equal(shuffle(values, shuffler(True, seed=7)), order)
    assert not torch.equal(shuffle(values, shuffler(True, seed=8)), order)


def test_without_a_generator_nothing_is_shuffled() -> None:
    values = torch.arange(4)
    assert shuffler(False, seed=1) is None
    assert shuffle(values, None) is values
