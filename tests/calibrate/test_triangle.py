"""A symmetric matrix as its upper triangle."""

from __future__ import annotations

import pytest
import torch

from hemorrhage.calibrate import triangle


def test_triangle_there_and_back() -> None:
    matrix = torch.randn(7, 7, generator=torch.Generator().manual_seed(0))
    matrix = matrix + matrix.T
    vector = torch.cat(list(triangle.pieces(matrix)))
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


@pytest.mark.parametrize(("width", "piece"), [(7, 14), (7, 2**22), (300, 1000)])
def test_a_gpu_packs_and_unpacks_what_a_processor_does(width: int, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hemorrhage.models.stream.PIECE", piece)
    matrix = torch.randn(width, width, generator=torch.Generator().manual_seed(0))
    vector = torch.cat(list(triangle.pieces(matrix)))
    pieces = list(triangle.packed_pieces(matrix))
    assert len(pieces) == -(-width // max(1, piece // width))
    assert torch.equal(torch.cat(pieces), vector)
    assert torch.equal(triangle.unpacked_there(vector), matrix.triu())
    assert torch.equal(triangle.mirrored(triangle.unpacked_there(vector)), triangle.square(vector))


def test_strips_of_a_square_are_its_upper_triangle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triangle, "PRODUCT", 16)
    x = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    upper = torch.ones(40, 40)
    triangle.add_square_by_strips(upper, x)
    torch.testing.assert_close(upper.triu(), (x.T @ x + 1).triu())
    assert torch.equal(upper[16:, :16], torch.ones(24, 16)), "half of the work is left out"
