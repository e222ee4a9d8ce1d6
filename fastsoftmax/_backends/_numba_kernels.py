# What is jitted or staged is not Python to a type checker: Numba types it, from the arguments.
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-untyped-calls=False
# mypy: check-untyped-defs=False
"""The kernels that are compiled: rows of an array one after another, a huge row in steps; and their compilation."""

from __future__ import annotations

import functools
import zlib
from pathlib import Path
from types import FunctionType

import numpy as np
from numba import njit, types

from fastsoftmax._backends import coefficients
from fastsoftmax._backends._numba_lanes import advanced, jit, narrow, pointer_to
from fastsoftmax._backends._numba_rows import (
    BLOCK,
    add_block,
    block_sum,
    fill_nan,
    finished,
    is_finite,
    largest,
    log_of_row,
    log_softmax_row,
    log_sum_exp,
    log_sum_exp_row,
    logcumsumexp_row,
    lowered,
    map_lanes,
    mean_of,
    reciprocal,
    row_base,
    scale,
    sigmoid_row,
    softmax_row,
    softplus_row,
    sum_of,
    visit_masked,
    visit_stored,
)

TILE = 16  # rows gathered at once where rows do not lie in a piece


# ---- kernels: units `start` up to `stop`, a row where rows lie in one piece (direct), else a tile of rows ----


