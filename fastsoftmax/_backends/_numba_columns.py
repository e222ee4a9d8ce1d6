# What is jitted or staged is not Python to a type checker: Numba types it, from the arguments.
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-untyped-calls=False
# mypy: check-untyped-defs=False
"""Rows that lie side by side, one in each lane: columns of an array, or of a tile into which short rows are turned.
They are no longer than a block; _numba_parts takes longer ones block by block.

A strip is up to ROOM columns, a multiple of sixteen. It is gone through from the top line by line, since that is how it
lies in memory; all that is known of its columns stands in the ledger, which stays in the cache.

Lost: gathering columns into the rows of a tile, though by squares in registers: 1.2 to 2.3 times slower, and as fast
for fewer than sixteen columns only, where it is what is done. Strips of sixteen columns: up to twice as slow.
"""

from __future__ import annotations

import numpy as np
from numba import types

from fastsoftmax._backends._numba_functions import base_of, shift_of, term
from fastsoftmax._backends._numba_lanes import (
    WIDTH,
    jit,
    larger,
    least,
    load_lanes,
    rounded,
    staged,
    store_lanes,
    where,
)
from fastsoftmax._backends._numba_sums import (
    COUNT,
    EIGHTS,
    FLOOR,
    GROUP,
    HIGH,
    LOW,
    LOWEST,
    LOWS,
    MAGIC,
    MAXIMA,
    MAXIMUM,
    ROOM,
    SCALES,
    SHIFT,
    SUMS,
    TERM,
    TOP,
    TOTAL,
    TOTAL_LOW,
    add_group,
    add_lanes,
    close_log_softmax,
    close_log_sum_exp,
    close_softmax,
    get,
    lowered,
    put,
    scaled_part,
    scaled_peak,
    which,
)

LINES = 8  # lines whose maximum is taken at once
nothing = staged(lambda *_: types.void)


# ---- steps: sixteen columns from column v on, and one line or a few ----


@nothing
def start(narrow, wide, v):
    """No maximum, no sum."""
    for entry in (MAXIMA, *range(EIGHTS, EIGHTS + 8)):
        put(narrow, entry, v, 0.0)
    put(narrow, MAXIMUM, v, -np.inf)
    for entry in (*range(SUMS, SUMS + 8), *range(LOWS, LOWS + 8)):
        put(wide, entry, v, 0.0)


@nothing
def raise_maxima(x, pitch, i, last, v, narrow):
    """Over some lines from line i on; the last one as often as it takes."""
    m = get(narrow, MAXIMUM, v)
    for line in range(LINES):
        m = larger(load_lanes(x, least(i + line, last) * pitch + v), m)
    put(narrow, MAXIMUM, v, m)


@staged(lambda narrow, v: types.intp)
def open_columns(narrow, v):
    """From the maxima all that terms need; which of the columns are far from 0."""
    c, n = shift_of(get(narrow, MAXIMUM, v))
    for entry, value in zip((MAGIC, LOWEST, SHIFT, FLOOR), base_of(c, n), strict=True):
        put(narrow, entry, v, value)
    return which(c, "!=", 0.0)


def visitor(masked, far):
    """What is done with a line's terms besides adding them to one of the eights: stored in y, or masked and counted."""

    def visit(x, i, y, j, narrow, k, v):
        t = load_lanes(x, i + v)
        u = term(t, *[get(narrow, entry, v) for entry in (MAGIC, LOWEST, SHIFT, FLOOR)[: 4 if far else 2]])
        if masked:
            m = get(narrow, MAXIMUM, v)
            u = where(t, "==", m, 0.0, u)
            put(narrow, MAXIMA, v, get(narrow, MAXIMA, v) + where(t, "==", m, 1.0, u.like(0.0)))
        else:
            store_lanes(y, j + v, u)
        put(narrow, k + EIGHTS, v, get(narrow, k + EIGHTS, v) + u)

    return nothing(visit)


store_near, store_far = visitor(False, False), visitor(False, True)
mask_near, mask_far = visitor(True, False), visitor(True, True)


@nothing
def end_group(narrow, wide, k, v):
    """Eights into the sums."""
    s = get(narrow, k + EIGHTS, v)
    high, low = add_group(get(wide, k + SUMS, v), get(wide, k + LOWS, v), s)
    put(wide, k + SUMS, v, high)
    if s.dtype == types.float64:
        put(wide, k + LOWS, v, low)
    put(narrow, k + EIGHTS, v, 0.0)


