# What is jitted or staged is not Python to a type checker: Numba types it, from the arguments.
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-untyped-calls=False
# mypy: check-untyped-defs=False
"""Rows that are divided, biased and masked on their way to where they are worked on: y, or a tile where there is no room.

That pass finds their maxima, too, in place of the one that does nothing else.
"""

from __future__ import annotations

import numpy as np
from numba import types

from fastsoftmax._backends import ROW_REDUCTIONS
from fastsoftmax._backends._numba_functions import log_of_count
from fastsoftmax._backends._numba_kernels import LONG_GATHERED, compile_cached, place_of, zero
from fastsoftmax._backends._numba_lanes import (
    WIDTH,
    Lanes,
    _first,
    added,
    advanced,
    fma,
    jit,
    load_part,
    load_part_or_zero,
    maximum,
    pitch_of,
    pointer_to,
    rounded,
    spread,
    staged,
    store_part,
    where,
)
from fastsoftmax._backends._numba_rows import (
    fold_maximum,
    log_softmax_of_known,
    log_sum_exp_of_known,
    softmax_of_known,
)
from fastsoftmax._backends._numba_sums import clear, narrow_ledger, which, wide_ledger

MODIFY = "modify"  # the op that leaves rows at that
DIVIDE, BIAS, MASK, FILL = 1, 2, 4, 8  # what is to be done; FILL: rows of -inf alone get one value

# ---- division by one number for many: c/divide.h ----

NARROW = {types.float32: 2.0**-30, types.float64: 2.0**-400}  # the divisor
WIDE = {types.float32: 2.0**-60, types.float64: 2.0**-400}  # what is divided


@staged(lambda t, p: types.UniTuple(Lanes(p.dtype), 4))
def divisor(t, p):
    """The number, its reciprocal in two parts, and a number that is below all |x| to be multiplied by these."""
    narrow = NARROW[p.dtype]
    inverse = t.like(1.0) / t
    rest = fma(-inverse, t, t.like(1.0)) / t
    least = where(t, ">", narrow, WIDE[p.dtype], np.inf)
    least = where(t, "<", 1 / narrow, least, np.inf)
    return [spread(v, Lanes(p.dtype)) for v in (t, inverse, rest, least)]


@staged(lambda *_: types.boolean)
def are_moderate(v, by):
    size, most = v.math("fabs"), 1 / WIDE[v.dtype]
    bits = which(size, ">", by[3])._operate(which(size, ">", by[3]), which(size, "<", most), "and_")
    return bits.new(types.boolean, bits.builder.icmp_signed("==", bits.llvm, bits.like((1 << WIDTH) - 1).llvm))


@staged(_first)
def times_reciprocal(v, by):
    q = fma(v, by[1], v * by[2])
    return fma(fma(-q, by[0], v), by[1], q)


@staged(_first)
def over(v, by):
    return v / by[0]


@jit
def quotient(v, by):
    return times_reciprocal(v, by) if are_moderate(v, by) else over(v, by)


# ---- a row ----


@staged(_first)
def plus(v, bias):
    return v + bias


@staged(_first)
def kept(v, bytes_):
    truth = v.builder.icmp_unsigned("!=", bytes_.llvm, bytes_.like(0).llvm)
    return v.new(v.kind, v.builder.select(truth, v.llvm, v.like(-np.inf).llvm))


@jit
def bring_lanes(x, z, i, k, by, bias, mask, how):
    """Elements i .. i + k - 1 from x into z, and what they became; -inf in the other lanes."""
    v = load_part(x, i, k)
    if how & DIVIDE:
        v = quotient(v, by)
    if how & BIAS:
        v = plus(v, load_part_or_zero(bias, i, k))
    if how & MASK:
        v = kept(v, load_part_or_zero(mask, i, k))
    store_part(z, i, k, v)
    return v


