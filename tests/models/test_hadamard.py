"""Random rotations against the orthogonal matrices that they stand for."""

from __future__ import annotations

import pytest
import torch

from hemorrhage.models.hadamard import LARGEST, Rotation, constructible, factors, hadamard, orthogonal, rotation


@pytest.mark.parametrize("order", [1, 2, 4, 8, 12, 20, 24, 28, 36, 40, 44, 60, 76, 128])
def test_hadamard_matrices_have_signs_for_entries_and_orthogonal_rows(order: int) -> None:
    assert constructible(order)
    matrix = hadamard(order)
    assert torch.equal(matrix.abs(), torch.ones(order, order, dtype=torch.float64))
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))


@pytest.mark.parametrize("order", [3, 6, 10, 92, 116, 172])
def test_orders_that_no_construction_gives_are_refused(order: int) -> None:
    assert not constructible(order)
    with pytest.raises(ValueError, match=f"no Hadamard matrix of order {order}"):
        hadamard(order)


@pytest.mark.parametrize(("width", "whole"), [(576, True), (1536, True), (14336, True), (64, True), (11008, False)])
def test_factors_are_those_most_alike(width: int, whole: bool) -> None:
    left, right, from_hadamard = factors(width)
    assert left * right == width
    assert from_hadamard is (whole or (constructible(left) and constructible(right) and right <= LARGEST))
    if from_hadamard:
        better = [p for p in range(left + 1, int(width**0.5) + 1) if width % p == 0]
        assert not any(constructible(p) and constructible(width // p) for p in better)


def written_out(made: Rotation) -> torch.Tensor:
    """``D P (A ⊗ B)``."""
    width = len(made.signs)
    order = torch.arange(width) if made.order is None else made.order
    permutation = torch.zeros(width, width)
    permutation[order, torch.arange(width)] = 1
    return made.signs.diag() @ permutation @ torch.kron(made.left, made.right)


@pytest.mark.parametrize(
    ("left", "right", "from_hadamard"), [(4, 12, True), (1, 20, True), (3, 7, False), (6, 6, False)]
)
def test_a_rotation_is_the_matrix_written_out(left: int, right: int, from_hadamard: bool) -> None:
    made = rotation(7, left, right, from_hadamard=from_hadamard)
    matrix, width = written_out(made), left * right
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(width), rtol=0, atol=1e-5)
    x = torch.randn(5, width, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(made.rotate(x), x @ matrix, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.restore(x), x @ matrix.T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.restore(made.rotate(x)), x, rtol=1e-4, atol=1e-5)
    twice = torch.cat([x, 2 * x], dim=-1)
    torch.testing.assert_close(
        made.rotate(twice), torch.cat([x @ matrix, 2 * x @ matrix], dim=-1), rtol=1e-4, atol=1e-5
    )


def test_a_seed_stands_for_one_rotation() -> None:
    for from_hadamard in (True, False):
        first, again, other = (rotation(seed, 4, 8, from_hadamard=from_hadamard) for seed in (1, 1, 2))
        assert torch.equal(written_out(first), written_out(again))
        assert not torch.equal(written_out(first), written_out(other))


def test_rotated_rows_have_no_outlier() -> None:
    spike = torch.zeros(1, 576)
    spike[0, 3] = 24.0
    turned = rotation(0, *factors(576)[:2], from_hadamard=True).rotate(spike)
    torch.testing.assert_close(turned.abs(), torch.ones(1, 576), rtol=1e-5, atol=0)


def test_random_orthogonal_matrices_are_orthogonal() -> None:
    matrix = orthogonal(9, torch.Generator().manual_seed(0))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(9, dtype=torch.float64))
