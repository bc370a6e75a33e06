"""A sweep of columns that rounds them, to the numbers of one format or, as more rows, of several at once.

Rows never mix, so that a column of all settings costs the calls of one, and the factor of its input serves all. With
Δ, a group's scale:

    W    weights [inputs, columns, rows], those of each setting's rows one after the other; as they are swept they
         become steps from zero, ``Q / Δ``, whole ones or numbers of a floating-point format
    E    W - Q with W as before the sweep

The grid of a group is fitted when its first column is reached, on the updated weights; where the order is another than
that of the columns, all are fitted before the first.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from hemorrhage.compress.solvers import strip
from hemorrhage.compress.solvers.columns import Layers, Leaf, stack_factors, stack_weights, sweep
from hemorrhage.compress.solvers.grid import Quantized, code_dtype, fit
from hemorrhage.compress.solvers.number_formats import (
    FLOATS,
    AnyQuantized,
    FloatFormat,
    FormatSettings,
    QuantizedFloats,
    fit_steps,
    layer_total,
    nearest_,
    search_steps,
    spread_largest,
    stored_scales,
)
from hemorrhage.compress.solvers.strip import RowFormat, Strips
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Scales = tuple["Tensor", "Tensor", "Tensor"]
"""Of a group, each [inputs, rows]: Δ, and of integers the lowest and the highest step from zero, of other numbers twice
the scale as it is stored."""


def sweep_formats(
    batch: list[Layers], width: int, variants: Sequence[FormatSettings], dtype: torch.dtype, act_order: bool = False
) -> list[list[Sequence[AnyQuantized]]]:
    """Quantize layers of one shape: of each of ``variants``, for each input, each layer that reads it.

    ``width`` columns share a scale, which is stored in ``dtype``; ``act_order``: ``batch`` has an order of columns. All
    keep zeros, or none does. What is returned is on the device of the sweep, where it is packed faster.
    """
    W = stack_weights(batch)
    stack = Stack([(Floats if each.number else Integers)(batch, each, dtype) for each in variants], W.shape[2])
    if len(variants) > 1:
        W = W.repeat(1, 1, len(variants))
    order = None
    if act_order:
        for group in W.split(width, dim=1):
            stack.fit(group)
        order = torch.stack([layers.order for layers in batch])
        W = torch.stack([w[columns] for w, columns in zip(W, order, strict=True)])
    if strip.is_available(W.device):
        stack.sweep_strips(W, stack_factors(batch), width, order)
    else:
        stack.sweep_columns(W, stack_factors(batch), width, order)
    if order is not None:
        for steps, columns in zip(W, order, strict=True):
            steps[columns] = steps.clone()
    return stack.split(W)


class Rounding(abc.ABC):
    """How one setting rounds its rows of layers of one shape."""

    def __init__(self, batch: list[Layers], settings: FormatSettings, dtype: torch.dtype) -> None:
        """Take the layers, the setting, and the ``dtype`` of stored scales."""
        self.batch, self.settings, self.dtype = batch, settings, dtype

    @property
    def number(self) -> FloatFormat | None:
        """The floating-point format; None for integers."""
        return self.settings.number

    @property
    def totals(self) -> Tensor | None:
        """The scale of each input's layers, which divides those of their groups: float32 [inputs, 1]."""
        return None

    @property
    @abc.abstractmethod
    def row_format(self) -> RowFormat:
        """How a row is rounded, as the kernel is told."""

    @abc.abstractmethod
    def fit(self, group: Tensor, number: int) -> Scales:
        """Return the scales of the group of that ``number``, [inputs, width, rows]."""

    @abc.abstractmethod
    def nearest_(self, q: Tensor, *bounds: Tensor) -> Tensor:
        """Round ``q`` [inputs, rows], counted in steps, in place; ``bounds`` are the second and third of its scales."""

    @abc.abstractmethod
    def split(self, steps: Tensor, scales: tuple[Tensor, Tensor], index: int) -> Sequence[AnyQuantized]:
        """Return each layer of input ``index`` from ``steps`` [columns, rows] away from zero.

        ``scales``: Δ and what comes second, of all groups, each [rows, groups].
        """


