"""A symmetric matrix as the vector of its upper triangle, row by row: half the bytes on disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

STRIP = 256
"""Columns that are mirrored at once."""


def rows(matrix: Tensor) -> Iterator[Tensor]:
    """Return the rows of the upper triangle of ``matrix`` [n, n]: n values, n - 1, ..., 1."""
    for row in range(len(matrix)):
        yield matrix[row, row:]


def length(width: int) -> int:
    """Return the number of values in the upper triangle of a [width, width] matrix."""
    return width * (width + 1) // 2


def square(vector: Tensor, where: str = "cpu") -> Tensor:
    """Return the symmetric matrix [n, n] on a device whose upper triangle is ``vector`` float32 [n (n + 1) / 2]."""
    from scipy.linalg.lapack import stpttr

    # LAPACK's packed lower triangle, column by column, is the upper one row by row.
    unpacked, _ = stpttr(_width(vector), vector.numpy(), uplo="L")
    return mirrored(torch.from_numpy(unpacked.T).to(where))


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
        upper.addmm_(x.T, x)
        return
    from scipy.linalg import blas

    # torch has no product that knows its result to be symmetric. In BLAS's column order both matrices are transposed.
    product = blas.dsyrk if x.dtype == torch.float64 else blas.ssyrk
    product(1, x.numpy().T, beta=1, c=upper.numpy().T, lower=1, overwrite_c=1)


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
