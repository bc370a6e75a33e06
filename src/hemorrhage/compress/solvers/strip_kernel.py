"""The kernel of hemorrhage.compress.solvers.strip, in Triton's language. Only imported where Triton is."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _nearest(x, low, high, share, least, most):
    """Round ``x`` between ``low`` and ``high`` to numbers whose spacing grows with their binade."""
    x = tl.minimum(tl.maximum(x, low), high)
    binade = (x.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    # A number with the last bit of that worth, when it is added and taken away, leaves whole multiples.
    large = tl.minimum(tl.maximum(binade * share, least), most)
    return (x + large) - large


@triton.jit
def _whole(x):
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _stored(scale, DTYPE: tl.constexpr):
    """Round scales to the checkpoint's type."""
    if DTYPE == "bfloat16":
        # To the nearest, ties to even; what a cast does is not the same everywhere.
        bits = scale.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        return bits.to(tl.float32, bitcast=True)
    if DTYPE == "float16":
        return scale.to(tl.float16).to(tl.float32)
    return scale


@triton.jit
def sweep_strip(
    W, E, B, Δs, firsts, lasts, group_of, of_rows, total,
    rows, columns, first_column, all_columns, groups,
    w_input, b_input, b_column,
    WIDTH: tl.constexpr, KEEP: tl.constexpr, KINDS: tl.constexpr, DTYPE: tl.constexpr, EPS: tl.constexpr,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Sweep ``columns`` of W and E [inputs, columns, rows], whose first is ``first_column`` of ``all_columns``.

    ``WIDTH`` columns share a scale that is fitted here; with 0 all scales are there already, that of a column is
    number ``group_of`` [inputs, all_columns]. Δs, firsts, lasts: [inputs, groups, rows]. ``of_rows``: RowFormat's
    numbers of each row [7, rows]. ``KINDS``: 1 for integers, 2 for scales of E4M3, 4 for powers of two, added.
    """
    # All inputs together may have more weights than 32 bits count.
    index = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    is_row = row < rows
    here = (column[:, None] < columns) & is_row[None, :]
    W += index * w_input + row
    E += index * w_input + row
    B += index * b_input
    tables = index * groups * rows + row
    tile = tl.load(W[None, :] + column[:, None] * rows, mask=here, other=0.0)
    low = tl.load(of_rows + row, mask=is_row, other=0.0)
    high = tl.load(of_rows + rows + row, mask=is_row, other=0.0)
    share = tl.load(of_rows + 2 * rows + row, mask=is_row, other=0.0)
    least = tl.load(of_rows + 3 * rows + row, mask=is_row, other=0.0)
    most = tl.load(of_rows + 4 * rows + row, mask=is_row, other=0.0)
    Δ = tl.full((ROWS,), 1.0, tl.float32)
    begin = 0
    while begin < columns:
        end = columns
        if WIDTH > 0:
            end = tl.minimum(begin + WIDTH, columns)
            fitted = tables + (first_column + begin) // WIDTH * rows
            # What the columns before the group left takes its own way through the group: see columns.current.
            inside = here & (column[:, None] >= begin) & (column[:, None] < end)
            original = tl.load(E[None, :] + column[:, None] * rows, mask=inside, other=0.0)
            shift = tl.where(inside, tile - original, 0.0)
            for k in range(begin, end - 1):
                passing = tl.sum(tl.where(column[:, None] == k, shift, 0.0), 0)
                below = (column > k) & (column < end)
                B_jk = tl.load(B + column * b_column + k, mask=below, other=0.0)
                shift -= B_jk[:, None] * passing[None, :]
            group = tl.where(inside, original + shift, 0.0)
            if KEEP:
                group = tl.where(original == 0.0, 0.0, group)
            # Zero is on every grid.
            smallest, largest = tl.min(group, 0), tl.max(group, 0)
            reach = tl.maximum(-smallest, largest)
            kind = tl.load(of_rows + 5 * rows + row, mask=is_row, other=0.0)
            steps = tl.load(of_rows + 6 * rows + row, mask=is_row, other=1.0)
            scale = tl.full((ROWS,), 1.0, tl.float32)
            Δ = scale
            if KINDS & 1:
                span = tl.where(kind == 0.0, 2.0 * reach, largest - smallest)
                whole = _stored(tl.div_rn(span, steps), DTYPE)
                whole = tl.where(whole == 0.0, EPS, whole)
                half = (steps + 1.0) * 0.5
                zero = _whole(tl.minimum(tl.maximum(-half - tl.div_rn(smallest, whole), -half), half - 1.0))
                zero = tl.where(kind == 0.0, 0.0, zero)
                is_whole = kind < 2.0
                low = tl.where(is_whole, -half - zero, low)
                high = tl.where(is_whole, half - 1.0 - zero, high)
                Δ = tl.where(is_whole, whole, Δ)
                scale = tl.where(is_whole, low, scale)
            if KINDS & 2:
                G = tl.load(total + index)
                e4m3 = _nearest(tl.div_rn(reach, steps) * G, -448.0, 448.0, 1572864.0, 24576.0, 402653184.0)
                e4m3 = tl.where(e4m3 == 0.0, 0.125, e4m3)
                Δ = tl.where(kind == 2.0, tl.div_rn(e4m3, G), Δ)
                scale = tl.where(kind == 2.0, e4m3, scale)
            if KINDS & 4:
                # What is above 1.75 times a power of two counts as the next one.
                power = ((reach.to(tl.int32, bitcast=True) + 0x200000) & 0x7F800000).to(tl.float32, bitcast=True)
                power = tl.div_rn(power, steps)
                smallest_power = tl.full((ROWS,), 0x400000, tl.int32).to(tl.float32, bitcast=True)
                power = tl.maximum(power, smallest_power)
                Δ = tl.where(kind == 3.0, power, Δ)
                scale = tl.where(kind == 3.0, power, scale)
            tl.store(Δs + fitted, Δ, mask=is_row)
            tl.store(firsts + fitted, scale, mask=is_row)
            tl.store(lasts + fitted, high, mask=is_row)
        for j in range(begin, end):
            if WIDTH == 0:
                at = tables + tl.load(group_of + index * all_columns + first_column + j) * rows
                Δ = tl.load(Δs + at, mask=is_row, other=1.0)
                if KINDS & 1:
                    is_whole = tl.load(of_rows + 5 * rows + row, mask=is_row, other=0.0) < 2.0
                    low = tl.where(is_whole, tl.load(firsts + at, mask=is_row, other=0.0), low)
                    high = tl.where(is_whole, tl.load(lasts + at, mask=is_row, other=0.0), high)
            w = tl.sum(tl.where(column[:, None] == j, tile, 0.0), 0)
            of_column = tl.load(E + j * rows, mask=is_row, other=0.0)
            q = _nearest(tl.div_rn(w, Δ), low, high, share, least, most)
            if KEEP:
                q = tl.where(of_column == 0.0, 0.0, q)
            e = of_column - q * Δ
            tl.store(W + j * rows, q, mask=is_row)
            tl.store(E + j * rows, e, mask=is_row)
            B_jk = tl.load(B + column * b_column + j, mask=(column > j) & (column < columns), other=0.0)
            tile += B_jk[:, None] * e[None, :]
        begin = end