class Integers(Rounding):
    """Integers on grids with a zero point or without."""

    @property
    def row_format(self) -> RowFormat:
        """That of integers."""
        return RowFormat.integers(self.settings.bits, self.settings.symmetric)

    def fit(self, group: Tensor, _number: int) -> Scales:
        """Fit grids."""
        half = 2 ** (self.settings.bits - 1)
        grid = fit(group, 1, self.settings, self.dtype)
        return grid.scale, -half - grid.zero, half - 1 - grid.zero

    def nearest_(self, q: Tensor, *bounds: Tensor) -> Tensor:
        """Round to whole steps between the lowest and the highest."""
        lowest, highest = bounds
        return q.round_().clamp_(lowest, highest)

    def split(self, steps: Tensor, scales: tuple[Tensor, Tensor], index: int) -> Sequence[AnyQuantized]:
        """Return codes, scales and zero points."""
        Δ, lowest = scales
        zero = -(2 ** (self.settings.bits - 1)) - lowest
        codes = steps.unflatten(0, (zero.shape[1], -1)).add_(zero.T.unsqueeze(1)).flatten(0, 1)
        integer, heights = code_dtype(self.settings.bits), self.batch[index].heights
        return [
            Quantized(c.contiguous(), s.contiguous(), None if self.settings.symmetric else z.contiguous())
            for c, s, z in zip(
                codes.to(integer).T.contiguous().split(heights),
                Δ.to(self.dtype).split(heights),
                zero.to(integer).split(heights),
                strict=True,
            )
        ]


class Floats(Rounding):
    """Numbers of a floating-point format."""

    @property
    def format(self) -> FloatFormat:
        """The format."""
        return FLOATS[self.settings.format]

    @cached_property
    def totals(self) -> Tensor | None:
        """The scale of each input's layers, which divides those of their groups: float32 [inputs, 1]."""
        where = self.batch[0].B.device
        totals = [
            layer_total([each.to(where) for each in layers.weights], self.format, self.settings.block_scales)
            for layers in self.batch
        ]
        stacked = [total for total in totals if total is not None]
        return torch.stack(stacked) if stacked else None

    @property
    def row_format(self) -> RowFormat:
        """That of the format; the kernel fits no scales that are chosen by their error."""
        kinds = {"e4m3": strip.SCALED, "power": strip.POWERS, "dtype": strip.GIVEN}
        kind = kinds[self.format.scales] if self.settings.block_scales == "max" else strip.GIVEN
        return (RowFormat.e2m1 if self.format.number == "e2m1" else RowFormat.e4m3)(kind)

    @cached_property
    def importance(self) -> Tensor:
        """``R_jj²`` of the columns [inputs, columns]: what an error costs when the columns behind make up for it."""
        importance = torch.empty(len(self.batch), len(self.batch[0].order), device=self.batch[0].B.device)
        for row, layers in zip(importance, self.batch, strict=True):
            row[layers.order] = layers.R_jj.square()
        return importance

    def fit(self, group: Tensor, number: int) -> Scales:
        """Fit scales to the largest magnitudes, or choose them by their error."""
        if self.settings.block_scales == "max":
            largest = spread_largest(group.abs().amax(1), self.format, self.batch[0].heights)
            steps = fit_steps(largest, self.format, self.dtype, self.totals)
        else:
            width = group.shape[1]
            costs = self.importance[:, number * width : (number + 1) * width, None]
            steps = search_steps(group, 1, self.format, self.totals, self.settings.block_scales, costs)
        return steps.Δ, steps.scale, steps.scale

    def nearest_(self, q: Tensor, *_bounds: Tensor) -> Tensor:
        """Round to numbers of the format."""
        return nearest_(q, self.format)

    def split(self, steps: Tensor, scales: tuple[Tensor, Tensor], index: int) -> Sequence[AnyQuantized]:
        """Return numbers and the scales that are stored."""
        total = None if self.totals is None else self.totals[index]
        numbers, heights = steps.to(torch.float8_e4m3fn).T.contiguous(), self.batch[index].heights
        return [
            QuantizedFloats(each.contiguous(), stored_scales(s, self.format, self.dtype), total, self.format)
            for each, s in zip(numbers.split(heights), scales[1].split(heights), strict=True)
        ]


