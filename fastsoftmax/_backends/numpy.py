"""The reference backend: the same numbers in plain NumPy, within the bounds of every other backend.

float32 rows are computed in float64. The error that every library
has is the rounding of x - m: e^(rounded) carries |x - m| units in the last place. Here that rounding error is itself
computed (Knuth's TwoSum: exact) and put back: e^(t + d) = e^t (1 + d) to first order, the second being below 2^-86.
The power-of-two shift of the C kernels would do as well; it costs an ldexp an element here, and an inexact e^m.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import ELEMENT_MAPS, Backend

Array = NDArray[Any]

TILE = 1 << 16  # elements worked on at a time: the temporaries stay in the cache


def _exp_minus(x: Array, m: Array) -> tuple[Array, Array]:
    """(e, d) with e^(x - m) = e (1 + d), for x <= m; e is NaN where m is infinite and x equals it."""
    t = x - m
    b = t - x
    d = (x - (t - b)) - (m + b)
    d[t == -np.inf] = 0  # x is -inf, or so far below m that the difference overflows
    return np.exp(t), d


def _sum(e: Array, d: Array) -> tuple[Array, Array]:
    """Row sums of e (1 + d) in two parts. Cut at a bit where n leading parts add up exactly; the rest is too small to
    err. NumPy's pairwise sum of 1000 terms alone is up to 5 ulp off: it begins with chains of 16.
    """
    _, exponent = np.frexp(np.maximum.reduce(e, axis=1, keepdims=True))
    cut = np.ldexp(e.dtype.type(1.5), exponent + e.shape[1].bit_length())
    leading = (e + cut) - cut
    high = np.add.reduce(leading, axis=1, keepdims=True)
    low = np.add.reduce((e - leading) + e * d, axis=1, keepdims=True)
    total: Array = high + low
    return total, (high - total) + low


def _max(x: Array) -> Array:
    m: Array = np.maximum.reduce(x, axis=1, keepdims=True)
    return m


def _log_scale(x: Array, m: Array) -> Array:
    """L >= 0 with log(sum e^x) = m + L: log c + log1p(r / c), c maxima and r the sum without them. Never cancels."""
    at_max = x == m
    count = np.count_nonzero(at_max, axis=1, keepdims=True).astype(x.dtype)
    e, d = _exp_minus(x, m)
    e[at_max] = d[at_max] = 0
    rest, _ = _sum(e, d)
    scale: Array = np.log(count) + np.log1p(rest / count)
    return scale


def softmax(x: Array) -> Array:
    e, d = _exp_minus(x, _max(x))
    total, rest = _sum(e, d)  # a row with +inf, or of -inf alone, has NaN here
    y: Array = e / total
    y += y * (d - rest / total)
    return y


def log_softmax(x: Array) -> Array:
    m = _max(x)
    scale = _log_scale(x, m)
    scale[np.isposinf(m)] = np.nan  # as the logarithm of softmax, NaN throughout
    y: Array = (x - m) - scale
    return y


def logsumexp(x: Array) -> Array:
    m = _max(x)
    y: Array = m + _log_scale(x, m)
    return y


def logmeanexp(x: Array) -> Array:
    m = _max(x)
    return m + (_log_scale(x, m) - np.log(x.dtype.type(x.shape[1])))


def logcumsumexp(x: Array) -> Array:
    """Prefix sums by doubling (Hillis & Steele 1986), e^m (1 + r) each: the error grows with log n, not with n."""
    m, r = x, np.zeros_like(x)
    step = 1
    while step < x.shape[1]:
        before, after = slice(None, -step), slice(step, None)
        m1, m2 = m[:, before], m[:, after]
        top = np.maximum(m1, m2)
        e, d = _exp_minus(np.minimum(m1, m2), top)
        low = np.where(np.isinf(top), 0, e + e * d)
        first = m1 > m2  # the one whose maximum stays keeps its r, the other's sum is scaled to it
        r1, r2 = r[:, before], r[:, after]
        merged = np.where(first, r1, r2) + low * (1 + np.where(first, r2, r1))
        m, r = np.concatenate([m[:, :step], top], axis=1), np.concatenate([r[:, :step], merged], axis=1)
        step *= 2
    y: Array = m + np.log1p(r)
    return y


def sigmoid(x: Array) -> Array:
    z = np.exp(-np.abs(x))
    return np.where(x < 0, z, 1) / (1 + z)


def softplus(x: Array) -> Array:
    y: Array = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
    return y


KERNELS: dict[str, Callable[[Array], Array]] = {
    "softmax": softmax,
    "log_softmax": log_softmax,
    "logcumsumexp": logcumsumexp,
    "logsumexp": logsumexp,
    "logmeanexp": logmeanexp,
    "sigmoid": sigmoid,
    "softplus": softplus,
}


def tiles(outer: int, n: int, inner: int) -> Iterator[tuple[slice, slice]]:
    """Cuts of (outer, inner) that hold about TILE elements, at least one row."""
    rows = max(1, TILE // n)
    columns = min(inner, rows)
    depth = max(1, rows // columns)
    for o in range(0, outer, depth):
        for i in range(0, inner, columns):
            yield slice(o, o + depth), slice(i, i + columns)


class NumpyBackend:
    name = "numpy"

    def run(self, op: str, x: Array, y: Array, outer: int, n: int, inner: int, threads: int) -> None:
        if op in ELEMENT_MAPS and x.flags.c_contiguous and y.flags.c_contiguous:
            outer, n, inner = x.size, 1, 1  # no row to keep together: cut anywhere
        kernel = KERNELS[op]
        wide = np.promote_types(x.dtype, np.float64)
        rows_of_x = x.reshape(outer, n, inner).swapaxes(1, 2)
        rows_of_y = y.reshape(outer, -1, inner).swapaxes(1, 2)  # one column for the reductions
        with np.errstate(all="ignore"):
            for tile in tiles(outer, n, inner):
                rows = rows_of_x[tile]
                flat = np.ascontiguousarray(rows, dtype=wide).reshape(-1, n)
                rows_of_y[tile] = kernel(flat).reshape(*rows.shape[:2], -1)


def available() -> tuple[str, ...]:
    return ("numpy",)


def load(name: str) -> Backend:
    return NumpyBackend()