@jit
def new_tile(x, direct):
    """Room for TILE rows, whose distance is no multiple of 4 KiB: they would all fall into one set of the cache."""
    if direct:
        return np.empty((1, 1), x.dtype)
    return np.empty((min(TILE, x.shape[2]), (x.shape[1] + 15) // 16 * 16 + 16), x.dtype)


@jit
def place_of(unit, inner, direct):
    """(outer, first of inner, how many) of a unit's rows."""
    if direct:
        return unit // inner, unit % inner, 1
    tiles = (inner + TILE - 1) // TILE
    first = unit % tiles * TILE
    return unit // tiles, first, min(TILE, inner - first)


@jit
def gather(x, o, first, width, tile):
    for j in range(x.shape[1]):
        for k in range(width):
            tile[k, j] = x[o, j, first + k]


@jit
def map_rows(row, x, y, start, stop, direct):
    tile = new_tile(x, direct)
    for unit in range(start, stop):
        o, first, width = place_of(unit, x.shape[2], direct)
        p, q = pointer_to(x, o, first), pointer_to(y, o, first)
        if not direct:
            gather(x, o, first, width, tile)
            p = q = pointer_to(tile, 0, 0)
        for k in range(width):
            row(advanced(p, k * tile.shape[1]), advanced(q, k * tile.shape[1]), x.shape[1])
        if not direct:
            for j in range(x.shape[1]):
                for k in range(width):
                    y[o, j, first + k] = tile[k, j]


@jit
def reduce_rows(result, x, y, start, stop, direct):
    tile = new_tile(x, direct)
    for unit in range(start, stop):
        o, first, width = place_of(unit, x.shape[2], direct)
        p = pointer_to(x, o, first)
        if not direct:
            gather(x, o, first, width, tile)
            p = pointer_to(tile, 0, 0)
        for k in range(width):
            m, log_sum = log_sum_exp_row(advanced(p, k * tile.shape[1]), x.shape[1])
            y[o, first + k] = result(m, log_sum, x.shape[1])


def softmax(x, y, start, stop, direct):
    map_rows(softmax_row, x, y, start, stop, direct)


def log_softmax(x, y, start, stop, direct):
    map_rows(log_softmax_row, x, y, start, stop, direct)


def logcumsumexp(x, y, start, stop, direct):
    map_rows(logcumsumexp_row, x, y, start, stop, direct)


def sigmoid(x, y, start, stop, direct):
    map_rows(sigmoid_row, x, y, start, stop, direct)


def softplus(x, y, start, stop, direct):
    map_rows(softplus_row, x, y, start, stop, direct)


def logsumexp(x, y, start, stop, direct):
    reduce_rows(sum_of, x, y, start, stop, direct)


def logmeanexp(x, y, start, stop, direct):
    reduce_rows(mean_of, x, y, start, stop, direct)


# ---- one huge row in three steps, each over blocks `start` up to `stop` ----
# work holds four numbers a block: the maximum, the sum (high and low) and the count.


@jit
def row_pointer(x, row):
    return pointer_to(x, row // x.shape[2], row % x.shape[2])


@jit
def span(start, stop, n):
    """From which to which element."""
    return start * BLOCK, min(stop * BLOCK, n)


@jit
def maximum_of(x, work):
    """The row's maximum, in x's type."""
    m = -np.inf
    for b in range(work.shape[1]):
        m = max(m, work[0, b])
    return narrow(m, x)


@jit
def total_of(work):
    total, total_low, count = 0.0, 0.0, 0.0
    for b in range(work.shape[1]):
        total, total_low = add_block(total, total_low, work[1, b], work[2, b])
        count += work[3, b]
    return total, total_low, count


@jit
def sum_blocks(visit, x, y, n, work, start, stop):
    m = maximum_of(x, work)
    if is_finite(m):
        for b in range(start, stop):
            begin, end = span(b, b + 1, n)
            work[1, b], work[2, b], work[3, b] = block_sum(visit, x, y, begin, end, row_base(m, x))


def block_maxima(x, y, work, row, start, stop):
    for b in range(start, stop):
        work[0, b] = largest(row_pointer(x, row), *span(b, b + 1, x.shape[1]))


def block_terms(x, y, work, row, start, stop):
    p, q = row_pointer(x, row), row_pointer(y, row)
    sum_blocks(visit_stored, p, q, x.shape[1], work, start, stop)


def block_sums(x, y, work, row, start, stop):
    p = row_pointer(x, row)
    sum_blocks(visit_masked, p, p, x.shape[1], work, start, stop)


def block_scale(x, y, work, row, start, stop):
    p = row_pointer(y, row)
    begin, end = span(start, stop, x.shape[1])
    m = maximum_of(p, work)
    s, s_low, _ = total_of(work)
    if is_finite(m) and s == s:
        scale(p, begin, end, reciprocal(m, s, s_low, p))
    else:
        fill_nan(p, begin, end)


def block_lower(x, y, work, row, start, stop):
    p, q = row_pointer(x, row), row_pointer(y, row)
    begin, end = span(start, stop, x.shape[1])
    m = maximum_of(p, work)
    s, s_low, count = total_of(work)
    if is_finite(m) and s == s:
        map_lanes(lowered, p, q, begin, end, log_sum_exp(m, log_of_row(m, s, s_low, count), q))
    else:
        fill_nan(q, begin, end)


@jit
def finish_blocks(result, x, y, work, row):
    p = row_pointer(x, row)
    s, s_low, count = total_of(work)
    m, log_sum = finished(p, x.shape[1], maximum_of(p, work), s, s_low, count)
    y[row // x.shape[2], row % x.shape[2]] = result(m, log_sum, x.shape[1])


def block_logsumexp(x, y, work, row, start, stop):
    finish_blocks(sum_of, x, y, work, row)


def block_logmeanexp(x, y, work, row, start, stop):
    finish_blocks(mean_of, x, y, work, row)


KERNELS = {f.__name__: f for f in (softmax, log_softmax, logcumsumexp, sigmoid, softplus, logsumexp, logmeanexp)}
STEPS = {
    "softmax": (block_maxima, block_terms, block_scale),
    "log_softmax": (block_maxima, block_sums, block_lower),
    "logsumexp": (block_maxima, block_sums, block_logsumexp),
    "logmeanexp": (block_maxima, block_sums, block_logmeanexp),
}


# ---- compilation ----


@functools.cache
def _fingerprint():
    """Of all that the machine code depends on: of its sources Numba's cache knows this file's time and size only."""
    sources = sorted(Path(__file__).parent.glob("_numba_*.py"))
    constants = repr(coefficients.F32 + coefficients.F64).encode()
    return f"{zlib.crc32(b''.join(path.read_bytes() for path in sources) + constants):08x}"


def _compile(function, signature, cache):
    named = FunctionType(function.__code__, function.__globals__)
    named.__qualname__ = f"{function.__name__}_{_fingerprint()}"
    dispatcher = njit(nogil=True, error_model="numpy", cache=cache)(named)
    dispatcher.compile(signature)
    # The entry point unpacks its arguments itself: 0.4 µs a call; the dispatcher, finding out their types, takes 1.
    return dispatcher.overloads[signature].entry_point


def compiled(function, dtype, reduction, step):
    """The machine code of a kernel (or of a step) for arrays of float32 or float64 and of any strides."""
    number = types.float32 if dtype == np.float32 else types.float64
    arrays = types.Array(number, 3, "A", readonly=True), types.Array(number, 2 if reduction else 3, "A")
    if step:
        signature = (*arrays, types.Array(types.float64, 2, "C"), types.intp, types.intp, types.intp)
    else:
        signature = (*arrays, types.intp, types.intp, types.boolean)
    try:
        return _compile(function, signature, cache=True)
    except Exception:  # no directory for it is RuntimeError, a full disk OSError, a damaged file nearly anything
        return _compile(function, signature, cache=False)
