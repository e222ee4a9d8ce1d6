# What is jitted or staged is not Python to a type checker: Numba types it, from the arguments.
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-untyped-calls=False
# mypy: check-untyped-defs=False
"""The kernels that are compiled: rows of an array, some at a time; a huge row in steps; and their compilation."""

from __future__ import annotations

import functools
import zlib
from pathlib import Path
from types import FunctionType

import numpy as np
from numba import njit, types

from fastsoftmax._backends import coefficients
from fastsoftmax._backends._numba_columns import log_softmax_strip, log_sum_exp_strip, softmax_strip
from fastsoftmax._backends._numba_elements import exp_rows, expm1_rows, logcumsumexp_rows, sigmoid_rows, softplus_rows
from fastsoftmax._backends._numba_functions import log_of_count
from fastsoftmax._backends._numba_lanes import (
    SQUARE,
    WIDTH,
    added,
    advanced,
    gather_square,
    jit,
    load_part_or_zero,
    pitch_of,
    pointer_to,
    scatter_square,
    stack,
    store_part,
)
from fastsoftmax._backends._numba_parts import (
    STEPS,
    alone,
    as_it_is,
    long_log_softmax,
    long_log_softmax_strip,
    long_log_sum_exp,
    long_log_sum_exp_strip,
    long_softmax,
    long_softmax_strip,
)
from fastsoftmax._backends._numba_rows import (
    log_softmax_rows,
    log_sum_exp_rows,
    softmax_rows,
)
from fastsoftmax._backends._numba_sums import (
    BLOCK,
    ROOM,
    clear,
    narrow_ledger,
    wide_ledger,
)
from fastsoftmax._backends._tilewise import EXP, EXPM1

SHORT = (
    40  # rows up to this length are turned into columns: at 10 twice as fast, at 24 by a fifth, at 64 slower by that
)
TURNED = 64  # so many at once; 32 are 5 % slower
short_tile = stack(SHORT * TURNED)


# ---- kernels: units `start` up to `stop`, each of up to `together` rows with one outer index ----
# A reduction's y has one element where x has n.


@jit
def place_of(unit, inner, together):
    """(outer, first of inner, how many) of a unit's rows."""
    units = (inner + together - 1) // together
    first = unit % units * together
    return unit // units, first, min(together, inner - first)