@dataclass
class Stack:
    """Settings that are swept together, so many ``rows`` of each after those of the one before.

    ``scales`` of their groups, as they are fitted.
    """

    settings: list[Rounding]
    rows: int
    scales: list[Scales] = field(default_factory=list)

    def fit(self, group: Tensor) -> None:
        """Fit the scales of the next group [inputs, width, rows of all]."""
        number = len(self.scales)
        of_settings = zip(self.settings, group.split(self.rows, dim=2), strict=True)
        fitted = [each.fit(rows, number) for each, rows in of_settings]
        if len(fitted) == 1:
            self.scales.append(fitted[0])
        else:
            Δ, first, last = (torch.cat(tensors, dim=1) for tensors in zip(*fitted, strict=True))
            self.scales.append((Δ, first, last))

    def sweep_columns(self, W: Tensor, B: Tensor, width: int, order: Tensor | None) -> None:
        """Sweep W column by column; where there is an ``order`` [inputs, columns] all scales are there."""
        kept = self._kept(W)
        parts = list(self._parts())
        if order is not None:
            fitted = [torch.stack(tensors) for tensors in zip(*self.scales, strict=True)]
            inputs = torch.arange(len(W), device=W.device)
            groups = [columns // width for columns in order.unbind(1)]

        def scales_of(j: int) -> Sequence[Tensor]:
            return self.scales[j // width] if order is None else [tensor[groups[j], inputs] for tensor in fitted]

        def begin(start: int, stop: int, group: Tensor) -> None:
            self.fit(group if kept is None else group * kept[:, start:stop])

        def project(j: int, q: Tensor, e: Tensor) -> None:
            Δ, first, last = scales_of(j)
            q.div_(Δ)
            for rows, setting in parts:
                setting.nearest_(q[:, rows], first[:, rows], last[:, rows])
            if kept is not None:
                q.mul_(kept[:, j])
            e.addcmul_(q, Δ, value=-1)

        sweep(W, B, project, begin if order is None else None, width)

    def sweep_strips(self, W: Tensor, B: Tensor, width: int, order: Tensor | None) -> None:
        """Do as ``sweep_columns`` does, in strips of columns by a kernel."""
        kept = self._kept(W)
        totals = next((each.totals for each in self.settings if each.totals is not None), None)
        formats = [(each.row_format, self.rows) for each in self.settings]
        strips = Strips(formats, width, W.shape, self.settings[0].dtype, W.device, totals, kept is not None)
        fits = order is None and strips.fits
        if order is not None:
            strips.put(self.scales, order // width)

        def begin(start: int, stop: int, group: Tensor) -> None:
            self.fit(group if kept is None else group * kept[:, start:stop])
            strips.put_next(self.scales[-1], start // width)

        def leaf(E: Tensor, start: int, stop: int) -> None:
            strips.sweep(W, E, B, start, stop, fits)

        if fits or order is not None:
            sweep(W, B, Leaf(strip.COLUMNS, leaf))
        else:
            sweep(W, B, Leaf(strip.COLUMNS, leaf), begin, width)
        if fits:
            self.scales = strips.scales()

    def split(self, W: Tensor) -> list[list[Sequence[AnyQuantized]]]:
        """Return the layers of each setting, for each input, from the steps W [inputs, columns, rows of all]."""
        Δ, first, _ = (torch.stack(tensors, dim=1) for tensors in zip(*self.scales, strict=True))
        of_settings = zip(self.settings, *(each.split(self.rows, dim=2) for each in (W, Δ, first)), strict=True)
        return [
            [setting.split(steps[index], (of_steps[index].T, of_first[index].T), index) for index in range(len(W))]
            for setting, steps, of_steps, of_first in of_settings
        ]

    def _kept(self, W: Tensor) -> Tensor | None:
        """Return which weights are not zero, where zeros stay."""
        return W != 0 if self.settings[0].settings.keep_zeros else None

    def _parts(self) -> Iterator[tuple[slice, Rounding]]:
        """Yield the rows that are rounded in one call, and how."""
        start = 0
        for _, alike in itertools.groupby(self.settings, lambda each: each.number and each.number.number):
            some = list(alike)
            yield slice(start, start + len(some) * self.rows), some[0]
            start += len(some) * self.rows
