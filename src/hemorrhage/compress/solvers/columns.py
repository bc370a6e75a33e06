"""Optimal Brain Surgeon, column by column: what GPTQ and SparseGPT have in common.

A linear layer with Hessian H loses ``tr(dW H dWᵀ)`` when its weights change by dW. Both methods fix the columns from
left to right and let the columns to the right compensate for the error of each (Frantar et al., arXiv 2210.17323,
section 3.3; arXiv 2301.00774, section 3). In the papers, with the Cholesky factor ``H⁻¹ = Uᵀ U``:

    Q[:, j]    = quantized or pruned W[:, j]
    Err[:, j]  = (W[:, j] - Q[:, j]) / U_jj
    W[:, j:]  -= Err[:, j] U[j, j:]

Here the same is computed from the Cholesky factor of H, which needs no inverse (GPTQ is Babai's nearest plane
algorithm: arXiv 2507.18553). With ``H = R Rᵀ``, R upper triangular, and ``E_k = w_k - Q_k`` the difference between a
column's *original* and new value, column j is ``W_j = w_j + Σ_k<j E_k B_jk`` with ``B_jk = R_kj / R_jj`` when it is its
turn, because that cancels what the columns before it left in the j-th term of ``‖dW R‖²``. The papers' U has
``U_jj = 1 / R_jj``.

    W    weights, [inputs, columns, rows]; each column becomes its Q
    Q    quantized or pruned weights
    H    input second moment XᵀX / n, damped, [columns, columns]
    R    upper triangular Cholesky factor, ``H = R Rᵀ``
    B    ``R_kj / R_jj``, lower triangular, unit diagonal: the share of column k's error that arrives in column j
    E    errors of the columns, [inputs, columns, rows]

Layers of one shape are swept together, weights as [inputs, columns, rows] so that a column's rows are contiguous: a
column costs the same few calls for all of them. The columns are halved again and again, and the error of the left half
is brought to the right half by one matrix product. That is done on the device of the job
(hemorrhage.models.checkpoint.device), wherever the model is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tqdm import tqdm

from hemorrhage.compress.progress import runs
from hemorrhage.models.blocks import blocks
from hemorrhage.models.linears import linears_of
from hemorrhage.models.stream import PIECE
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hemorrhage.compress.method import Context

LEAF = 16
"""Columns among which errors are passed on one by one; between such strips a matrix product is faster."""

ROWS = 10_000
"""Rows that a processor sweeps together where layers are smaller: more gain nothing, and leave the cache."""

VALUES = 2**24
"""Values of the factors of layers that a processor sweeps together: 64 MiB."""


BLOCKS = 8
"""Decoder blocks whose layers a GPU sweeps together; a killed job resumes after them."""


@dataclass(frozen=True)
class Limits:
    """How much is swept together: ``rows``, ``values`` of factors, and ``bytes`` of all that a sweep works on.

    Layers wait for others of their shape among so many decoder ``blocks``, 0 for all. A processor gains while a column
    of all layers is in its cache, a GPU until its memory is full: there a column costs the same few launches for one
    layer as for many.
    """

    rows: float
    values: float
    bytes: float
    blocks: int

    @classmethod
    def of_device(cls) -> Limits:
        """Return the limits of the device of the job, by what is free of its memory now."""
        from hemorrhage.models.checkpoint import device

        if torch.device(device()).type != "cuda":
            return cls(ROWS, VALUES, float("inf"), 0)
        # What torch holds without using it is free for the next tensor.
        held = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return cls.of_memory(torch.cuda.mem_get_info()[0] + held)

    @classmethod
    def of_memory(cls, free: int) -> Limits:
        """Return the limits of a GPU with so many ``free`` bytes: a sweep may take a third of them."""
        return cls(float("inf"), float("inf"), free / 3, BLOCKS)

    def allow(self, inputs: int, columns: int, rows: int) -> bool:
        """Return whether so many ``inputs`` of ``columns`` and ``rows`` may be swept together."""
        # A factor and its copy among those of all inputs; weights, errors, and two copies of weights in between.
        working = 4 * inputs * columns * (2 * columns + 4 * rows)
        return inputs * rows <= self.rows and inputs * columns**2 <= self.values and working <= self.bytes


@dataclass(frozen=True)
class Layers:
    """Linear layers that read one input, and the factors of its H."""

    names: list[str]
    weights: list[Tensor]
    """[rows_i, columns], as they are stored."""
    B: Tensor
    """float32 [columns, columns], lower triangular."""
    R_jj: Tensor
    """float32 [columns]: the diagonal of R."""
    dead: Tensor
    """bool [columns]: inputs that are always zero."""
    order: Tensor
    """int64 [columns]: the order in which columns are swept; ``B`` and ``R_jj`` are in that order."""

    @classmethod
    def of(cls, names: list[str], weights: list[Tensor], H: Tensor, damp: float, act_order: bool = False) -> Layers:
        """Factor the input second moment ``H`` float32 [columns, columns]; ``act_order``: largest ``H_jj`` first.

        Raises ValueError where the damped H is not positive definite.
        """
        from hemorrhage.models.checkpoint import device

        H = H.to(device())
        order = torch.arange(len(H), device=H.device)
        if act_order:
            order = H.diagonal().argsort(descending=True, stable=True)
        try:
            B, R_jj = factor(H[order][:, order] if act_order else H, damp)
        except ValueError as error:
            raise ValueError(f"{names[0]}: {error}") from None
        return cls(names, weights, B, R_jj, H.diagonal() == 0, order)

    @property
    def heights(self) -> list[int]:
        """Rows of each layer."""
        return [len(weight) for weight in self.weights]


def factor(H: Tensor, damp: float) -> tuple[Tensor, Tensor]:
    """Return B float32 [j, k], lower triangular, and ``R_jj`` [j].

    ``R`` is upper triangular with ``R Rᵀ = H + damp · mean(diag H) · I``; ``H`` is float32 [n, n]. A
    feature that is always zero gets a diagonal of 1 as in the papers' code. In float32, as there: the damping
    bounds the condition number by n / damp. Raises ValueError where the damped matrix is not positive
    definite.
    """
    # R is a Cholesky factor of the matrix with rows and columns reversed.
    H = H.flip(0, 1)
    diagonal = H.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += damp * diagonal.mean()
    upper = _transposed_factor(H)
    if upper is None:
        raise ValueError("the input second moment is not positive definite; raise damp")
    R = _reverse(upper)
    R_jj = R.diagonal().clone()
    return R.div_(R_jj.unsqueeze(1)), R_jj


def _transposed_factor(H: Tensor) -> Tensor | None:
    """Return Lᵀ with ``L Lᵀ = H``, L lower triangular; None where H is not positive definite. Overwrites H."""
    if H.is_cuda:
        upper, failed = torch.linalg.cholesky_ex(H, upper=True)
        return None if failed else upper.contiguous()
    from scipy.linalg.lapack import spotrf

    # scipy's takes half the time of torch's on an AMD processor. In LAPACK's column order the lower triangle is
    # the upper triangle of the transpose.
    lower, failed = spotrf(H.numpy().T, lower=1, overwrite_a=1)
    return None if failed else torch.from_numpy(lower.T)


def _reverse(matrix: Tensor) -> Tensor:
    """Reverse rows and columns of the contiguous ``matrix`` in place: a second one may not fit into memory."""
    numbers = matrix.view(-1)
    half = len(numbers) // 2
    for start in range(0, half, PIECE):
        stop = min(start + PIECE, half)
        front, back = numbers[start:stop], numbers[len(numbers) - stop : len(numbers) - start]
        reversed_front = front.flip(0)
        front.copy_(back.flip(0))
        back.copy_(reversed_front)
    return matrix


def stack_factors(batch: list[Layers]) -> Tensor:
    """Return ``B`` of all inputs of ``batch``: float32 [inputs, columns, columns]; of a single one without a copy."""
    return batch[0].B[None] if len(batch) == 1 else torch.stack([layers.B for layers in batch])


def in_batches(
    model: PreTrainedModel, context: Context, name: str, damp: float, act_order: bool = False, alone: bool = False
) -> Iterator[list[Layers]]:
    """Yield the linear layers of the decoder blocks in lists that can be swept together, each of which is altered then.

    ``damp`` and ``act_order`` as in ``Layers.of``; one by one, in their order, if ``alone``; ``name`` stands at the bar
    that shows how far it is. As in ``batches``, no reference to a list that was yielded is held.
    """
    linears, statistics, limits = linears_of(model), context.calibration, Limits.of_device()
    is_wide = not any(limits.allow(2, each.in_features, 0) for each in linears.values())
    alone = alone or statistics.collected or is_wide
    groups = statistics.shared()
    # Layers that wait for others of their shape are in no block that is finished.
    at_once = 1 if alone else limits.blocks
    finished = runs(model, groups, at_once or len(blocks(model)), context.progress if at_once else None, statistics)
    with tqdm(total=len(groups), desc=name, unit="input", mininterval=5, leave=False) as bar:
        for run in finished:
            layers = (
                Layers.of(
                    names,
                    [linears[each].weight for each in names],
                    statistics.second_moment(first, context.device),
                    damp,
                    act_order,
                )
                for first, names in run.items()
            )
            for batch in batches(layers, alone, limits):
                yield batch
                bar.update(len(batch))
                del batch


def batches(layers: Iterable[Layers], alone: bool, limits: Limits) -> Iterator[list[Layers]]:
    """Yield ``layers`` in lists that can be swept together; one by one, as they come, if ``alone``.

    No reference to a list that was yielded is held: the factor of a wide input may be as large as all else.
    """
    waiting: dict[tuple[int, ...], list[Layers]] = {}
    for each in layers:
        shape = (len(each.order), *each.heights)
        batch = waiting.setdefault(shape, [])
        batch.append(each)
        if alone or not limits.allow(len(batch) + 1, len(each.order), sum(each.heights)):
            del each, batch
            yield waiting.pop(shape)
        elif 4 * sum(map(_waiting_values, waiting.values())) > limits.bytes:
            del each, batch
            yield waiting.pop(max(waiting, key=lambda shape: _waiting_values(waiting[shape])))
    yield from waiting.values()


def _waiting_values(batch: list[Layers]) -> int:
    """Return the values of the factors of ``batch``."""
    return sum(each.B.numel() for each in batch)


def stack_weights(batch: list[Layers]) -> Tensor:
    """Return the weights of ``batch`` as float32 [inputs, columns, rows], dead columns zero.

    Rows never mix, so all layers that share an input are concatenated.
    """
    columns, rows = len(batch[0].order), sum(batch[0].heights)
    W = torch.empty(len(batch), columns, rows, device=batch[0].B.device)
    for out, layers in zip(W, batch, strict=True):
        for transposed, weight in zip(out.split(layers.heights, dim=1), layers.weights, strict=True):
            # The device transposes faster, and half the bytes reach it.
            transposed.copy_(weight.to(W.device).T)
        out[layers.dead] = 0
    return W


@dataclass(frozen=True)
class Leaf:
    """A faster way through up to so many ``columns`` than one by one.

    ``sweep(E, start, stop)`` does with those of W what ``project`` does with each, and passes the errors on among them.
    """

    columns: int
    sweep: Callable[[Tensor, int, int], object]


def sweep(
    W: Tensor,
    B: Tensor,
    project: Callable[[int, Tensor, Tensor], object] | Leaf,
    begin: Callable[[int, int, Tensor], object] | None = None,
    segment: int = 0,
) -> Tensor:
    """Replace the columns of ``W`` float32 [inputs, columns, rows] by Q in place; return E, shaped like W.

    ``B`` is float32 [inputs, columns, columns], as in ``Layers``. ``project(j, w, e)`` is called for every column
    when it is its turn: it overwrites ``w`` [inputs, rows], the column's updated value, by its Q, and ``e`` [inputs,
    rows], the column's original value, by its error. ``begin(start, stop, current)`` is called before every
    ``segment`` columns, with the weights [inputs, columns of the segment, rows] that best compensate for all errors
    before ``start``. A ``Leaf`` in the place of ``project`` does for a few columns at once what it does for each.
    """
    columns = W.shape[1]
    segment = segment or columns
    E = W.clone()
    strip = project.columns if isinstance(project, Leaf) else LEAF

    # A function that named itself would be a cycle, and hold all of these matrices until Python looks for cycles.
    def visit(start: int, stop: int, again: Callable[..., None]) -> None:
        width = stop - start
        if begin and start % segment == 0 and (width == segment or (width < segment and stop == columns)):
            begin(start, stop, current(start, stop))
        if width <= strip and width <= segment:
            if isinstance(project, Leaf):
                project.sweep(E, start, stop)
            else:
                sweep_strip(project, start, stop)
            return
        middle = _middle(start, stop, segment, strip)
        again(start, middle, again)
        W[:, middle:stop].baddbmm_(B[:, middle:stop, start:middle], E[:, start:middle])
        again(middle, stop, again)

    def current(start: int, stop: int) -> Tensor:
        # W has what arrives from columns before the segment. Columns of the segment that take it up pass a
        # share on to those right of them, like an error: shift_j = arrives_j - Σ_k<j B_jk shift_k.
        updated = W[:, start:stop]
        if not start:
            return updated
        original = E[:, start:stop]
        inverse = torch.linalg.solve_triangular(
            B[:, start:stop, start:stop], torch.eye(stop - start, device=W.device), upper=False, unitriangular=True
        )
        return torch.baddbmm(original, inverse, updated - original)

    def sweep_strip(project: Callable[[int, Tensor, Tensor], object], start: int, stop: int) -> None:
        strip = W[:, start:stop]
        arrives = B[:, start:stop, start:stop].unsqueeze(3).unbind(2)
        for i, (w, e) in enumerate(zip(strip.unbind(1), E[:, start:stop].unbind(1), strict=True), start=1):
            project(start + i - 1, w, e)
            if start + i < stop:
                strip[:, i:].addcmul_(arrives[i - 1][:, i:], e.unsqueeze(1))

    with torch.inference_mode():
        visit(0, columns, visit)
    return E


def _middle(start: int, stop: int, segment: int, strip: int) -> int:
    """Return the column to halve at: between segments if there are several, else between strips of so many columns."""
    unit = segment if stop - start > segment else strip
    units = -(-(stop - start) // unit)
    return start + units // 2 * unit
