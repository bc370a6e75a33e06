"""A strip of columns of a sweep in one launch on a GPU.

What hemorrhage.compress.solvers.columns does column by column a kernel does for up to ``COLUMNS`` of them, with the
names that it has: a program holds some rows of a strip, fits the grids of their groups when it reaches them, rounds
column by column and passes the errors on to the columns to the right. Rows never mix, so each may be rounded to numbers
of another format; its ``RowFormat`` says how.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

COLUMNS = 128
"""Columns of a strip."""

ROWS = 32
"""Rows of a program: a strip of them stays in its registers."""

SYMMETRIC, ASYMMETRIC, SCALED, POWERS, GIVEN = range(5)
"""How a row's scale is fitted: of integers; of E4M3 over one of the layer; a power of two; not in the kernel."""

FITTED_BY = {SYMMETRIC: 1, ASYMMETRIC: 1, SCALED: 2, POWERS: 4, GIVEN: 0}
"""The kernel's flag of each."""


class RowFormat(NamedTuple):
    """How the kernel rounds a row.

    Numbers lie from ``low`` to ``high``, of integers as the row's zero point says. The power of two below a number,
    times ``share``, at least ``least`` and at most ``most``, has a last bit of what numbers there are apart. ``kind``
    fits a scale, from the numbers' reach over ``steps``.
    """

    low: float
    high: float
    share: float
    least: float
    most: float
    kind: int
    steps: float

    @classmethod
    def integers(cls, bits: int, symmetric: bool) -> RowFormat:
        """Return that of integers of ``bits``."""
        return cls(0, 0, 0, 1.5 * 2**23, 1.5 * 2**23, SYMMETRIC if symmetric else ASYMMETRIC, 2**bits - 1)

    @classmethod
    def e2m1(cls, kind: int) -> RowFormat:
        """Return that of FP4, whose scales are of ``kind``."""
        share = 1.5 * 2**22
        return cls(-6, 6, share, share, 4 * share, kind, 4 if kind == POWERS else 6)

    @classmethod
    def e4m3(cls, kind: int) -> RowFormat:
        """Return that of FP8, whose scales are of ``kind``."""
        share = 1.5 * 2**20
        return cls(-448, 448, share, 2**-6 * share, 2**8 * share, kind, 256 if kind == POWERS else 448)


def is_available(where: torch.device) -> bool:
    """Return whether the kernel runs on a device: Triton has no other than NVIDIA's here."""
    return where.type == "cuda" and torch.version.hip is None and find_spec("triton") is not None


class Strips:
    """Strips of one sweep, and the scales of its groups.

    ``Δ``, ``first`` and ``last`` float32 [inputs, groups, rows]: of integers the scale, the lowest and the highest step
    from zero; of other numbers what they are multiplied with and the scale as it is stored.
    """

    def __init__(
        self,
        formats: list[tuple[RowFormat, int]],
        width: int,
        shape: torch.Size,
        dtype: torch.dtype,
        where: torch.device,
        totals: Tensor | None = None,
        keep_zeros: bool = False,
    ) -> None:
        """Take the ``formats`` of so many rows each, one after the other; ``width`` columns share a scale of ``dtype``.

        ``shape``: of the weights [inputs, columns, rows]; ``totals`` float32 [inputs]: the scales of layers.
        """
        inputs, columns, rows = shape
        self.formats = formats
        self.width = width
        self.of_rows = torch.cat(
            [torch.tensor(each, dtype=torch.float32).unsqueeze(1).expand(-1, count) for each, count in formats], dim=1
        ).to(where)
        self.Δ, self.first, self.last = torch.ones(3, inputs, -(-columns // width), rows, device=where).unbind(0)
        self.group_of = (torch.arange(columns, device=where, dtype=torch.int32) // width).repeat(inputs, 1)
        self.totals = torch.ones(inputs, device=where) if totals is None else totals
        self.dtype, self.keep_zeros = dtype, keep_zeros
        self.flags = {FITTED_BY[each.kind] for each, _ in formats}

    @property
    def fits(self) -> bool:
        """Whether the kernel fits the scales: groups are whole in a strip, and no other row has a part in them."""
        return COLUMNS % self.width == 0 and 0 not in self.flags

    def put(self, scales: Sequence[Sequence[Tensor]], groups: Tensor) -> None:
        """Take the ``scales`` of all groups, and which of them each column has: int64 [inputs, columns]."""
        for number, each in enumerate(scales):
            self.put_next(each, number)
        self.group_of = groups.int()

    def put_next(self, scales: Sequence[Tensor], number: int) -> None:
        """Take the scales Δ, first and last, each [inputs, rows], of the group of that number."""
        for table, values in zip((self.Δ, self.first, self.last), scales, strict=True):
            table[:, number] = values

    def scales(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return Δ, first and last of each group, each [inputs, rows]."""
        return list(zip(*(table.unbind(1) for table in (self.Δ, self.first, self.last)), strict=True))

    def sweep(self, W: Tensor, E: Tensor, B: Tensor, start: int, stop: int, fit: bool) -> None:
        """Sweep the columns from ``start`` to ``stop``, as in hemorrhage.compress.solvers.columns.

        ``fit``: their scales are fitted; else they are there, that of a column is number ``group_of`` [inputs, columns]
        of its input.
        """
        from hemorrhage.compress.solvers.strip_kernel import sweep_strip

        inputs, columns, rows = W.shape
        sweep_strip[(-(-rows // ROWS), inputs)](
            W[:, start:stop], E[:, start:stop], B[:, start:stop, start:stop],
            self.Δ, self.first, self.last, self.group_of, self.of_rows, self.totals,
            rows, stop - start, start, columns, self.Δ.shape[1], W.stride(0), B.stride(0), B.stride(1),
            WIDTH=self.width if fit else 0, KEEP=self.keep_zeros, KINDS=sum(self.flags),
            DTYPE=str(self.dtype).removeprefix("torch."), EPS=torch.finfo(self.dtype).eps,
            COLUMNS=COLUMNS, ROWS=ROWS,
        )  # fmt: skip
