# What is jitted or staged is not Python to a type checker: Numba types it, from the arguments.
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-untyped-calls=False
# mypy: check-untyped-defs=False
"""A running log-sum-exp, and what knows no rows: c/cumulate.h and c/elements.h in Numba."""

from __future__ import annotations

import numpy as np
from numba import types

from fastsoftmax._backends._numba_functions import (
    base_of,
    exp_parts,
    log_of_sum,
    log_reduced,
    maximum_parts,
    shift_of,
    term,
)
from fastsoftmax._backends._numba_lanes import _first, _pair, advanced, fma, jit, rounded, staged, where
from fastsoftmax._backends._numba_rows import map_lanes, with_pair

REBASE = 277.0  # how far a running maximum may rise above the one that set the base: about 400 ln 2
SQRT_TWO_LESS_1 = 0.41421356237309503


@staged(lambda *_: types.UniTuple(types.float64, 4))
def rebased(m, origin, c, n, total, low):
    """(c, N) of a new base for the maximum m, and the running sum on it: the factor is e^(c - c') 2^(N - N')."""
    c_new, n_new = shift_of(m)
    down = (c - c_new).math("minnum", 0.0)  # it is, but for the first element
    factor = term(down, *base_of(m.like(0.0), n_new - n)[:2]) * m.format.down
    factor = where(origin, "==", -np.inf, 0.0, factor)
    return c_new, n_new, total * factor, low * factor


maximum_term = staged(_pair)(maximum_parts)
log_of_terms = staged(_first)(log_of_sum)


@staged(_first)
def other_term(v, c, n):
    return term(v, *base_of(c, n))


@staged(_pair)
def times(count, high):
    product = count * high
    return product, fma(count, high, -product)


@jit
def logcumsumexp_row(x, y, n):
    """A running sum of the terms below the running maximum; the maxima are counted, not added."""
    m, count, high, low = -np.inf, 0.0, 0.0, 0.0  # the maximum, how often it came, its term
    total, total_low = 0.0, 0.0
    origin, c, shift = -np.inf, 0.0, 0.0  # the element that set the base, and the base
    result = -np.inf
    for i in range(n):
        v = np.float64(x[i])
        if v != v or m != m:
            m = result = np.nan
        elif v == np.inf or m == np.inf:
            m = result = np.inf
        elif v != -np.inf:
            if v > m:
                added, added_low = times(count, high)
                total, total_low = with_pair(total, total_low, added, added_low)
                if v - origin > REBASE:
                    c, shift, total, total_low = rebased(v, origin, c, shift, total, total_low)
                    origin = v
                m, count = v, 1.0
                high, low = maximum_term(m - c, shift)
            elif v == m:
                count += 1.0
            else:
                total, total_low = with_pair(total, total_low, other_term(v, c, shift), 0.0)
            result = m + log_of_terms(count, total, total_low, high, low)
        y[i] = rounded(result, y)


def exp_of_minus_abs(x):
    """2^BOOST e^-|x|."""
    zero = x.like(0.0)
    return term(where(x, ">", zero, -x, x), *base_of(zero, zero)[:2])


@staged(_first)
def sigmoid_of(x, _):
    e = exp_of_minus_abs(x)
    return where(x, ">=", 0.0, x.format.up, e) / (1.0 + e * x.format.down) * x.format.down


@staged(_first)
def softplus_of(x, _):
    e = exp_of_minus_abs(x) * x.format.down
    f = where(e, ">", SQRT_TWO_LESS_1, (e - 1.0) * 0.5, e)
    k = where(e, ">", SQRT_TWO_LESS_1, 1.0, e.like(0.0))
    return where(x, "<", 0.0, 0.0, x) + log_reduced(k, f, x.like(0.0))


def parts_below_1(x):
    """(s, scale) of e^x for x <= 0 as c/gradient.h has them, not subnormal."""
    lowest = -708.0 if x.format.mantissa == 52 else -87.0
    t = where(x, "<", lowest, lowest, x)
    return exp_parts(t, t.like(t.format.magic + (t.format.bias - t.format.boost)))


@staged(_first)
def exp_of(x, _):
    s, scale = parts_below_1(x)
    return fma(scale, s, scale)


@staged(_first)
def expm1_of(x, _):
    s, scale = parts_below_1(x)
    return fma(scale, s, scale - 1.0)


@jit
def logcumsumexp_rows(x, x_pitch, y, y_pitch, rows, n, *_):
    for k in range(rows):
        logcumsumexp_row(advanced(x, k * x_pitch), advanced(y, k * y_pitch), n)


@jit
def sigmoid_rows(x, x_pitch, y, y_pitch, rows, n, *_):
    for k in range(rows):
        map_lanes(sigmoid_of, advanced(x, k * x_pitch), advanced(y, k * y_pitch), 0, n, 0)


@jit
def softplus_rows(x, x_pitch, y, y_pitch, rows, n, *_):
    for k in range(rows):
        map_lanes(softplus_of, advanced(x, k * x_pitch), advanced(y, k * y_pitch), 0, n, 0)


@jit
def exp_rows(x, x_pitch, y, y_pitch, rows, n, *_):
    for k in range(rows):
        map_lanes(exp_of, advanced(x, k * x_pitch), advanced(y, k * y_pitch), 0, n, 0)


@jit
def expm1_rows(x, x_pitch, y, y_pitch, rows, n, *_):
    for k in range(rows):
        map_lanes(expm1_of, advanced(x, k * x_pitch), advanced(y, k * y_pitch), 0, n, 0)
