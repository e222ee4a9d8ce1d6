# What is jitted or staged is not Python to a type checker: Numba types it, from the arguments.
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-untyped-calls=False
# mypy: check-untyped-defs=False
"""Rows that are divided, biased and masked on their way to where they are worked on: a map's y, or else a tile.

That pass finds their maxima, too, in place of the one that does nothing else. Lost: the processor's division (up to a
fifth slower), sixteen lanes a step (a tenth), long rows brought over whole before their parts (1.39 times the time
without modifiers, not 1.20).
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types

from fastsoftmax._backends import ROW_REDUCTIONS
from fastsoftmax._backends._numba_functions import log_of_count
from fastsoftmax._backends._numba_kernels import LONG, compile_cached, place_of, zero
from fastsoftmax._backends._numba_lanes import (
    WIDTH,
    Lanes,
    _first,
    added,
    advanced,
    fma,
    jit,
    load_first,
    load_part,
    maximum,
    pitch_of,
    pointer_to,
    rounded,
    spread,
    staged,
    store_part,
    where,
)
from fastsoftmax._backends._numba_parts import STEPS
from fastsoftmax._backends._numba_rows import (
    fold_maximum,
    log_softmax_of_known,
    log_sum_exp_of_known,
    softmax_of_known,
)
from fastsoftmax._backends._numba_sums import BLOCK, MAXIMUM, ROOM, TOTAL, clear, narrow_ledger, wide_ledger

MODIFY = "modify"  # the op that leaves rows at that
HOW = DIVIDE, BIAS, MASK, FILL = 1, 2, 4, 8  # what is done; FILL: rows of -inf alone get one value
STEP = 2048  # bits that are brought at once: 16 lanes at once are up to a tenth slower
AHEAD, SOON = 4096, 1024  # bytes: x is fetched so early, and where it goes; without that up to a fifth slower

# ---- division by one number for many: c/divide.h ----

NARROW = {types.float32: 2.0**-30, types.float64: 2.0**-400}  # the divisor
WIDE = {types.float32: 2.0**-60, types.float64: 2.0**-400}  # what is divided


@staged(lambda t, p: types.UniTuple(p.dtype, 4))
def divisor(t, p):
    """The number, its reciprocal in two parts, and what all |x| that are multiplied by these must be above."""
    narrow = NARROW[p.dtype]
    safe = where(t, "<", 1 / narrow, where(t, ">", narrow, t, 1.0), 1.0)
    inverse = 1.0 / safe
    return t, inverse, fma(-inverse, safe, safe.like(1.0)) / safe, where(safe, "==", t, WIDE[p.dtype], np.inf)


@staged(lambda *_: types.boolean)
def are_moderate(v, by):
    size, least = v.math("fabs").llvm, spread(by[3], v.kind).llvm
    above = v.builder.fcmp_ordered(">", size, least)
    below = v.builder.fcmp_ordered("<", size, v.like(1 / WIDE[v.dtype]).llvm)
    bits = ir.IntType(v.kind.count)
    all_of_them = v.builder.bitcast(v.builder.and_(above, below), bits)
    return v.new(types.boolean, v.builder.icmp_unsigned("==", all_of_them, bits(-1)))


@staged(_first)
def times_reciprocal(v, by):
    t, inverse, rest = [spread(number, v.kind) for number in by[:3]]
    q = fma(v, inverse, v * rest)
    return fma(fma(-q, t, v), inverse, q)


@staged(_first)
def divided(v, by):
    return v / spread(by[0], v.kind)


@jit
def quotient(v, by):
    """By the reciprocal: 1000 numbers a row, divided, are up to 1.25 times slower."""
    return times_reciprocal(v, by) if are_moderate(v, by) else divided(v, by)


# ---- a row ----


@staged(_first)
def plus(v, bias):
    return v + bias


@staged(_first)
def kept(v, mask):
    truth = v.builder.icmp_unsigned("!=", mask.llvm, mask.like(0).llvm)
    return v.new(v.kind, v.builder.select(truth, v.llvm, v.like(-np.inf).llvm))


def loader(rest):
    """As many lanes as v has; the first k of them from p[i]."""

    @staged(lambda p, i, k, v: Lanes(p.dtype, v.count))
    def load_like(p, i, k, v):
        return load_first(p, i, k, rest, v.kind.count)

    return load_like


load_or_nothing, load_or_zero = loader(-np.inf), loader(0)


@staged(lambda *_: types.void)
def fetch(x, z, i):
    """What will be read and written soon."""
    for p, writes, ahead in ((x, 0, AHEAD), (z, 1, SOON)):
        flags = [ir.IntType(32)(flag) for flag in (writes, 3, 1)]  # kept in all levels of the cache of data
        for byte in range(ahead, ahead + STEP // 8, 64):
            address = p.builder.gep(p.llvm, [(i + byte * 8 // p.dtype.bitwidth).llvm])
            p.call("llvm.prefetch.p0", types.void, p.builder.bitcast(address, ir.IntType(8).as_pointer()), *flags)


@jit
def bring_lanes(x, z, i, k, by, bias, mask, how, most):
    """Elements i .. i + k - 1 from x into z, as many at most as `most` has lanes: the maxima so far."""
    v = load_or_nothing(x, i, k, most)
    if how & DIVIDE:
        v = quotient(v, by)
    if how & BIAS:
        v = plus(v, load_or_zero(bias, i, k, v))
    if how & MASK:
        v = kept(v, load_or_zero(mask, i, k, v))
    store_part(z, i, k, v)
    return maximum(v, most)


@staged(lambda p: Lanes(p.dtype, STEP // p.dtype.bitwidth))
def no_maxima(p):
    lanes = Lanes(p.dtype, STEP // p.dtype.bitwidth)
    return p.new(lanes, None).like(-np.inf)


@staged(lambda *_: types.intp)
def lanes_of(v):
    return v.new(types.intp, ir.IntType(64)(v.kind.count))


@jit
def bring(source, begin, end):
    """A piece of a row to where it is worked on: its maximum, NaN left out."""
    x, z, by, bias, mask, how = source
    many, few = no_maxima(x), load_part(x, 0, 0)
    step = lanes_of(many)
    i = begin
    while i + step <= end:
        fetch(x, z, i)
        many = bring_lanes(x, z, i, step, by, bias, mask, how, many)
        i += step
    while i < end:
        few = bring_lanes(x, z, i, min(WIDTH, end - i), by, bias, mask, how, few)
        i += WIDTH
    return maximum(fold_maximum(many), fold_maximum(few))


@jit
def bring_part(source, begin, end):
    return bring(source, begin, end), source[1]


@jit
def bring_part_alone(source, begin, end):
    """The same, into the beginning of a tile."""
    x, tile, by, bias, mask, how = source
    z = advanced(tile, -begin)
    return bring((x, z, by, bias, mask, how), begin, end), z


# ---- some rows together ----


@jit
def broadcast_to(array, o, i):
    """The address of what belongs to a row, in an array whose lengths may be 1."""
    return pointer_to(array, min(o, array.shape[0] - 1), min(i, array.shape[2] - 1))


@jit
def source_of(x, modifiers, o, i, z):
    temperature, bias, mask, how, _ = modifiers
    by = divisor(broadcast_to(temperature, o, i)[0], z)
    return pointer_to(x, o, i), z, by, broadcast_to(bias, o, i), broadcast_to(mask, o, i), how


@jit
def fill_nothing(y, n, modifiers, narrow, wide, k):
    """Row k of a map, if it was -inf throughout: then there is no maximum, and no NaN either."""
    how, empty = modifiers[3:]
    if how & FILL and narrow[MAXIMUM * ROOM + k] == -np.inf and wide[TOTAL * ROOM + k] == wide[TOTAL * ROOM + k]:
        for i in range(n):
            y[i] = rounded(empty, y)


@jit
def in_modified_rows(of_known, _, reduces, x, y, modifiers, start, stop, together, log_n):
    """Like the layouts in _numba_kernels: rows whose elements are next to each other, as in bias, mask and y."""
    n, y_pitch = x.shape[1], pitch_of(y, 2)
    tile = np.empty((1, together if reduces else 0, (n + 15) // 16 * 16 + 16), x.dtype)
    p = pointer_to(x, 0, 0)
    narrow, wide = narrow_ledger(p), wide_ledger(p)
    clear(narrow, wide)
    for unit in range(start, stop):
        o, first, rows = place_of(unit, x.shape[2], together)
        q = z = pointer_to(y, o, first)
        z_pitch = y_pitch
        if reduces:
            z, z_pitch = pointer_to(tile, 0, 0), tile.shape[2]
        for k in range(rows):
            narrow[k] = bring(source_of(x, modifiers, o, first + k, advanced(z, k * z_pitch)), 0, n)
        of_known(z, z_pitch, q, y_pitch, rows, n, narrow, wide, log_n)
        for k in range(rows):
            fill_nothing(advanced(q, k * y_pitch), n, modifiers, narrow, wide, k)


@jit
def in_modified_long_rows(long_row, read, reduces, x, y, modifiers, start, stop, together, log_n):
    """The same for rows longer than a block, each by one thread."""
    n = x.shape[1]
    tile = np.empty((1, 1, BLOCK), x.dtype)
    parts, claims = np.empty((4, (n + BLOCK - 1) // BLOCK)), np.empty(STEPS, np.intp)
    p = pointer_to(x, 0, 0)
    narrow, wide = narrow_ledger(p), wide_ledger(p)
    clear(narrow, wide)
    for unit in range(start, stop):
        o, i, _ = place_of(unit, x.shape[2], 1)
        claims[:] = 0
        q = z = pointer_to(y, o, i)
        if reduces:
            z = pointer_to(tile, 0, 0)
        long_row(read, source_of(x, modifiers, o, i, z), z, q, n, parts, claims, 0, narrow, wide, log_n)
        fill_nothing(q, n, modifiers, narrow, wide, 0)


def kernel(x, y, temperature, bias, mask, how, empty, claims, share, units, together):
    """Claims `share` units after `share` units, until there are no more."""
    modifiers = temperature, bias, mask, how, empty
    start, log_n = added(claims, 0, share), LOG_N(x.shape[1])
    while start < units:
        LAYOUT(WORK, READ, REDUCES, x, y, modifiers, start, min(start + share, units), together, log_n)
        start = added(claims, 0, share)


@jit
def leave_rows(*_):
    pass


LAYOUT, WORK, READ = in_modified_rows, softmax_of_known, bring_part  # `compiled` puts others in their places
REDUCES, LOG_N = False, zero
KNOWN = {
    "softmax": softmax_of_known,
    "log_softmax": log_softmax_of_known,
    "logsumexp": log_sum_exp_of_known,
    "logmeanexp": log_sum_exp_of_known,
    MODIFY: leave_rows,
}
LAYOUTS = {"modified": (in_modified_rows, KNOWN), "modified_long": (in_modified_long_rows, LONG)}


def compiled(op, layout, dtype):
    """The machine code of an operation on modified rows of float32 or float64."""
    number = types.float32 if dtype == np.float32 else types.float64
    x, *given = [types.Array(kind, 3, "A", readonly=True) for kind in (number, number, number, types.uint8)]
    counts = types.Array(types.intp, 1, "C"), types.intp, types.intp, types.intp
    signature = x, types.Array(number, 3, "A"), *given, types.intp, types.float64, *counts
    function, works = LAYOUTS[layout]
    reduces = op in ROW_REDUCTIONS
    names = {"LAYOUT": function, "WORK": works[op], "READ": bring_part_alone if reduces else bring_part}
    names |= {"REDUCES": reduces, "LOG_N": log_of_count if op == "logmeanexp" else zero}
    return compile_cached(kernel, f"{op}_{layout}", globals() | names, signature)
