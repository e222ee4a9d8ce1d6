# What is jitted or staged is not Python to a type checker: Numba types it, from the arguments.
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-untyped-calls=False
# mypy: check-untyped-defs=False
"""Rows longer than a block, whose parts threads share: maximum and sum of each, then the last pass; c/parts.h in Numba.

All threads run the same function with the same `parts` and `claims`. parts holds four numbers for each part of the row:
the maximum, the sum (high and low) and the count. claims counts, from `slot` on, the parts that were claimed to be
summed, those that are summed, and those that were claimed for the last pass. Nobody goes on to that before all are
summed; they are joined in order, by everyone, whoever summed them.
"""

from __future__ import annotations

import numpy as np
from numba import types

from fastsoftmax._backends import _numba_sums as sums
from fastsoftmax._backends._numba_columns import close_strip, copy_results, lower_strip, sum_strip
from fastsoftmax._backends._numba_columns import fill_nan as fill_columns
from fastsoftmax._backends._numba_columns import mask_far as mask_line_far
from fastsoftmax._backends._numba_columns import mask_near as mask_line_near
from fastsoftmax._backends._numba_columns import scale_part as scale_line
from fastsoftmax._backends._numba_columns import store_far as store_line_far
from fastsoftmax._backends._numba_columns import store_near as store_line_near
from fastsoftmax._backends._numba_lanes import WIDTH, Lanes, _first, added, advanced, jit, rounded, seen, spread, staged
from fastsoftmax._backends._numba_rows import (
    block_sum,
    fill_nan,
    largest,
    lower,
    map_lanes,
    mask_far,
    mask_near,
    scaled,
    store_far,
    store_near,
)
from fastsoftmax._backends._numba_sums import (
    BLOCK,
    COUNT,
    HIGH,
    MAXIMUM,
    ROOM,
    SCALES,
    TOTAL,
    TOTAL_LOW,
    close_log_softmax,
    close_log_sum_exp,
    close_softmax,
    enter,
    scales_of,
    with_part,
)

STEPS = 3  # that are counted
PATIENCE = 1 << 14  # looks at what others have done before it is better to sleep: they may need this processor


@jit
def span(part, n):
    """From which to which element."""
    return part * BLOCK, min((part + 1) * BLOCK, n)


@jit
def begun(claims, slot, parts):
    """Whether the last pass of all parts has been claimed: by threads that will not return before they are done."""
    return seen(claims, slot + 2) >= parts.shape[1]


@jit
def as_it_is(x, begin, end):
    """The maximum of a part, and what its elements are counted from."""
    return largest(x, begin, end), x


@jit
def sum_parts(read, source, near, far, y, n, parts, claims, slot):
    """Whether all are summed. read(source, begin, end) is like `as_it_is`."""
    i = added(claims, slot, 1)
    while i < parts.shape[1]:
        begin, end = span(i, n)
        m, x = read(source, begin, end)
        parts[0, i] = m
        parts[1, i], parts[2, i], parts[3, i] = block_sum(near, far, x, y, begin, end, m)
        added(claims, slot + 1, 1)
        i = added(claims, slot, 1)
    looks = 0
    while seen(claims, slot + 1) < parts.shape[1] and looks < PATIENCE:
        looks += 1
    return looks < PATIENCE


@jit
def join(x, parts, narrow, wide, k):
    """The row, as the ledger's row k."""
    m = -np.inf
    for i in range(parts.shape[1]):
        m = max(m, parts[0, i])
    narrow[MAXIMUM * ROOM + k] = rounded(m, x)
    row = 0.0, 0.0, 0.0
    for i in range(parts.shape[1]):
        row = with_part(row, rounded(m, x), parts[0, i], parts[1, i], parts[2, i], parts[3, i])
    enter(wide, k, *row)


@staged(lambda numbers: types.UniTuple(Lanes(numbers.dtype), numbers.count))
def in_lanes(numbers):
    return [spread(number, Lanes(number.dtype)) for number in numbers]


scaled_part = staged(_first)(sums.scaled_part)


@jit
def scale_part(y, begin, end, narrow, m):
    scales = scales_of(narrow, 0, m)
    high, low, peak, _, down, _ = scales
    if high != high:
        fill_nan(y, begin, end)
    elif down == 1 and peak < 0:
        map_lanes(scaled, y, y, begin, end, in_lanes((high, low)))
    else:
        map_lanes(scaled_part, y, y, begin, end, in_lanes(scales))


# ---- a row, which `read` brings from its source to x: whether all of it is done or being done ----


