"""A symmetric matrix as its upper triangle."""

from __future__ import annotations

import pytest
import torch

from hemorrhage.calibrate import triangle


def test_triangle_there_and_back() -> None:
    matrix = torch.randn(7, 7, generator=torch.Generator().manual_seed(0))
    matrix = matrix + matrix.T
    vector = torch.cat(list(triangle.rows(matrix)))
    assert len(vector) == triangle.length(7)
    assert torch.equal(triangle.square(vector), matrix)
    assert torch.equal(triangle.diagonal(vector), matrix.diagonal())
    with pytest.raises(ValueError, match="no upper triangle"):
        triangle.square(vector[:-1])


@pytest.mark.parametrize("width", [1, 256, 300])
def test_a_triangle_is_mirrored_in_place(width: int) -> None:
    matrix = torch.randn(width, width, generator=torch.Generator().manual_seed(0))
    expected = triangle.mirrored(matrix.triu())
    triangle.mirror(matrix)
    assert torch.equal(matrix, expected)
