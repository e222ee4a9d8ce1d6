# What is jitted or staged is not Python to a type checker: Numba types it, from the arguments.
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-untyped-calls=False
# mypy: check-untyped-defs=False
"""What is done with one row, or a piece of one: c/kernels.c in Numba, step for step and bit for bit."""

from __future__ import annotations

import operator

import numpy as np
from llvmlite import ir
from numba import types

from fastsoftmax._backends import coefficients
from fastsoftmax._backends._numba_functions import (
    base_of,
    exp_parts,
    log_of_count,
    log_of_sum,
    log_reduced,
    maximum_parts,
    normal,
    shift_of,
    term,
    two_sum,
)
from fastsoftmax._backends._numba_lanes import (
    WIDTH,
    Lanes,
    _first,
    _pair,
    fma,
    fold,
    halves,
    horner,
    jit,
    larger,
    load,
    load_first,
    load_or_zero,
    maximum,
    narrow,
    spread,
    staged,
    store,
    store_first,
    where,
)

BLOCK = 8192  # elements whose terms are summed in lanes; the blocks' sums are added in order
PEAK = 2.0**-6  # a row whose other terms are a smaller part than this of the sum has a peak
REBASE = 277.0  # how far a running maximum may rise above the one that set the base: about 400 ln 2
SQRT_TWO_LESS_1 = 0.41421356237309503


# ---- sums in the one order that all backends keep ----


@staged(lambda m, p: types.UniTuple(Lanes(p.dtype), 5))
def row_base(m, p):
    """All that the terms of a row with maximum m need, in lanes."""
    return [spread(v, Lanes(p.dtype)) for v in (*base_of(*shift_of(m)), m)]


def eight(v):
    """A group's two eights of lanes, added."""
    return fold(v, operator.add, 8)


def stored(x, y, i, k, base):
    """Terms i .. i + k - 1, stored in y; and none counted."""
    v = term(load_first(x, i, k), base[:4])
    store_first(y, i, k, v)
    return eight(v), i.like(0)


def masked(x, y, i, k, base):
    """Terms i .. i + k - 1, 0 for a maximum; and how many maxima there are."""
    v = load_first(x, i, k)
    equal = v.builder.bitcast(v.builder.fcmp_ordered("==", v.llvm, base[4].llvm), ir.IntType(WIDTH))
    count = i.call(f"llvm.ctpop.i{WIDTH}", types.uint16, equal).cast(types.intp)
    return eight(where(v, "==", base[4], 0.0, term(v, base[:4]))), count


visit = staged(lambda x, *_: types.Tuple([Lanes(x.dtype, 8), types.intp]))
visit_stored, visit_masked = visit(stored), visit(masked)


@staged(lambda base: Lanes(types.float64, 8))
def no_sum(base):
    return spread(base[0].new(types.float64, None).like(0.0), Lanes(types.float64, 8))


@staged(_pair)
def add_group(high, low, s):
    """A block's sum in eight lanes of double, with eight lanes of a group added."""
    if s.dtype == types.float32:
        return high + s.cast(types.float64), low
    high, e = two_sum(high, s)
    return high, low + e


@staged(lambda lanes, *_: types.UniTuple(lanes.dtype, 2))
def fold_sum(high, low, s):
    """A block's sum in two doubles; s tells the type of the terms."""
    if s.dtype == types.float32:
        return fold(high, operator.add), fold(low, operator.add)
    while isinstance(high.kind, Lanes):
        (a, b), (a_low, b_low) = halves(high), halves(low)
        high, e = two_sum(a, b)
        low = (a_low + b_low) + e
    return high, low


@staged(lambda lanes: lanes.dtype)
def fold_maximum(v):
    return fold(v, larger)


@staged(_pair)
def add_block(total, total_low, high, low):
    """A row's sum in two doubles, with a block's added."""
    total, e = two_sum(total, high)
    return total, total_low + (e + low)


@jit
def block_sum(visit, x, y, begin, end, base):
    """The terms of a block as (high, low) in double, and the count of the maxima."""
    high = low = no_sum(base)
    count, i = 0, begin
    while i + WIDTH <= end:
        s, k = visit(x, y, i, WIDTH, base)
        high, low = add_group(high, low, s)
        count, i = count + k, i + WIDTH
    if i < end:
        s, k = visit(x, y, i, end - i, base)
        high, low = add_group(high, low, s)
        count += k
    total, total_low = fold_sum(high, low, base[0])
    return total, total_low, count


