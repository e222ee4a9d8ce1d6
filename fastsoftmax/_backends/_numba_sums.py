# What is jitted or staged is not Python to a type checker: Numba types it, from the arguments.
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-untyped-calls=False
# mypy: check-untyped-defs=False
"""Sums in the one order that all backends keep, and what becomes of them: the same for the lanes of a row and for
columns in lanes.

Rows are worked on some together. What is known of them stands in a ledger of two arrays, one of the rows' type (narrow)
and one of doubles (wide), a column a row, so that whatever is done once a row is done in lanes: a logarithm for one row
takes as long as for sixteen.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types

from fastsoftmax._backends._numba_functions import (
    exp_pair,
    log_of_sum,
    maximum_parts,
    normal,
    power_of_two,
    shift_of,
    times_pair,
    times_power,
    two_sum,
)
from fastsoftmax._backends._numba_lanes import (
    WIDTH,
    Lanes,
    fma,
    jit,
    larger,
    load_lanes,
    load_number,
    spread,
    stack,
    staged,
    store_lanes,
    where,
)

BLOCK = 8192  # elements whose terms are summed in lanes; longer rows are joined of such parts, in order
GROUP = 16  # elements whose two eights are added before they are added to the sums
PEAK = 2.0**-6  # a row whose other terms are a smaller part than this of the sum has a peak
ROOM = 128  # rows that a ledger has room for: 64 are up to a fifth slower, 256 no faster (columns of 512 to 1000)

# The narrow ledger: what the terms are made with, then, in its place, what the last pass takes.
MAXIMUM, MAGIC, LOWEST, SHIFT, FLOOR, MAXIMA, EIGHTS = 0, 1, 2, 3, 4, 5, 6
HIGH, LOW, TERM, TOP = MAGIC, LOWEST, SHIFT, FLOOR
SCALES = EIGHTS  # six, of a part of the row
NARROW = EIGHTS + 8
# The wide one: sums in lanes, their low parts, and the row's total.
SUMS, LOWS, TOTAL, TOTAL_LOW, COUNT = 0, 8, 16, 17, 18
WIDE = COUNT + 1


narrow_ledger = stack(NARROW * ROOM)
wide_ledger = stack(WIDE * ROOM, types.float64)


@jit
def enter(wide, k, total, total_low, count):
    """The sum of row k."""
    wide[TOTAL * ROOM + k], wide[TOTAL_LOW * ROOM + k], wide[COUNT * ROOM + k] = total, total_low, count


@jit
def clear(narrow, wide):
    """Harmless numbers for sixteen rows: what is done in lanes is done for all of them."""
    for k in range(WIDTH):
        narrow[k] = 0
        enter(wide, k, 1, 0, 1)


def get(ledger, entry, v):
    """Sixteen rows' entries, from row v on."""
    return load_lanes(ledger, v + entry * ROOM)


def put(ledger, entry, v, lanes):
    lanes = ledger.new(Lanes(ledger.dtype), None).like(lanes)
    store_lanes(ledger, v + entry * ROOM, lanes)


def which(v, comparison, other):
    """A bit for each lane where the comparison holds; all hold for NaN where it says "uno"."""
    compare = v.builder.fcmp_unordered if comparison == "uno" else v.builder.fcmp_ordered
    bits = v.builder.bitcast(compare(comparison, v.llvm, v.like(other).llvm), ir.IntType(WIDTH))
    return v.new(types.intp, v.builder.zext(bits, ir.IntType(64)))


def add_group(high, low, s):
    """A block's sum in lanes of double, with a group's eights added."""
    if s.dtype == types.float32:
        return high + s.cast(types.float64), low
    high, e = two_sum(high, s)
    return high, low + e


def add_lanes(a, a_low, b, b_low, dtype):
    """Two lanes' sums of terms of a type."""
    if dtype == types.float32:
        return a + b, a_low
    high, e = two_sum(a, b)
    return high, (a_low + b_low) + e


def add_pair(total, total_low, high, low):
    """A sum in two doubles, with another added."""
    total, e = two_sum(total, high)
    return total, total_low + (e + low)


# ---- parts of a row: each has a base of its own, from its own maximum (c/parts.h) ----


def unit_of(part, m):
    """What the terms of a part are in the unit of the row: times (high + low) 2^n. Both are maxima; terms of -inf alone
    are 0 in any unit."""
    maxima = where(part, ">", -np.inf, part, m), m
    (c, n), (c_row, n_row) = [[v.cast(types.float64) for v in shift_of(v)] for v in maxima]
    high, low, e = exp_pair(c, c_row)
    return high, low, e + (n - n_row)


@staged(lambda row, *_: row)
def with_part(row, m, part, high, low, count):
    """A row's (total, low, count) with a part's added: the count too where the maxima are the same, else what the
    part's maxima come to."""
    f, f_low, n = unit_of(part.cast(m.dtype), m)
    pair = times_pair(high, low, f, f_low)
    total = add_pair(*row[:2], *[times_power(v, n) for v in pair])
    c, base = [v.cast(types.float64) for v in shift_of(m)]
    same = where(part, "==", m.cast(types.float64), count, 0.0)
    f, f_low, n = exp_pair(part, c)
    pair = times_pair(count - same, count.like(0.0), f, f_low)
    total = add_pair(*total, *[times_power(v, n + (m.format.boost - base)) for v in pair])
    return *total, row[2] + same