@jit
def long_softmax(read, source, x, y, n, parts, claims, slot, narrow, wide, _):
    if begun(claims, slot, parts):
        return True
    if not sum_parts(read, source, store_near, store_far, y, n, parts, claims, slot):
        return False
    join(x, parts, narrow, wide, 0)
    close_softmax(narrow, wide, 0)
    i = added(claims, slot + 2, 1)
    while i < parts.shape[1]:
        scale_part(y, *span(i, n), narrow, parts[0, i])
        i = added(claims, slot + 2, 1)
    return True


@jit
def long_log_softmax(read, source, x, y, n, parts, claims, slot, narrow, wide, _):
    if begun(claims, slot, parts):
        return True
    if not sum_parts(read, source, mask_near, mask_far, y, n, parts, claims, slot):
        return False
    join(x, parts, narrow, wide, 0)
    close_log_softmax(narrow, wide, 0)
    i = added(claims, slot + 2, 1)
    while i < parts.shape[1]:
        lower(x, y, *span(i, n), narrow, 0)
        i = added(claims, slot + 2, 1)
    return True


@jit
def long_log_sum_exp(read, source, x, y, n, parts, claims, slot, narrow, wide, log_n):
    if seen(claims, slot + 2) > 0:
        return True
    if not sum_parts(read, source, mask_near, mask_far, y, n, parts, claims, slot):
        return False
    if added(claims, slot + 2, 1) == 0:
        join(x, parts, narrow, wide, 0)
        close_log_sum_exp(narrow, wide, 0, log_n)
        y[0] = narrow[HIGH * ROOM]
    return True


# ---- columns ----


@jit
def sum_strip_parts(near, far, x, x_pitch, y, y_pitch, width, n, narrow, wide):
    """Maxima and sums of columns, and for each what it was joined of."""
    parts = np.empty((width, 4, (n + BLOCK - 1) // BLOCK))
    for i in range(parts.shape[2]):
        begin, end = span(i, n)
        p, q = advanced(x, begin * x_pitch), advanced(y, begin * y_pitch)
        sum_strip(near, far, p, x_pitch, q, y_pitch, width, end - begin, narrow, wide)
        for k in range(width):
            parts[k, 0, i], parts[k, 1, i] = narrow[MAXIMUM * ROOM + k], wide[TOTAL * ROOM + k]
            parts[k, 2, i], parts[k, 3, i] = wide[TOTAL_LOW * ROOM + k], wide[COUNT * ROOM + k]
    for k in range(width):
        join(x, parts[k], narrow, wide, k)
    return parts


@jit
def long_softmax_strip(x, x_pitch, y, y_pitch, width, n, narrow, wide, _):
    parts = sum_strip_parts(store_line_near, store_line_far, x, x_pitch, y, y_pitch, width, n, narrow, wide)
    undefined = close_strip(close_softmax, width, narrow, wide)
    for i in range(parts.shape[2]):
        for k in range(width):
            scales = scales_of(narrow, k, parts[k, 0, i])
            for s in range(len(scales)):
                narrow[(SCALES + s) * ROOM + k] = scales[s]
        for line in range(*span(i, n)):
            for v in range(0, width, WIDTH):
                scale_line(y, line * y_pitch, narrow, v)
    if undefined:
        fill_columns(y, y_pitch, width, n, narrow)


@jit
def long_log_softmax_strip(x, x_pitch, y, y_pitch, width, n, narrow, wide, _):
    sum_strip_parts(mask_line_near, mask_line_far, x, x_pitch, x, x_pitch, width, n, narrow, wide)
    lower_strip(x, x_pitch, y, y_pitch, width, n, narrow, wide)


@jit
def long_log_sum_exp_strip(x, x_pitch, y, y_pitch, width, n, narrow, wide, log_n):
    sum_strip_parts(mask_line_near, mask_line_far, x, x_pitch, x, x_pitch, width, n, narrow, wide)
    copy_results(y, width, narrow, wide, log_n)


# ---- rows that were gathered ----


def alone(long_row):
    """Such rows, a pitch apart, by one thread."""

    @jit
    def rows_alone(x, x_pitch, y, y_pitch, rows, n, narrow, wide, log_n):
        parts, claims = np.empty((4, (n + BLOCK - 1) // BLOCK)), np.empty(STEPS, np.intp)
        for k in range(rows):
            claims[:] = 0
            p, q = advanced(x, k * x_pitch), advanced(y, k * y_pitch)
            long_row(as_it_is, p, p, q, n, parts, claims, 0, narrow, wide, log_n)

    return rows_alone
