"""Optimal Brain Surgeon, column by column: what GPTQ and SparseGPT have in common.

A linear layer with input second moment H loses ``tr(dW H dWᵀ)`` when its weights change by dW. Both methods
fix the columns from left to right and let the columns to the right make up for the error of each (Frantar
et al., arXiv 2210.17323, section 3.3; arXiv 2301.00774, section 3). The papers write that with the Cholesky
factor of H⁻¹. Here it is written with that of H, which is the same (GPTQ is Babai's nearest plane algorithm:
arXiv 2507.18553) and needs no inverse: with ``H = R Rᵀ``, R upper triangular, and ``e_k = w_k - q_k`` the
difference between a column's *original* and new value, column j stands at ``w_j + Σ_k<j e_k R_kj / R_jj``
when it is its turn, because that cancels what the columns before it left in the j-th term of ``‖dW R‖²``.
The factor U of the papers, ``H⁻¹ = Uᵀ U``, has ``U_jj = 1 / R_jj``.

Layers of one shape are swept together, weights as [inputs, columns, rows] so that a column's rows lie side
by side: a column costs the same few calls for all of them. The columns are halved again and again, and what
the left half leaves behind is brought to the right half by one matrix product. That is done on the device of the
job (hemorrhage.models.checkpoint.device), wherever the model lies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hemorrhage.models.stream import PIECE
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

LEAF = 16
"""Columns among which errors are passed on one by one; between such strips a matrix product is faster."""

ROWS = 10_000
"""Rows that are swept together where layers are smaller: more gain nothing, and leave the cache."""

VALUES = 2**24
"""Values of the factors of layers that are swept together: 64 MiB."""


@dataclass(frozen=True)
class Layers:
    """Linear layers that read one input, and what a sweep has to know of the input."""

    names: list[str]
    weights: list[Tensor]
    """[rows_i, columns], as they are stored."""
    reach: Tensor
    """float32 [columns, columns], lower triangular: what of the error of column k arrives in column j."""
    diagonal: Tensor
    """float32 [columns]: R_jj."""
    dead: Tensor
    """bool [columns]: the inputs that are always zero."""
    order: Tensor
    """int64 [columns]: the columns as they are to be swept. ``reach`` and ``diagonal`` are in that order."""

    @classmethod
    def of(cls, names: list[str], weights: list[Tensor], moment: Tensor, damp: float, falling: bool = False) -> Layers:
        """``moment`` float32 [columns, columns] is the input's second moment; ``falling``: largest first.

        Raises ValueError where the damped moment is not positive definite.
        """
        from hemorrhage.models.checkpoint import device

        moment = moment.to(device())
        order = torch.arange(len(moment), device=moment.device)
        if falling:
            order = moment.diagonal().argsort(descending=True, stable=True)
        try:
            reach, diagonal = factor(moment[order][:, order] if falling else moment, damp)
        except ValueError as error:
            raise ValueError(f"{names[0]}: {error}") from None
        return cls(names, weights, reach, diagonal, moment.diagonal() == 0, order)

    @property
    def heights(self) -> list[int]:
        """Rows of each layer."""
        return [len(weight) for weight in self.weights]


def factor(moment: Tensor, damp: float) -> tuple[Tensor, Tensor]:
    """``R_kj / R_jj`` as float32 [j, k], lower triangular, and ``R_jj`` [j].

    ``R`` is upper triangular with ``R Rᵀ = moment + damp · mean(diag) · I``; ``moment`` is float32 [n, n]. A
    feature that is always zero gets a diagonal of 1 as in the papers' code. In float32, as there: the damping
    bounds the condition number by n / damp. Raises ValueError where the damped matrix is not positive
    definite.
    """
    # R is a Cholesky factor of the matrix with rows and columns reversed.
    H = moment.flip(0, 1)
    diagonal = H.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += damp * diagonal.mean()
    upper = _transposed_factor(H)
    if upper is None:
        raise ValueError("the second moment of the inputs is not positive definite; raise damp")
    reach = _turned(upper)
    diagonal = reach.diagonal().clone()
    return reach.div_(diagonal.unsqueeze(1)), diagonal


def _transposed_factor(H: Tensor) -> Tensor | None:
    """Lᵀ with L lower triangular and ``L Lᵀ = H``, which is overwritten; None where H is not positive definite."""
    if H.is_cuda:
        upper, failed = torch.linalg.cholesky_ex(H, upper=True)
        return None if failed else upper.contiguous()
    from scipy.linalg.lapack import spotrf

    # scipy's takes half the time of torch's on an AMD processor. In LAPACK's column order the lower triangle is
    # the upper triangle of the transpose.
    lower, failed = spotrf(H.numpy().T, lower=1, overwrite_a=1)
    return None if failed else torch.from_numpy(lower.T)


def _turned(matrix: Tensor) -> Tensor:
    """``matrix``, contiguous, with its rows and its columns reversed in place: a second one may not fit into memory."""
    numbers = matrix.view(-1)
    half = len(numbers) // 2
    for start in range(0, half, PIECE):
        stop = min(start + PIECE, half)
        front, back = numbers[start:stop], numbers[len(numbers) - stop : len(numbers) - start]
        kept = front.flip(0)
        front.copy_(back.flip(0))
        back.copy_(kept)
    return matrix


def reach_of(batch: list[Layers]) -> Tensor:
    """``reach`` of all inputs of ``batch``: float32 [inputs, columns, columns], of one no copy."""
    return batch[0].reach[None] if len(batch) == 1 else torch.stack([layers.reach for layers in batch])


def wide(widths: Iterable[int]) -> bool:
    """Whether no two layers with so many inputs are swept together, so that all can be taken as they come."""
    return all(2 * width**2 > VALUES for width in widths)


def batches(layers: Iterable[Layers], alone: bool) -> Iterator[list[Layers]]:
    """``layers`` in lists that can be swept together; one by one, as they come, if ``alone``.

    None that was given out is kept: the factor of a wide input may be as large as all else.
    """
    waiting: dict[tuple[int, ...], list[Layers]] = {}
    for each in layers:
        shape = (len(each.order), *each.heights)
        batch = waiting.setdefault(shape, [])
        batch.append(each)
        rows, values = sum(each.heights), each.reach.numel()
        if alone or (len(batch) + 1) * rows > ROWS or (len(batch) + 1) * values > VALUES:
            del each, batch
            yield waiting.pop(shape)
    yield from waiting.values()


def stacked(batch: list[Layers]) -> Tensor:
    """The weights of ``batch`` as float32 [inputs, columns, rows], dead columns zero.

    Rows never mix, so all layers that share an input lie side by side.
    """
    columns, rows = len(batch[0].order), sum(batch[0].heights)
    W = torch.empty(len(batch), columns, rows, device=batch[0].reach.device)
    for out, layers in zip(W, batch, strict=True):
        for part, weight in zip(out.split(layers.heights, dim=1), layers.weights, strict=True):
            # The device turns it faster, and half the bytes reach it.
            part.copy_(weight.to(W.device).T)
        out[layers.dead] = 0
    return W


def sweep(
    W: Tensor,
    reach: Tensor,
    project: Callable[[int, Tensor, Tensor], object],
    begin: Callable[[int, int, Tensor], object] | None = None,
    segment: int = 0,
) -> Tensor:
    """Replace the columns of ``W`` float32 [inputs, columns, rows] in place; returns their errors, like W.

    ``reach`` is float32 [inputs, columns, columns], as in ``Layers``. ``project(j, w, e)`` is called for
    every column when it is its turn: ``w`` [inputs, rows] is its value and is to be made what shall stand in
    W, ``e`` [inputs, rows] is its value before the sweep and is to be made its error. ``begin(start, stop,
    current)`` is called before every ``segment`` columns, with the weights [inputs, columns of the segment,
    rows] that best make up for all errors before ``start``.
    """
    columns = W.shape[1]
    segment = segment or columns
    E = W.clone()

    # A function that named itself would be a cycle, and hold all of these matrices until Python looks for cycles.
    def visit(start: int, stop: int, again: Callable[..., None]) -> None:
        width = stop - start
        if begin and start % segment == 0 and (width == segment or (width < segment and stop == columns)):
            begin(start, stop, current(start, stop))
        if width <= LEAF and width <= segment:
            one_by_one(start, stop)
            return
        middle = _middle(start, stop, segment)
        again(start, middle, again)
        W[:, middle:stop].baddbmm_(reach[:, middle:stop, start:middle], E[:, start:middle])
        again(middle, stop, again)

    def current(start: int, stop: int) -> Tensor:
        # W has what arrives from columns before the segment. Columns of the segment that take it up hand a
        # part on to those right of them, like an error: shift_j = arrives_j - Σ_k<j reach_jk shift_k.
        own = W[:, start:stop]
        if not start:
            return own
        before = E[:, start:stop]
        inverse = torch.linalg.solve_triangular(
            reach[:, start:stop, start:stop], torch.eye(stop - start, device=W.device), upper=False, unitriangular=True
        )
        return torch.baddbmm(before, inverse, own - before)

    def one_by_one(start: int, stop: int) -> None:
        strip = W[:, start:stop]
        arrives = reach[:, start:stop, start:stop].unsqueeze(3).unbind(2)
        for i, (w, e) in enumerate(zip(strip.unbind(1), E[:, start:stop].unbind(1), strict=True), start=1):
            project(start + i - 1, w, e)
            if start + i < stop:
                strip[:, i:].addcmul_(arrives[i - 1][:, i:], e.unsqueeze(1))

    with torch.inference_mode():
        visit(0, columns, visit)
    return E


def _middle(start: int, stop: int, segment: int) -> int:
    """Where to halve: between segments if there are several, else between strips of ``LEAF`` columns."""
    unit = segment if stop - start > segment else LEAF
    units = -(-(stop - start) // unit)
    return start + units // 2 * unit
