# What is jitted or staged is not Python to a type checker: Numba types it, from the arguments.
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-untyped-calls=False
# mypy: check-untyped-defs=False
"""A row in lanes, or a part of one: c/rowwise.h in Numba, step for step and bit for bit; for rows of up to a block."""

from __future__ import annotations

import operator

import numpy as np
from llvmlite import ir
from numba import types

from fastsoftmax._backends import _numba_sums as sums
from fastsoftmax._backends._numba_functions import base_of, shift_of, term
from fastsoftmax._backends._numba_lanes import (
    WIDTH,
    Lanes,
    _first,
    _pair,
    advanced,
    fold,
    halves,
    jit,
    larger,
    load,
    load_first,
    load_number,
    load_part,
    load_part_or_zero,
    maximum,
    rounded,
    spread,
    staged,
    store,
    store_first,
    store_part,
    where,
)
from fastsoftmax._backends._numba_sums import (
    HIGH,
    LOW,
    ROOM,
    TERM,
    TOP,
    add_group,
    add_lanes,
    add_pair,
    close_log_softmax,
    close_log_sum_exp,
    close_softmax,
    enter,
    which,
)

# ---- passes over a piece of a row ----


@staged(lambda lanes: lanes.dtype)
def fold_maximum(v):
    return fold(v, larger)


@jit
def largest(x, begin, end):
    """The maximum of a piece of a row, NaN left out; -inf where there is nothing else."""
    a = b = c = d = load_part(x, begin, 0)
    i = begin
    while i + 64 <= end:
        a, b = maximum(load(x, i), a), maximum(load(x, i + 16), b)
        c, d = maximum(load(x, i + 32), c), maximum(load(x, i + 48), d)
        i += 64
    while i < end:
        a = maximum(load_part(x, i, min(WIDTH, end - i)), a)
        i += WIDTH
    return fold_maximum(maximum(maximum(a, b), maximum(c, d)))


@staged(lambda m: types.boolean)
def is_far(m):
    return m.new(types.boolean, m.builder.fcmp_ordered("!=", shift_of(m)[0].llvm, m.like(0.0).llvm))


@staged(lambda m, p: types.UniTuple(Lanes(p.dtype), 5))
def row_base(m, p):
    """The maximum and all that terms need, in lanes."""
    return [spread(v, Lanes(p.dtype)) for v in (m, *base_of(*shift_of(m)))]


def eight(v):
    """A group's two eights of lanes, added."""
    return fold(v, operator.add, 8)


def visitor(masked, far):
    """What is done with terms i .. i + k - 1: stored in y, or masked: 0 for a maximum, and counted."""

    def visit(x, y, i, k, base):
        v = load_first(x, i, k, -np.inf)
        t = term(v, *base[1 : 5 if far else 3])
        if not masked:
            store_first(y, i, k, t)
            return eight(t), i.like(0)
        bits = v.builder.trunc(which(v, "==", base[0]).llvm, ir.IntType(WIDTH))
        count = i.call(f"llvm.ctpop.i{WIDTH}", types.uint16, bits).cast(types.intp)
        return eight(where(v, "==", base[0], 0.0, t)), count

    return staged(lambda x, *_: types.Tuple([Lanes(x.dtype, 8), types.intp]))(visit)


store_near, store_far = visitor(False, False), visitor(False, True)
mask_near, mask_far = visitor(True, False), visitor(True, True)


@staged(lambda base: Lanes(types.float64, 8))
def no_sum(base):
    return spread(base[0].new(types.float64, None).like(0.0), Lanes(types.float64, 8))


@staged(_pair)
def with_group(high, low, s):
    return add_group(high, low, s)


@staged(_pair)
def with_pair(total, total_low, high, low):
    return add_pair(total, total_low, high, low)


@staged(lambda lanes, *_: types.UniTuple(lanes.dtype, 2))
def fold_sum(high, low, s):
    """A block's sum in two doubles; s tells the type of the terms."""
    while isinstance(high.kind, Lanes):
        (a, b), (a_low, b_low) = halves(high), halves(low)
        high, low = add_lanes(a, a_low, b, b_low, s.dtype)
    return high, low


@jit
def block_sum_at(visit, x, y, begin, end, base):
    high = low = no_sum(base)
    count, i = 0, begin
    while i + WIDTH <= end:
        s, k = visit(x, y, i, WIDTH, base)
        high, low = with_group(high, low, s)
        count, i = count + k, i + WIDTH
    if i < end:
        s, k = visit(x, y, i, end - i, base)
        high, low = with_group(high, low, s)
        count += k
    total, total_low = fold_sum(high, low, base[0])
    return total, total_low, count