@jit
def row_pointer(x, row):
    return pointer_to(x, row // x.shape[2], row % x.shape[2])


@jit
def in_rows(some_rows, x, y, start, stop, together, log_n):
    """Rows whose elements are next to each other."""
    p = pointer_to(x, 0, 0)
    narrow, wide = narrow_ledger(p), wide_ledger(p)
    clear(narrow, wide)
    for unit in range(start, stop):
        o, first, rows = place_of(unit, x.shape[2], together)
        p, q = pointer_to(x, o, first), pointer_to(y, o, first)
        some_rows(p, pitch_of(x, 2), q, pitch_of(y, 2), rows, x.shape[1], narrow, wide, log_n)


@jit
def gather(x, o, first, rows, tile):
    """Rows whose elements are apart, into those of a tile: by squares where they lie side by side."""
    n, p, q = x.shape[1], pointer_to(x, o, first), pointer_to(tile, 0, 0)
    if x.strides[2] == x.itemsize:
        for j in range(0, rows, SQUARE):
            for i in range(0, n, SQUARE):
                place = j * tile.shape[2] + i
                gather_square(p, pitch_of(x, 1), i, n - 1, j, min(SQUARE, rows - j), q, place, tile.shape[2])
    else:
        for i in range(n):
            for k in range(rows):
                tile[0, k, i] = x[o, i, first + k]


@jit
def scatter(y, o, first, rows, tile):
    """The other way."""
    n, p, q = y.shape[1], pointer_to(y, o, first), pointer_to(tile, 0, 0)
    if y.strides[2] == y.itemsize:
        for j in range(0, rows, SQUARE):
            for i in range(0, n, SQUARE):
                place = j * tile.shape[2] + i
                scatter_square(p, pitch_of(y, 1), i, n, j, min(SQUARE, rows - j), q, place, tile.shape[2])
    else:
        for i in range(n):
            for k in range(rows):
                y[o, i, first + k] = tile[0, k, i]


@jit
def in_gathered_rows(some_rows, x, y, start, stop, together, log_n):
    """Rows whose elements are apart: through a tile, whose rows' distance is no multiple of 4 KiB, for then they would
    all fall into one set of the cache."""
    room = (together + SQUARE - 1) // SQUARE * SQUARE
    tile = np.empty((1, room, (x.shape[1] + 15) // 16 * 16 + 16), x.dtype)
    p = pointer_to(x, 0, 0)
    narrow, wide = narrow_ledger(p), wide_ledger(p)
    clear(narrow, wide)
    for unit in range(start, stop):
        o, first, rows = place_of(unit, x.shape[2], together)
        gather(x, o, first, rows, tile)
        p = pointer_to(tile, 0, 0)
        some_rows(p, tile.shape[2], p, tile.shape[2], rows, x.shape[1], narrow, wide, log_n)
        scatter(y, o, first, rows, tile)


@jit
def in_turned_rows(strip, x, y, start, stop, together, log_n):
    """Short rows: turned into the columns of a tile."""
    p = pointer_to(x, 0, 0)
    tile, narrow, wide = short_tile(p), narrow_ledger(p), wide_ledger(p)
    for unit in range(start, stop):
        o, first, rows = place_of(unit, x.shape[2], together)
        p, q = pointer_to(x, o, first), pointer_to(y, o, first)
        width = (rows + WIDTH - 1) // WIDTH * WIDTH
        for k in range(0, width, SQUARE):
            for j in range(0, x.shape[1], SQUARE):
                gather_square(
                    p, pitch_of(x, 2), k, rows - 1, j, min(SQUARE, x.shape[1] - j), tile, j * TURNED + k, TURNED
                )
        strip(tile, TURNED, tile, TURNED, width, x.shape[1], narrow, wide, log_n)
        for k in range(0, rows, SQUARE):
            for j in range(0, y.shape[1], SQUARE):
                scatter_square(q, pitch_of(y, 2), k, rows, j, min(SQUARE, y.shape[1] - j), tile, j * TURNED + k, TURNED)


@jit
def copy_lines(x, x_pitch, there, y, y_pitch, here, lines):
    """Lines of up to sixteen elements; those that x has not are 0."""
    for i in range(lines):
        store_part(y, i * y_pitch, here, load_part_or_zero(x, i * x_pitch, there))


@jit
def in_columns(strip, x, y, start, stop, together, log_n):
    """Rows that lie side by side: in place, sixteen and sixteen of them, and what is left through a tile."""
    n = x.shape[1]
    tile = np.empty((1, n if x.shape[2] % WIDTH else 0, WIDTH), x.dtype)
    p = pointer_to(x, 0, 0)
    narrow, wide = narrow_ledger(p), wide_ledger(p)
    for unit in range(start, stop):
        o, first, left = place_of(unit, x.shape[2], together)
        while left > 0:
            p, p_pitch, q, q_pitch = pointer_to(x, o, first), pitch_of(x, 1), pointer_to(y, o, first), pitch_of(y, 1)
            whole = left // WIDTH * WIDTH
            if not whole:
                copy_lines(p, p_pitch, left, pointer_to(tile, 0, 0), WIDTH, WIDTH, n)
                p = q = pointer_to(tile, 0, 0)
                p_pitch = q_pitch = WIDTH
            strip(p, p_pitch, q, q_pitch, max(whole, WIDTH), n, narrow, wide, log_n)
            if not whole:
                copy_lines(p, WIDTH, WIDTH, pointer_to(y, o, first), pitch_of(y, 1), left, y.shape[1])
            first, left = first + whole, left - max(whole, WIDTH)


@jit
def in_pieces(some_rows, x, y, start, stop, together, log_n):
    """Rows of which each element stands for itself, in blocks."""
    n, blocks = x.shape[1], (x.shape[1] + BLOCK - 1) // BLOCK
    p = pointer_to(x, 0, 0)
    narrow, wide = narrow_ledger(p), wide_ledger(p)
    for unit in range(start, stop):
        row, begin = unit // blocks, unit % blocks * BLOCK
        p, q = advanced(row_pointer(x, row), begin), advanced(row_pointer(y, row), begin)
        some_rows(p, 0, q, 0, 1, min(BLOCK, n - begin), narrow, wide, log_n)


@jit
def zero(n):
    return 0.0


def kernel(x, y, claims, share, units, together):
    """Claims `share` units after `share` units, until there are no more."""
    start = added(claims, 0, share)
    while start < units:
        LAYOUT(WORK, x, y, start, min(start + share, units), together, LOG_N(x.shape[1]))
        start = added(claims, 0, share)


def long_kernel(x, y, parts, claims, share):
    """Rows longer than a block. Each thread begins `share` rows after the last one that came, and goes on with what
    others have not finished. Whether all is done; if not, ask again."""
    p, rows = pointer_to(x, 0, 0), x.shape[0] * x.shape[2]
    narrow, wide = narrow_ledger(p), wide_ledger(p)
    n, log_n = x.shape[1], LOG_N(x.shape[1])
    clear(narrow, wide)
    first, done = added(claims, STEPS * rows, share), True
    for i in range(first, first + rows):
        row = i % rows
        p, q = row_pointer(x, row), row_pointer(y, row)
        done = WORK(as_it_is, p, p, q, n, parts[row], claims, STEPS * row, narrow, wide, log_n) and done
    return done


LAYOUT, WORK, LOG_N = in_rows, softmax_rows, zero  # `compiled` puts others in their places
BY_ROWS = {
    "softmax": softmax_rows,
    "log_softmax": log_softmax_rows,
    "logsumexp": log_sum_exp_rows,
    "logmeanexp": log_sum_exp_rows,
    "logcumsumexp": logcumsumexp_rows,
    "sigmoid": sigmoid_rows,
    "softplus": softplus_rows,
    EXP: exp_rows,
    EXPM1: expm1_rows,
}
BY_COLUMNS = {
    "softmax": softmax_strip,
    "log_softmax": log_softmax_strip,
    "logsumexp": log_sum_exp_strip,
    "logmeanexp": log_sum_exp_strip,
}
LONG = {
    "softmax": long_softmax,
    "log_softmax": long_log_softmax,
    "logsumexp": long_log_sum_exp,
    "logmeanexp": long_log_sum_exp,
}
LONG_GATHERED = {op: alone(long_row) for op, long_row in LONG.items()}
LONG_COLUMNS = {
    "softmax": long_softmax_strip,
    "log_softmax": long_log_softmax_strip,
    "logsumexp": long_log_sum_exp_strip,
    "logmeanexp": long_log_sum_exp_strip,
}
LAYOUTS = {  # how units are gone through, what is done with them, and how many rows are in one at most
    "rows": (in_rows, BY_ROWS, WIDTH),
    "gathered": (in_gathered_rows, BY_ROWS, WIDTH),
    "turned": (in_turned_rows, BY_COLUMNS, TURNED),
    "columns": (in_columns, BY_COLUMNS, ROOM),
    "pieces": (in_pieces, BY_ROWS, 1),
    "long": (None, LONG, 1),
    "gathered_long": (in_gathered_rows, LONG_GATHERED, WIDTH),
    "columns_long": (in_columns, LONG_COLUMNS, ROOM),
}


# ---- compilation ----


@functools.cache
def _fingerprint():
    """Of all that the machine code depends on: of its sources Numba's cache knows this file's time and size only."""
    sources = sorted(Path(__file__).parent.glob("_numba_*.py"))
    constants = repr(coefficients.F32 + coefficients.F64).encode()
    return f"{zlib.crc32(b''.join(path.read_bytes() for path in sources) + constants):08x}"


def _compile(function, name, names, signature, cache):
    named = FunctionType(function.__code__, globals() | names)
    named.__qualname__ = f"{name}_{_fingerprint()}"
    dispatcher = njit(nogil=True, error_model="numpy", cache=cache)(named)
    dispatcher.compile(signature)
    # The entry point unpacks its arguments itself: 0.4 µs a call; the dispatcher, finding out their types, takes 1.
    return dispatcher.overloads[signature].entry_point


def compile_cached(function, name, names, signature):
    """The entry point of a function's machine code, from Numba's cache where that works."""
    try:
        return _compile(function, name, names, signature, cache=True)
    except Exception:  # no directory for it is RuntimeError, a full disk OSError, a damaged file nearly anything
        return _compile(function, name, names, signature, cache=False)


def compiled(op, layout, dtype):
    """The machine code of an operation on float32 or float64 that lies in memory in a certain way, or is "long"."""
    number = types.float32 if dtype == np.float32 else types.float64
    arrays = types.Array(number, 3, "A", readonly=True), types.Array(number, 3, "A")
    claims = types.Array(types.intp, 1, "C")
    function, works, _ = LAYOUTS[layout]
    names = {"LAYOUT": function, "WORK": works[op], "LOG_N": log_of_count if op == "logmeanexp" else zero}
    if layout == "long":
        function, signature = long_kernel, (*arrays, types.Array(types.float64, 3, "C"), claims, types.intp)
    else:
        function, signature = kernel, (*arrays, claims, types.intp, types.intp, types.intp)
    return compile_cached(function, f"{op}_{layout}", names, signature)