@jit
def row_sum(visit, x, y, n, base):
    """The terms of a row as (high, low) in double, and the count of the maxima."""
    total, total_low, count = 0.0, 0.0, 0
    for begin in range(0, n, BLOCK):
        high, low, k = block_sum(visit, x, y, begin, min(begin + BLOCK, n), base)
        total, total_low = add_block(total, total_low, high, low)
        count += k
    return total, total_low, count


# ---- rows and pieces of rows ----


@jit
def largest(x, begin, end):
    """The maximum of a piece of a row, NaN left out; -inf where there is nothing else."""
    a = b = c = d = load(x, begin, 0)
    i = begin
    while i + 64 <= end:
        a, b = maximum(load(x, i, 16), a), maximum(load(x, i + 16, 16), b)
        c, d = maximum(load(x, i + 32, 16), c), maximum(load(x, i + 48, 16), d)
        i += 64
    while i < end:
        a = maximum(load(x, i, min(WIDTH, end - i)), a)
        i += WIDTH
    return fold_maximum(maximum(maximum(a, b), maximum(c, d)))


@jit
def map_lanes(function, x, y, begin, end, parameters):
    """y = function(x, parameters)."""
    i = begin
    while i + WIDTH <= end:
        store(y, i, WIDTH, function(load(x, i, WIDTH), parameters))
        i += WIDTH
    if i < end:
        store(y, i, end - i, function(load_or_zero(x, i, end - i), parameters))


@jit
def fill_nan(y, begin, end):
    nan = narrow(np.nan, y)
    for i in range(begin, end):
        y[i] = nan


@jit
def is_finite(m):
    return m - m == 0


def top_of(m):
    """The term of the maximum, in double, and what rounding took from it."""
    c, n = shift_of(m)
    t = m - c
    s, scale = exp_parts(t, base_of(c, n)[1])
    rounded = fma(s, scale, scale).cast(types.float64)
    if m.dtype == types.float64:
        return rounded, (s - ((1.0 + s) - 1.0)) * scale
    r = fma(-n.cast(types.float64), coefficients.F64.LN2, t.cast(types.float64))
    exact = (1.0 + fma(horner(r, m.format.k.EXP), r * r, r)) * m.format.up
    return rounded, exact - rounded


@staged(lambda m, total, low, y: types.UniTuple(Lanes(y.dtype), 4))
def reciprocal(m, total, low, y):
    """1 / the sum as two numbers of y's type; the term of a maximum that is nearly all of it (else 0), and its result.

    What rounding took from the maximum's term is put back into the sum: 0.6 ulp less at worst. The term itself stays as
    it is but where it is all but alone: there the result must not pass 1.
    """
    rounded, lost = top_of(m)
    s, s_low = normal(total, low + lost)
    inverse = high = 1.0 / s
    if y.dtype == types.float32:
        high = inverse.cast(y.dtype)
        low = (inverse - high.cast(types.float64)).cast(y.dtype)
        top = ((rounded + lost) * inverse).cast(y.dtype)
    else:
        low = fma(-s_low, high, fma(-s, high, s.like(1.0))) * high
        top = fma(rounded, high, fma(rounded, low, lost * high))
    peak = where(s - rounded, "<", s * PEAK, rounded, 0.0).cast(y.dtype)
    return [spread(v, Lanes(y.dtype)) for v in (high, low, peak, top)]


def scaled(term, inverse):
    return fma(term, inverse[0], term * inverse[1])


def scaled_peak(term, inverse):
    return where(term, "==", inverse[2], inverse[3], scaled(term, inverse))


scale_all, scale_peak = staged(_first)(scaled), staged(_first)(scaled_peak)


@staged(lambda *_: types.boolean)
def has_peak(inverse):
    first = ir.IntType(32)(0)
    peak = inverse[2].new(inverse[2].dtype, inverse[2].builder.extract_element(inverse[2].llvm, first))
    return peak.new(types.boolean, peak.builder.fcmp_ordered(">", peak.llvm, peak.like(0.0).llvm))


@jit
def scale(y, begin, end, inverse):
    if has_peak(inverse):
        map_lanes(scale_peak, y, y, begin, end, inverse)
    else:
        map_lanes(scale_all, y, y, begin, end, inverse)


