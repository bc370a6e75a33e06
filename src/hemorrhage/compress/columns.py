"""Optimal Brain Surgeon, column by column: what GPTQ and SparseGPT have in common.

A linear layer with input second moment H loses ``tr(dW H dWᵀ)`` when its weights change by dW. Both methods
fix the columns from left to right and let the columns to the right make up for the error of each (Frantar
et al., arXiv 2210.17323, section 3.3; arXiv 2301.00774, section 3): with ``H⁻¹ = Uᵀ U``, U upper
triangular, ``e = (w_j - q_j) / U_jj`` and ``W[:, j:] -= e U[j, j:]``.

Weights are held transposed, [columns, rows], so that a column lies together. Updates are late: a column is
brought up to date when it is its turn, by one matrix-vector product with the errors before it, and the
columns to the right of a block by one matrix product when the block is done. That changes the order of the
sums and nothing else.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

from hemorrhage.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def factor(moment: Tensor, damp: float) -> Tensor:
    """``Uᵀ`` float32 [n, n], lower triangular, with ``(moment + damp · mean(diag) · I)⁻¹ = Uᵀ U``.

    Without the inverse itself: where R is upper triangular and H = R Rᵀ, which is a Cholesky factor of H with
    rows and columns reversed, U = R⁻¹. A feature that is always zero gets a diagonal of 1 as in the papers'
    code. In float32, as there: the damping bounds the condition number by n / damp. Raises ValueError where
    the damped matrix is not positive definite.
    """
    from scipy.linalg.lapack import strtri

    H = moment.clone()
    diagonal = H.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += damp * diagonal.mean()
    lower, failed = torch.linalg.cholesky_ex(H.flip(0, 1))
    if failed.item():
        raise ValueError("the second moment of a layer's inputs is not positive definite; raise damp")
    # In LAPACK's column order the lower triangle is the upper triangle of the transpose.
    inverse, failed = strtri(lower.numpy().T, lower=0)
    if failed:
        raise ValueError("the second moment of a layer's inputs is singular; raise damp")
    return torch.from_numpy(inverse).flip(0, 1).contiguous()


def sweep(
    W: Tensor,
    factor: Tensor,
    block: int,
    segment: int,
    begin: Callable[[int, int], None],
    project: Callable[[int, Tensor, Tensor], object],
) -> None:
    """Replace the columns of ``W`` float32 [columns, rows] in place, errors compensated.

    ``factor`` is Uᵀ. ``begin(start, stop)`` is called at every multiple of ``segment`` when the columns up
    to ``stop`` are up to date with all errors before ``start``; ``project(j, w, out)`` writes into ``out``
    what column j with value ``w`` [rows] becomes. ``block`` decides how late the columns further right are
    updated.
    """
    columns, rows = W.shape
    starts = set(range(0, columns, block))
    nested = block % segment == 0
    if not nested:
        # Segments that are no parts of blocks begin with everything up to date.
        starts |= set(range(0, columns, segment))
    # With rows divided by U_jj, the errors need no division each.
    reach = factor / factor.diagonal()
    errors = torch.empty(min(block, columns), rows)
    for start, stop in itertools.pairwise([*sorted(starts), columns]):
        for left in range(start, stop, segment if nested else stop - start):
            right = min(left + segment, stop) if nested else stop
            if left > start:
                W[left:right].addmm_(reach[left:right, start:left], errors[: left - start], alpha=-1)
            if left % segment == 0:
                begin(left, min(left + segment, columns))
            before = errors[left - start : right - start].T
            for i, (column, error) in enumerate(zip(W[left:right], before.T, strict=True)):
                if i:
                    torch.addmv(column, before[:, :i], reach[left + i, left : left + i], alpha=-1, out=error)
                else:
                    error.copy_(column)
                project(left + i, error, column)
                error.sub_(column)
        W[stop:].addmm_(reach[stop:, start:stop], errors[: stop - start], alpha=-1)


def joined(weights: list[Tensor]) -> Tensor:
    """Weights [rows_i, columns] of layers that share their input, as one [columns, sum of rows].

    Rows never mix, so all such layers go through one sweep.
    """
    return torch.cat(weights).T.contiguous()
