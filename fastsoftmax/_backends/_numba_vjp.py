# What is jitted or staged is not Python to a type checker: Numba types it, from the arguments.
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-untyped-calls=False
# mypy: check-untyped-defs=False
"""Gradients: c/backward.h in Numba, step for step and bit for bit. Rows are shared by threads, a row is not."""

from __future__ import annotations

import functools

import numpy as np
from numba import types

from fastsoftmax._backends._numba_functions import base_of, term, two_sum
from fastsoftmax._backends._numba_kernels import compile_cached, row_pointer
from fastsoftmax._backends._numba_lanes import (
    WIDTH,
    Lanes,
    _first,
    _pair,
    added,
    fma,
    jit,
    load,
    load_part_or_zero,
    rounded,
    spread,
    staged,
    store,
    store_part,
    where,
)
from fastsoftmax._backends._numba_rows import fold_sum, with_pair
from fastsoftmax._backends._numba_sums import BLOCK, add_group

MOST_LOG = 32.0  # above it y is no logarithm of a softmax, and e^y might overflow: NaN
SMALL = {
    types.float32: 2.0**-60,
    types.float64: 2.0**-900,
}  # sums that terms must not be multiplied by with their boost

# ---- the sum of a block, in sixteen lanes ----


@staged(lambda g: Lanes(types.float64))
def no_sum(g):
    return spread(g.new(types.float64, None).like(0.0), Lanes(types.float64))


@staged(_pair)
def with_products(high, low, g, y):
    if g.dtype == types.float32:
        return fma(g.cast(types.float64), y.cast(types.float64), high), low
    p = g * y
    low = low + fma(g, y, -p)
    high, e = two_sum(high, p)
    return high, low + e


@staged(_pair)
def with_gradients(high, low, g, y):
    return add_group(high, low, g)


@jit
def block_sum(with_group, g, y, begin, end):
    a = load_part_or_zero(g, begin, 0)
    high = low = no_sum(a)
    i = begin
    while i + WIDTH <= end:
        high, low = with_group(high, low, load(g, i), load(y, i))
        i += WIDTH
    if i < end:
        high, low = with_group(high, low, load_part_or_zero(g, i, end - i), load_part_or_zero(y, i, end - i))
    return fold_sum(high, low, a)


@jit
def row_sum(with_group, g, y, n):
    total, total_low = 0.0, 0.0
    for begin in range(0, n, BLOCK):
        high, low = block_sum(with_group, g, y, begin, min(begin + BLOCK, n))
        total, total_low = with_pair(total, total_low, high, low)
    return total, total_low


# ---- the last pass ----


def whole(total, low):
    """The sum, and its lower part, which of infinities is NaN."""
    low = where(total.math("fabs"), "<", np.inf, low, 0.0)
    return total + low, low


def in_lanes(*numbers):
    return [spread(number, Lanes(number.dtype)) for number in numbers]


@staged(lambda total, low, p: types.UniTuple(Lanes(p.dtype), 2))
def two_parts(total, low, p):
    s, low = whole(total, low)
    high = s.cast(p.dtype)
    rest = ((total - high.cast(types.float64)) + low).cast(p.dtype)
    return in_lanes(high, where(high.math("fabs"), "<", np.inf, rest, 0.0))


@staged(lambda total, low, p: types.UniTuple(Lanes(p.dtype), 3))
def factor_of_terms(total, low, p):
    """Terms carry 2^BOOST, which the factor takes back; if that made it subnormal, the terms are without."""
    s = whole(total, low)[0]
    f, size, small = s.cast(p.dtype), s.math("fabs"), SMALL[p.dtype]
    n, down = where(size, "<", small, f.format.boost, 0.0), where(size, "<", small, 1.0, f.format.down)
    return in_lanes(f * down.cast(p.dtype), *base_of(f.like(0.0), n.cast(p.dtype))[:2])


@staged(_first)
def softmax_gradient(g, y, parameters):
    high, low = parameters
    return y * ((g - high) - low)


@staged(_first)
def log_softmax_gradient(g, y, parameters):
    factor, *base = parameters
    e = term(where(y, ">", MOST_LOG, np.nan, y), *base)
    return fma(-e, factor, g)


@jit
def is_nothing(y, n):
    i = 0
    while i < n and y[i] == -np.inf:  # the first nearly always tells
        i += 1
    return i == n


@jit
def pull(gradient, parameters, g, y, dx, n):
    i = 0
    while i + WIDTH <= n:
        store(dx, i, gradient(load(g, i), load(y, i), parameters))
        i += WIDTH
    if i < n:
        k = n - i
        store_part(dx, i, k, gradient(load_part_or_zero(g, i, k), load_part_or_zero(y, i, k), parameters))


# ---- rows whose elements are next to each other ----


@jit
def softmax_row(g, y, dx, n):
    total, low = row_sum(with_products, g, y, n)
    pull(softmax_gradient, two_parts(total, low, y), g, y, dx, n)


@jit
def log_softmax_row(g, y, dx, n):
    if is_nothing(y, n):
        for i in range(n):
            dx[i] = rounded(0.0, dx)
        return
    total, low = row_sum(with_gradients, g, y, n)
    pull(log_softmax_gradient, factor_of_terms(total, low, y), g, y, dx, n)


def kernel(g, y, dx, claims, share):
    """Claims `share` rows after `share` rows, until there are no more."""
    rows = y.shape[0] * y.shape[2]
    start = added(claims, 0, share)
    while start < rows:
        for row in range(start, min(start + share, rows)):
            ROW(row_pointer(g, row), row_pointer(y, row), row_pointer(dx, row), y.shape[1])
        start = added(claims, 0, share)


ROWS = {"softmax": softmax_row, "log_softmax": log_softmax_row}
ROW = softmax_row  # `compiled` puts others in its place


@functools.cache
def compiled(op, dtype):
    """The machine code of an operation's gradient in float32 or float64."""
    number = types.float32 if dtype == np.float32 else types.float64
    given, result = types.Array(number, 3, "A", readonly=True), types.Array(number, 3, "A")
    signature = given, given, result, types.Array(types.intp, 1, "C"), types.intp
    return compile_cached(kernel, f"{op}_vjp", globals() | {"ROW": ROWS[op]}, signature)
