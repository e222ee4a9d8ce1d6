# What is jitted or staged is not Python to a type checker: Numba types it, from the arguments.
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-untyped-calls=False
# mypy: check-untyped-defs=False
"""Exponentials, the base of a row, and logarithms, over lanes or single numbers: c/exp.h and c/log.h in Numba."""

from __future__ import annotations

import numpy as np
from numba import types

from fastsoftmax._backends._numba_lanes import fma, horner, larger, staged, where

SQRT_HALF = float.fromhex("0x1.6a09e667f3bcdp-1")


def exp_parts(t, magic):
    """(s, scale) with e^t = (1 + s) 2^n and scale = 2^(n - N + BOOST), for magic = MAGIC + BIAS - N."""
    k = t.format.k
    z = fma(t, k.LOG2E, magic)
    n = z - magic
    r = fma(-n, k.LN2_HI, t)
    r = fma(-n, k.LN2_LO, r)
    return fma(horner(r, k.EXP), r * r, r), (z.bits() << t.format.mantissa).bits(z.kind)


def shift_of(m):
    """(c, N) for the maximum m: terms are e^(x - c) 2^-N, where either c = 0 or x - c is exact. Both 0 for -inf."""
    magic, edge = m.like(m.format.magic), m.format.shift_from
    magnitude = m.math("fabs")
    near = magnitude.math("minnum", edge).math("copysign", m)  # the product must not overflow; LLVM would take it out
    n = fma(near, m.format.k.LOG2E, magic) - magic  # of a mere selection
    c = where(magnitude, ">=", edge, where(m, ">", -np.inf, m, 0.0), 0.0)
    return c, where(magnitude, ">=", edge, 0.0, n)


def base_of(c, n):
    """What term() needs of them. The lowest exponent is a quarter up, so that no rounding mode makes it less."""
    lowest = (n - n.format.bias + 0.25) * n.format.k.LN2
    floor = where(c, ">", 0.0, 0.0, -np.inf)  # below, x - c could overflow; the term is 0 either way
    return n.format.magic + (n.format.bias - n), lowest, c, floor


def term(x, magic, lowest, c=None, floor=None):
    """e^(x - c) 2^(BOOST - N), +0 far below the maximum, NaN for NaN. No c is a c of 0: a tenth faster."""
    t = x if c is None else where(x, "<", floor, floor, x) - c
    s, scale = exp_parts(where(t, "<", lowest, lowest, t), magic)
    return fma(s, scale, scale)


def two_sum(a, b):
    """a + b and what the rounding left out."""
    h = a + b
    bb = h - a
    return h, (a - (h - bb)) + (b - bb)


def normal(total, total_low):
    """A sum in two parts as the nearest number and the rest."""
    s = total + total_low
    return s, (total - s) + total_low


def exp_pair(a, b):
    """e^(a - b) = (high + low) 2^n for a <= b, or as small as makes no difference."""
    half = (0.5 * a - 0.5 * b).math("maxnum", -2000.0)  # the whole must not overflow, as in shift_of
    t, magic = half + half, half.like(half.format.magic)
    high = 1.0 + (s := exp_parts(t, magic)[0])
    return high, s - (high - 1.0), where(t, ">", -4000.0, fma(t, t.format.k.LOG2E, magic) - magic, -8000.0)


def times_pair(high, low, f, f_low):
    """The product of two numbers in two parts each, that of the upper ones exact."""
    product = high * f
    return product, fma(high, f, -product) + (high * f_low + low * f)


def power_of_two(n):
    """2^n for an integer n in double, -1022 at least."""
    return ((n.cast(types.int64) + 1023) << 52).bits(types.float64)


def times_power(x, n):
    """x 2^n, and 0 far below all numbers."""
    near = larger(n, -1000.0)
    return x * power_of_two(near) * power_of_two(larger(n - near, -1000.0))


def log_reduced(k, f, low):
    """k ln2 + log(1 + f) + low, for 1 + f in [sqrt(1/2), sqrt(2)] and a small correction low (fdlibm's way)."""
    constants = f.format.k
    s = f / (2.0 + f)
    w = s * s
    half = 0.5 * f * f
    r = w * horner(w, constants.LOG)
    return fma(k, constants.LN2_HI, f - (half - fma(s, half + r, fma(k, constants.LN2_LO, low))))


def log_pair(a, low):
    """log(a + low) in double, for a >= 1; where a = 1 as accurate as low is."""
    bits = a.bits()
    k = (bits - a.like(SQRT_HALF).bits()) >> 52  # >= 0, since a >= 1
    z = (bits - (k << 52)).bits(a.kind)
    down = ((1023 - k) << 52).bits(a.kind)
    f, f_low = z - 1.0, low * down
    total = f + f_low
    return log_reduced(
        (k + a.like(2.0**52).bits()).bits(a.kind) - 2.0**52, total, ((f - total) + f_low) / (1.0 + total)
    )


def maximum_parts(t, n):
    """The term of the maximum, and what rounding took from it; t = m - c."""
    s, scale = exp_parts(t, base_of(t, n)[0])
    high = 1.0 + s
    return high * scale, (s - (high - 1.0)) * scale


def log_of_sum(count, total, total_low, high, low):
    """log(count + total / maximum's term): the log-sum-exp less the maximum, >= 0, without cancellation."""
    total, total_low = normal(total, total_low)
    r = total / high
    r_low = (fma(-r, high, total) + (total_low - r * low)) / high
    a, a_low = two_sum(count, r)
    return log_pair(a, a_low + r_low)


@staged(lambda n: types.float64)
def log_of_count(n):
    return log_pair(n.cast(types.float64), n.cast(types.float64).like(0.0))