@staged(lambda narrow, *_: types.UniTuple(narrow.dtype, 6))
def scales_of(narrow, k, part):
    """What the last pass of softmax takes of a part of row k: 1 / sum for its terms, TERM and TOP, and what terms are
    multiplied by before, two powers of two."""
    m, high, low, peak, top = [load_number(narrow, k + entry * ROOM) for entry in (MAXIMUM, HIGH, LOW, TERM, TOP)]
    part, furthest = part.cast(m.dtype), -100.0 if m.dtype == types.float32 else -1000.0
    f, f_low, n = unit_of(part, m)
    high, low = times_pair(high.cast(types.float64), low.cast(types.float64), f, f_low)
    upper = (high + low).cast(m.dtype).cast(types.float64) if m.dtype == types.float32 else high
    down = larger(n, furthest)
    numbers = upper, (high - upper) + low, power_of_two(down), power_of_two(larger(n - down, furthest))
    high, low, down, further = [v.cast(m.dtype) for v in numbers]
    return high, low, where(part, "==", m, peak, -1.0), top, down, further


# ---- closing: from a row's sum to what the last pass takes ----


def reciprocal(m, total, low):
    """1 / the sum as two numbers of m's type; the term of a maximum that is nearly all of it, or -1, and its result.

    What rounding took from the maximum's term is put back into the sum: 0.6 ulp less at worst. The term itself stays as
    it is but where it is all but alone: there the result must not pass 1.
    """
    c, n = shift_of(m)
    rounded, lost = [part.cast(types.float64) for part in maximum_parts(m - c, n)]
    s, s_low = normal(total, low + lost)
    inverse = high = 1.0 / s
    if m.dtype == types.float32:
        high = inverse.cast(m.dtype)
        low = (inverse - high.cast(types.float64)).cast(m.dtype)
        top = ((rounded + lost) * inverse).cast(m.dtype)
    else:
        low = fma(-s_low, high, fma(-s, high, s.like(1.0))) * high
        top = fma(rounded, high, fma(rounded, low, lost * high))
    return high, low, where(s - rounded, "<", s * PEAK, rounded, -1.0).cast(m.dtype), top


def log_of_rows(narrow, wide, v):
    """The maxima, the rows' log-sum-exp less these (both in double), and the sums."""
    m, total = get(narrow, MAXIMUM, v), get(wide, TOTAL, v)
    c, n = shift_of(m)
    high, low = maximum_parts((m - c).cast(types.float64), n.cast(types.float64))
    unit = m.format.up_from_64
    log_sum = log_of_sum(get(wide, COUNT, v), total, get(wide, TOTAL_LOW, v), high * unit, low * unit)
    return m.cast(types.float64), log_sum, total


closing = staged(lambda *_: types.boolean)  # whether any row becomes NaN throughout: one whose HIGH is NaN


def any_nan(lanes):
    bits = which(lanes, "uno", lanes)
    return bits.new(types.boolean, bits.builder.icmp_signed("!=", bits.llvm, bits.like(0).llvm))


@closing
def close_softmax(narrow, wide, v):
    """HIGH, LOW: 1 / sum; TERM, TOP: see `reciprocal`."""
    parts = reciprocal(get(narrow, MAXIMUM, v), get(wide, TOTAL, v), get(wide, TOTAL_LOW, v))
    for entry, value in zip((HIGH, LOW, TERM, TOP), parts, strict=True):
        put(narrow, entry, v, value)
    return any_nan(parts[0])


@closing
def close_log_softmax(narrow, wide, v):
    """HIGH, LOW: the log-sum-exp."""
    m, log_sum, total = log_of_rows(narrow, wide, v)
    log_sum = where(m.math("fabs"), "==", np.inf, np.nan, where(total, "==", total, log_sum, np.nan))
    high, low = two_sum(m, log_sum)
    if narrow.dtype == types.float32:
        high = high.cast(narrow.dtype)
        low = ((m - high.cast(types.float64)) + log_sum).cast(narrow.dtype)
    put(narrow, HIGH, v, high)
    put(narrow, LOW, v, low)
    return any_nan(high)


@staged(lambda *_: types.void)
def close_log_sum_exp(narrow, wide, v, log_n):
    """HIGH: the log-sum-exp less log_n. A maximum that is infinite is the result, unless there was a NaN."""
    m, log_sum, total = log_of_rows(narrow, wide, v)
    result = where(m.math("fabs"), "==", np.inf, m, m + (log_sum - spread(log_n, m.kind)))
    result = where(total, "==", total, result, np.nan)
    put(narrow, HIGH, v, result.cast(narrow.dtype))


# ---- the last pass ----


def scaled(term, inverse):
    return fma(term, inverse[0], term * inverse[1])


def scaled_peak(term, inverse):
    return where(term, "==", inverse[2], inverse[3], scaled(term, inverse))


def scaled_part(term, inverse):
    return scaled_peak(term * inverse[4] * inverse[5], inverse)


def lowered(x, k):
    return (x - k[0]) - k[1]