@nothing
def total_of(narrow, wide, v):
    """The sums, folded."""
    sums = [(get(wide, SUMS + k, v), get(wide, LOWS + k, v)) for k in range(8)]
    while len(sums) > 1:
        half = len(sums) // 2
        sums = [add_lanes(*a, *b, narrow.dtype) for a, b in zip(sums[:half], sums[half:], strict=True)]
    count = get(narrow, MAXIMA, v).cast(types.float64)
    for entry, value in zip((TOTAL, TOTAL_LOW, COUNT), (*sums[0], count), strict=True):
        put(wide, entry, v, value)


@nothing
def scale(y, i, narrow, v):
    inverse = [get(narrow, entry, v) for entry in (HIGH, LOW, TERM, TOP)]
    store_lanes(y, i + v, scaled_peak(load_lanes(y, i + v), inverse))


@nothing
def scale_part(y, i, narrow, v):
    store_lanes(y, i + v, scaled_part(load_lanes(y, i + v), [get(narrow, SCALES + k, v) for k in range(6)]))


@nothing
def lower(x, i, y, j, narrow, v):
    store_lanes(y, j + v, lowered(load_lanes(x, i + v), [get(narrow, HIGH, v), get(narrow, LOW, v)]))


@nothing
def copy(x, i, y, j):
    store_lanes(y, j, load_lanes(x, i))


# ---- passes over a strip ----


@jit
def open_strip(x, pitch, width, n, narrow, wide):
    """The maxima and the bases; whether any column is far from 0."""
    for v in range(0, width, WIDTH):
        start(narrow, wide, v)
    for i in range(0, n, LINES):
        for v in range(0, width, WIDTH):
            raise_maxima(x, pitch, i, n - 1, v, narrow)
    far = 0
    for v in range(0, width, WIDTH):
        far |= open_columns(narrow, v)
    return far != 0


@jit
def sum_strip_with(visit, x, x_pitch, y, y_pitch, width, n, narrow, wide):
    for group in range(0, n, GROUP):
        for i in range(group, min(group + GROUP, n)):
            for v in range(0, width, WIDTH):
                visit(x, i * x_pitch, y, i * y_pitch, narrow, i & 7, v)
        for k in range(min(8, n - group)):
            for v in range(0, width, WIDTH):
                end_group(narrow, wide, k, v)
    for v in range(0, width, WIDTH):
        total_of(narrow, wide, v)


@jit
def sum_strip(near, far, x, x_pitch, y, y_pitch, width, n, narrow, wide):
    """Maxima and sums of up to a block."""
    if open_strip(x, x_pitch, width, n, narrow, wide):
        sum_strip_with(far, x, x_pitch, y, y_pitch, width, n, narrow, wide)
    else:
        sum_strip_with(near, x, x_pitch, y, y_pitch, width, n, narrow, wide)


@jit
def close_strip(close, width, narrow, wide):
    """Whether any column is undefined."""
    undefined = False
    for v in range(0, width, WIDTH):
        undefined |= close(narrow, wide, v)
    return undefined


@jit
def fill_nan(y, pitch, width, n, narrow):
    for k in range(width):
        if narrow[HIGH * ROOM + k] != narrow[HIGH * ROOM + k]:
            for i in range(n):
                y[i * pitch + k] = rounded(np.nan, y)


@jit
def lower_strip(x, x_pitch, y, y_pitch, width, n, narrow, wide):
    undefined = close_strip(close_log_softmax, width, narrow, wide)
    for i in range(n):
        for v in range(0, width, WIDTH):
            lower(x, i * x_pitch, y, i * y_pitch, narrow, v)
    if undefined:
        fill_nan(y, y_pitch, width, n, narrow)


@jit
def copy_results(y, width, narrow, wide, log_n):
    for v in range(0, width, WIDTH):
        close_log_sum_exp(narrow, wide, v, log_n)
        copy(narrow, HIGH * ROOM + v, y, v)


@jit
def softmax_strip(x, x_pitch, y, y_pitch, width, n, narrow, wide, _):
    sum_strip(store_near, store_far, x, x_pitch, y, y_pitch, width, n, narrow, wide)
    undefined = close_strip(close_softmax, width, narrow, wide)
    for i in range(n):
        for v in range(0, width, WIDTH):
            scale(y, i * y_pitch, narrow, v)
    if undefined:
        fill_nan(y, y_pitch, width, n, narrow)


@jit
def log_softmax_strip(x, x_pitch, y, y_pitch, width, n, narrow, wide, _):
    sum_strip(mask_near, mask_far, x, x_pitch, x, x_pitch, width, n, narrow, wide)
    lower_strip(x, x_pitch, y, y_pitch, width, n, narrow, wide)


@jit
def log_sum_exp_strip(x, x_pitch, y, y_pitch, width, n, narrow, wide, log_n):
    sum_strip(mask_near, mask_far, x, x_pitch, x, x_pitch, width, n, narrow, wide)
    copy_results(y, width, narrow, wide, log_n)