@jit
def bring(x, z, n, by, bias, mask, how):
    """A row from x into z, and its maximum, NaN left out."""
    most = load_part(x, 0, 0)
    i = 0
    while i + WIDTH <= n:
        most = maximum(bring_lanes(x, z, i, WIDTH, by, bias, mask, how), most)
        i += WIDTH
    if i < n:
        most = maximum(bring_lanes(x, z, i, n - i, by, bias, mask, how), most)
    return fold_maximum(most)


@jit
def is_nothing(z, n):
    i = 0
    while i < n and z[i] == -np.inf:
        i += 1
    return i == n


@jit
def fill(y, n, value):
    for i in range(n):
        y[i] = rounded(value, y)


# ---- some rows together ----


@jit
def broadcast_to(array, o, i):
    """The address of what belongs to a row, of an array whose lengths may be 1."""
    return pointer_to(array, min(o, array.shape[0] - 1), min(i, array.shape[2] - 1))


@jit
def in_modified_rows(some_rows, reduces, x, y, temperature, bias, mask, how, empty, start, stop, together, log_n):
    """As the layouts in _numba_kernels, for rows whose elements are next to each other, also in bias, mask and, if it has
    them, y."""
    n = x.shape[1]
    tile = np.empty((1, together if reduces else 0, (n + 15) // 16 * 16 + 16), x.dtype)
    nothing = np.zeros(WIDTH, np.bool_)
    p = pointer_to(x, 0, 0)
    narrow, wide = narrow_ledger(p), wide_ledger(p)
    clear(narrow, wide)
    for unit in range(start, stop):
        o, first, rows = place_of(unit, x.shape[2], together)
        y_pitch = pitch_of(y, 2)
        q = z = pointer_to(y, o, first)
        z_pitch = y_pitch
        if reduces:
            z, z_pitch = pointer_to(tile, 0, 0), tile.shape[2]
        for k in range(rows):
            i, row = first + k, advanced(z, k * z_pitch)
            by = divisor(broadcast_to(temperature, o, i)[0], p)
            b, m = broadcast_to(bias, o, i), broadcast_to(mask, o, i)
            narrow[k] = bring(pointer_to(x, o, i), row, n, by, b, m, how)
            nothing[k] = (how & FILL) != 0 and narrow[k] == -np.inf and is_nothing(row, n)
        some_rows(z, z_pitch, q, y_pitch, rows, n, narrow, wide, log_n)
        for k in range(rows):
            if nothing[k]:
                fill(advanced(q, k * y_pitch), n, empty)


def kernel(x, y, temperature, bias, mask, how, empty, claims, share, units, together):
    """Claims `share` units after `share` units, until there are no more."""
    log_n = LOG_N(x.shape[1])
    start = added(claims, 0, share)
    while start < units:
        stop = min(start + share, units)
        in_modified_rows(WORK, REDUCES, x, y, temperature, bias, mask, how, empty, start, stop, together, log_n)
        start = added(claims, 0, share)


@jit
def leave_rows(*_):
    pass


WORK, REDUCES, LOG_N = softmax_of_known, False, zero  # `compiled` puts others in their places
SHORT = {
    "softmax": softmax_of_known,
    "log_softmax": log_softmax_of_known,
    "logsumexp": log_sum_exp_of_known,
    "logmeanexp": log_sum_exp_of_known,
    MODIFY: leave_rows,
}
LONG = LONG_GATHERED | {MODIFY: leave_rows}


def compiled(op, long, dtype):
    """The machine code of an operation on modified rows of float32 or float64, longer than a block or not."""
    number = types.float32 if dtype == np.float32 else types.float64
    given = [types.Array(kind, 3, "A", readonly=True) for kind in (number, number, types.uint8)]
    x, y = types.Array(number, 3, "A", readonly=True), types.Array(number, 3, "A")
    counts = types.Array(types.intp, 1, "C"), types.intp, types.intp, types.intp
    signature = x, y, *given, types.intp, types.float64, *counts
    names = {"WORK": (LONG if long else SHORT)[op], "REDUCES": op in ROW_REDUCTIONS}
    names["LOG_N"] = log_of_count if op == "logmeanexp" else zero
    return compile_cached(kernel, f"{op}_modified{'_long' * long}", globals() | names, signature)