@jit
def block_sum(near, far, x, y, begin, end, m):
    """The terms of a block as (high, low) in double, and the count of the maxima."""
    if is_far(m):
        return block_sum_at(far, x, y, begin, end, row_base(m, x))
    return block_sum_at(near, x, y, begin, end, row_base(m, x))


# ---- the last pass ----


@jit
def map_lanes(function, x, y, begin, end, parameters):
    """y = function(x, parameters)."""
    i = begin
    while i + WIDTH <= end:
        store(y, i, function(load(x, i), parameters))
        i += WIDTH
    if i < end:
        store_part(y, i, end - i, function(load_part_or_zero(x, i, end - i), parameters))


@jit
def fill_nan(y, begin, end):
    for i in range(begin, end):
        y[i] = rounded(np.nan, y)


@staged(lambda ledger, k: types.UniTuple(Lanes(ledger.dtype), 4))
def of_row(ledger, k):
    """What the last pass takes of row k."""
    return [spread(load_number(ledger, k + entry * ROOM), Lanes(ledger.dtype)) for entry in (HIGH, LOW, TERM, TOP)]


scaled, scaled_peak, lowered = map(staged(_first), (sums.scaled, sums.scaled_peak, sums.lowered))


@jit
def scale(y, n, narrow, k):
    if narrow[HIGH * ROOM + k] != narrow[HIGH * ROOM + k]:
        fill_nan(y, 0, n)
    elif narrow[TERM * ROOM + k] > 0:
        map_lanes(scaled_peak, y, y, 0, n, of_row(narrow, k))
    else:
        map_lanes(scaled, y, y, 0, n, of_row(narrow, k))


@jit
def lower(x, y, begin, end, narrow, k):
    if narrow[HIGH * ROOM + k] != narrow[HIGH * ROOM + k]:
        fill_nan(y, begin, end)
    else:
        map_lanes(lowered, x, y, begin, end, of_row(narrow, k))


# ---- some rows together, a pitch apart ----


@jit
def maxima(x, pitch, rows, n, narrow):
    for k in range(rows):
        narrow[k] = largest(advanced(x, k * pitch), 0, n)


@jit
def softmax_of_known(x, x_pitch, y, y_pitch, rows, n, narrow, wide, _):
    """Of rows whose maxima are in the ledger."""
    for k in range(rows):
        p, q = advanced(x, k * x_pitch), advanced(y, k * y_pitch)
        enter(wide, k, *block_sum(store_near, store_far, p, q, 0, n, narrow[k]))
    close_softmax(narrow, wide, 0)
    for k in range(rows):
        scale(advanced(y, k * y_pitch), n, narrow, k)


@jit
def log_sums_of_known(x, pitch, rows, n, narrow, wide):
    for k in range(rows):
        p = advanced(x, k * pitch)
        enter(wide, k, *block_sum(mask_near, mask_far, p, p, 0, n, narrow[k]))


@jit
def log_softmax_of_known(x, x_pitch, y, y_pitch, rows, n, narrow, wide, _):
    log_sums_of_known(x, x_pitch, rows, n, narrow, wide)
    close_log_softmax(narrow, wide, 0)
    for k in range(rows):
        lower(advanced(x, k * x_pitch), advanced(y, k * y_pitch), 0, n, narrow, k)


@jit
def log_sum_exp_of_known(x, x_pitch, y, y_pitch, rows, n, narrow, wide, log_n):
    log_sums_of_known(x, x_pitch, rows, n, narrow, wide)
    close_log_sum_exp(narrow, wide, 0, log_n)
    for k in range(rows):
        y[k * y_pitch] = narrow[HIGH * ROOM + k]


def after_maxima(of_known):
    """Of rows whose maxima are to be found first."""

    @jit
    def some_rows(x, x_pitch, y, y_pitch, rows, n, narrow, wide, log_n):
        maxima(x, x_pitch, rows, n, narrow)
        of_known(x, x_pitch, y, y_pitch, rows, n, narrow, wide, log_n)

    return some_rows


softmax_rows = after_maxima(softmax_of_known)
log_softmax_rows = after_maxima(log_softmax_of_known)
log_sum_exp_rows = after_maxima(log_sum_exp_of_known)
