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
from fastsoftmax._backends._numba_lanes import Lanes, _first, added, advanced, jit, rounded, seen, spread, staged
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
    HIGH,
    MAXIMUM,
    ROOM,
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
def sum_parts(near, far, x, y, n, parts, claims, slot):
    """Whether all are summed."""
    i = added(claims, slot, 1)
    while i < parts.shape[1]:
        begin, end = span(i, n)
        m = largest(x, begin, end)
        parts[0, i] = m
        parts[1, i], parts[2, i], parts[3, i] = block_sum(near, far, x, y, begin, end, m)
        added(claims, slot + 1, 1)
        i = added(claims, slot, 1)
    looks = 0
    while seen(claims, slot + 1) < parts.shape[1] and looks < PATIENCE:
        looks += 1
    return looks < PATIENCE


@jit
def join(x, parts, narrow, wide):
    """The row, as the ledger's first."""
    m = -np.inf
    for i in range(parts.shape[1]):
        m = max(m, parts[0, i])
    narrow[MAXIMUM * ROOM] = rounded(m, x)
    row = 0.0, 0.0, 0.0
    for i in range(parts.shape[1]):
        row = with_part(row, rounded(m, x), parts[0, i], parts[1, i], parts[2, i], parts[3, i])
    enter(wide, 0, *row)


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


# ---- a row: whether all of it is done or being done ----


@jit
def long_softmax(x, y, n, parts, claims, slot, narrow, wide, _):
    if begun(claims, slot, parts):
        return True
    if not sum_parts(store_near, store_far, x, y, n, parts, claims, slot):
        return False
    join(x, parts, narrow, wide)
    close_softmax(narrow, wide, 0)
    i = added(claims, slot + 2, 1)
    while i < parts.shape[1]:
        scale_part(y, *span(i, n), narrow, parts[0, i])
        i = added(claims, slot + 2, 1)
    return True


@jit
def long_log_softmax(x, y, n, parts, claims, slot, narrow, wide, _):
    if begun(claims, slot, parts):
        return True
    if not sum_parts(mask_near, mask_far, x, x, n, parts, claims, slot):
        return False
    join(x, parts, narrow, wide)
    close_log_softmax(narrow, wide, 0)
    i = added(claims, slot + 2, 1)
    while i < parts.shape[1]:
        lower(x, y, *span(i, n), narrow, 0)
        i = added(claims, slot + 2, 1)
    return True


@jit
def long_log_sum_exp(x, y, n, parts, claims, slot, narrow, wide, log_n):
    if seen(claims, slot + 2) > 0:
        return True
    if not sum_parts(mask_near, mask_far, x, x, n, parts, claims, slot):
        return False
    if added(claims, slot + 2, 1) == 0:
        join(x, parts, narrow, wide)
        close_log_sum_exp(narrow, wide, 0, log_n)
        y[0] = narrow[HIGH * ROOM]
    return True


def alone(long_row):
    """Such rows, a pitch apart, by one thread."""

    @jit
    def rows_alone(x, x_pitch, y, y_pitch, rows, n, narrow, wide, log_n):
        parts, claims = np.empty((4, (n + BLOCK - 1) // BLOCK)), np.empty(STEPS, np.intp)
        for k in range(rows):
            claims[:] = 0
            long_row(advanced(x, k * x_pitch), advanced(y, k * y_pitch), n, parts, claims, 0, narrow, wide, log_n)

    return rows_alone