@staged(lambda m, log_sum, y: types.UniTuple(Lanes(y.dtype), 2))
def log_sum_exp(m, log_sum, y):
    """m + log_sum as two numbers of y's type."""
    m = m.cast(types.float64)
    high, low = two_sum(m, log_sum)
    if y.dtype == types.float32:
        high = high.cast(y.dtype)
        low = ((m - high.cast(types.float64)) + log_sum).cast(y.dtype)
    return spread(high, Lanes(y.dtype)), spread(low, Lanes(y.dtype))


@staged(_first)
def lowered(x, k):
    return (x - k[0]) - k[1]


@staged(lambda *_: types.float64)
def log_of_row(m, total, total_low, count):
    """The row's log-sum-exp less its maximum."""
    c, n = shift_of(m)
    high, low = maximum_parts((m - c).cast(types.float64), n.cast(types.float64))
    unit = m.format.up_from_64
    return log_of_sum(count.cast(types.float64), total, total_low, high * unit, low * unit)


@jit
def softmax_row(x, y, n):
    m = largest(x, 0, n)
    if is_finite(m):
        s, s_low, _ = row_sum(visit_stored, x, y, n, row_base(m, x))
        if s == s:
            scale(y, 0, n, reciprocal(m, s, s_low, y))
            return
    fill_nan(y, 0, n)


@jit
def log_softmax_row(x, y, n):
    m = largest(x, 0, n)
    if is_finite(m):
        s, s_low, count = row_sum(visit_masked, x, x, n, row_base(m, x))
        if s == s:
            map_lanes(lowered, x, y, 0, n, log_sum_exp(m, log_of_row(m, s, s_low, count), y))
            return
    fill_nan(y, 0, n)


@jit
def finished(x, n, m, s, s_low, count):
    """(maximum, log-sum-exp less the maximum) of a row, from its sum."""
    if is_finite(m):
        return (np.float64(m), log_of_row(m, s, s_low, count)) if s == s else (np.nan, 0.0)
    for i in range(n):
        if x[i] != x[i]:
            return np.nan, 0.0
    return np.float64(m), 0.0


@jit
def log_sum_exp_row(x, n):
    m = largest(x, 0, n)
    s, s_low, count = 0.0, 0.0, 0
    if is_finite(m):
        s, s_low, count = row_sum(visit_masked, x, x, n, row_base(m, x))
    return finished(x, n, m, s, s_low, count)


@jit
def sum_of(m, log_sum, n):
    return m + log_sum


@jit
def mean_of(m, log_sum, n):
    return m + (log_sum - log_of_count(n))


@staged(lambda *_: types.UniTuple(types.float64, 4))
def rebased(m, origin, c, n, total, low):
    """(c, N) of a new base for the maximum m, and the running sum on it: the factor is e^(c - c') 2^(N - N')."""
    c_new, n_new = shift_of(m)
    down = m.call("llvm.minnum.f64", m.dtype, (c - c_new).llvm, m.like(0.0).llvm)  # it is, but for the first element
    factor = term(down, base_of(m.like(0.0), n_new - n)) * m.format.down
    factor = where(origin, "==", -np.inf, 0.0, factor)
    return c_new, n_new, total * factor, low * factor


maximum_term = staged(_pair)(maximum_parts)
log_of_terms = staged(_first)(log_of_sum)


@staged(_first)
def other_term(v, c, n):
    return term(v, base_of(c, n))


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
                total, total_low = add_block(total, total_low, added, added_low)
                if v - origin > REBASE:
                    c, shift, total, total_low = rebased(v, origin, c, shift, total, total_low)
                    origin = v
                m, count = v, 1.0
                high, low = maximum_term(m - c, shift)
            elif v == m:
                count += 1.0
            else:
                total, total_low = add_block(total, total_low, other_term(v, c, shift), 0.0)
            result = m + log_of_terms(count, total, total_low, high, low)
        y[i] = narrow(result, y)


def exp_of_minus_abs(x):
    """2^BOOST e^-|x|."""
    zero = x.like(0.0)
    return term(where(x, ">", zero, -x, x), base_of(zero, zero))


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


@jit
def sigmoid_row(x, y, n):
    map_lanes(sigmoid_of, x, y, 0, n, 0)


@jit
def softplus_row(x, y, n):
    map_lanes(softplus_of, x, y, 0, n, 0)
