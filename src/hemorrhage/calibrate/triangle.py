"""A symmetric matrix as the vector of its upper triangle, row by row: half the bytes on disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hemorrhage.models.stream import rows_at_once
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

STRIP = 256
"""Columns that are mirrored at once."""


PRODUCT = 1024
"""Rows of a product that a GPU computes at once of a symmetric matrix: of wide ones little more than half."""


def pieces(matrix: Tensor) -> Iterator[Tensor]:
    """Return the upper triangle of ``matrix`` [n, n] row by row, in pieces on its device.

    On a processor a piece is a row, without a copy: n values, n - 1, ..., 1.
    """
    if matrix.device.type == "cpu":
        for row in range(len(matrix)):
            yield matrix[row, row:]
    else:
        yield from packed_pieces(matrix)


def packed_pieces(matrix: Tensor) -> Iterator[Tensor]:
    """Return the upper triangle of ``matrix`` [n, n] row by row, in pieces of many rows.

    Their sizes are known without asking the device.
    """
    at_once = rows_at_once(len(matrix))
    for start, strip in zip(range(0, len(matrix), at_once), matrix.split(at_once), strict=True):
        row, column = torch.triu_indices(len(strip), strip.shape[1], start, device=matrix.device)
        yield strip[row, column]


def length(width: int) -> int:
    """Return the number of values in the upper triangle of a [width, width] matrix."""
    return width * (width + 1) // 2


def square(vector: Tensor, where: str = "cpu") -> Tensor:
    """Return the symmetric matrix [n, n] on a device whose upper triangle is ``vector`` float32 [n (n + 1) / 2]."""
    if torch.device(where).type == "cuda":
        return mirrored(unpacked_there(vector.to(where)))
    from scipy.linalg.lapack import stpttr

    # LAPACK's packed lower triangle, column by column, is the upper one row by row.
    unpacked, _ = stpttr(_width(vector), vector.numpy(), uplo="L")
    return mirrored(torch.from_numpy(unpacked.T).to(where))


def unpacked_there(vector: Tensor) -> Tensor:
    """Return the matrix [n, n] on the device of ``vector`` whose upper triangle that is; below it are zeros."""
    width = _width(vector)
    matrix = vector.new_zeros(width, width)
    at_once, begin = rows_at_once(width), 0
    for start, strip in zip(range(0, width, at_once), matrix.split(at_once), strict=True):
        row, column = torch.triu_indices(len(strip), strip.shape[1], start, device=vector.device)
        strip[row, column] = vector[begin : begin + len(row)]
        begin += len(row)
    return matrix


def mirrored(matrix: Tensor) -> Tensor:
    """Return the symmetric matrix whose upper triangle is that of ``matrix``, which is zero below it."""
    diagonal = matrix.diagonal().clone()
    # Turned first: adding what lies across takes twice the time.
    matrix = matrix.T.contiguous().add_(matrix)
    matrix.diagonal().copy_(diagonal)
    return matrix


def mirror(matrix: Tensor) -> None:
    """Make ``matrix`` the symmetric one with its upper triangle, in place; whatever stands below is overwritten."""
    for start in range(0, len(matrix), STRIP):
        stop = start + STRIP
        matrix[stop:, start:stop] = matrix[start:stop, stop:].T
        corner = matrix[start:stop, start:stop].triu()
        matrix[start:stop, start:stop] = mirrored(corner)


def add_square(upper: Tensor, x: Tensor) -> None:
    """Add ``x``ᵀ ``x`` to ``upper`` [n, n]; what stands below its diagonal is not defined. ``x``: [tokens, n].

    Both are float32 or both float64, and contiguous.
    """
    if upper.is_cuda:
        add_square_by_strips(upper, x)
        return
    from scipy.linalg import blas

    # torch has no product that knows its result to be symmetric. In BLAS's column order both matrices are transposed.
    product = blas.dsyrk if x.dtype == torch.float64 else blas.ssyrk
    product(1, x.numpy().T, beta=1, c=upper.numpy().T, lower=1, overwrite_c=1)


def add_square_by_strips(upper: Tensor, x: Tensor) -> None:
    """Do what ``add_square`` does by products of ``PRODUCT`` rows, from the diagonal on."""
    for start in range(0, len(upper), PRODUCT):
        stop = start + PRODUCT
        upper[start:stop, start:].addmm_(x[:, start:stop].T, x[:, start:])


def diagonal(vector: Tensor) -> Tensor:
    """Return the diagonal [n] of the matrix whose upper triangle is ``vector``."""
    width = _width(vector)
    row = torch.arange(width)
    return vector[row * width - row * (row - 1) // 2]


def _width(vector: Tensor) -> int:
    width: int = round(((8 * len(vector) + 1) ** 0.5 - 1) / 2)
    if length(width) != len(vector):
        raise ValueError(f"{len(vector)} values are no upper triangle of a square matrix")
    return width
