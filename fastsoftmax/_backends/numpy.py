"""The reference backend: the same numbers in plain NumPy, within the bounds of every other backend.

The error that every library has is the rounding of x - m: e^(rounded) carries |x - m| units in the last place. softmax
avoids it as the C kernels do, by a shift that is a power of two, and so stays monotone. The logarithms need e^(x - m)
with m exactly at 1; there the rounding error of x - m is itself computed (Knuth's TwoSum) and put back. All of it in
float64 for float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import ELEMENT_MAPS, Backend, Modifiers
from ._tilewise import EXP, EXPM1, modify_in_numpy, run_modified, tiles

Array = NDArray[Any]

SHIFT_FROM = 32768.0
NOTHING = 1e5  # this far below the maximum a term is 0 in every type
BOOST = 64
LOG2E = float.fromhex("0x1.71547652b82fep+0")
LN2_HIGH = float.fromhex("0x1.62e42fee00000p-1")  # 32 bits: a product with k is exact
LN2_LOW = np.longdouble(float.fromhex("0x1.a39ef35793c76p-33")) + np.longdouble(float.fromhex("0x1.cc01f97b57a08p-87"))
TILE = 1 << 16  # elements worked on at a time: the temporaries stay in the cache
MOST_LOG = 32.0  # above it y is no logarithm of a softmax: NaN, as everywhere
EASE = 2.0**60  # sums of terms below this many times the smallest normal number are taken again in long double


def _scaled_exp(x: Array, m: Array) -> Array:
    """e^x up to a power of two that a row has in common: exact where it matters but for exp itself and one rounding.

    x = k log 2 + r; far from 0 by less m, which is then exact for all x that count. Terms carry 2^BOOST, so that
    subnormal results are rounded once, when divided.
    """
    base = np.where(np.abs(m) >= SHIFT_FROM, m, 0)
    top = m - base
    t = np.maximum(x - base, top - NOTHING)
    k = np.rint(t * LOG2E)
    r = (t - k * LN2_HIGH) - k * x.dtype.type(LN2_LOW)
    scaled: Array = np.ldexp(np.exp(r), (k - np.rint(top * LOG2E)).astype(np.int32) + BOOST)
    return scaled


def _exp_minus(x: Array, m: Array) -> tuple[Array, Array]:
    """(e, d) with e^(x - m) = e + d, for x <= m; NaN where m is infinite and x equals it."""
    t = x - m
    b = t - x
    d = (x - (t - b)) - (m + b)
    d[t == -np.inf] = 0  # x is -inf, or so far below m that the difference overflows
    e = np.exp(t)
    return e, e * d


def _sum(e: Array, d: Array | float = 0.0) -> Array:
    """Row sums of e + d, e >= 0, in the widest type: cut at a bit where n leading parts add up exactly.

    NumPy's pairwise sum of 1000 terms alone is up to 5 ulp off: it begins with chains of 16.
    """
    _, exponent = np.frexp(np.maximum.reduce(e, axis=1, keepdims=True))
    cut = np.ldexp(e.dtype.type(1.5), exponent + e.shape[1].bit_length())
    leading = (e + cut) - cut
    low = np.add.reduce((e - leading) + d, axis=1, keepdims=True)
    total: Array = np.add.reduce(leading, axis=1, keepdims=True).astype(np.longdouble) + low
    return total


def _max(x: Array) -> Array:
    m: Array = np.maximum.reduce(x, axis=1, keepdims=True)
    return m


def _log_scale(x: Array, m: Array) -> Array:
    """L with log(sum e^x) = m + L: log c + log1p(r / c) >= 0, c maxima and r the sum without them. Never cancels."""
    at_max = x == m
    count = np.count_nonzero(at_max, axis=1, keepdims=True).astype(np.longdouble)
    e, d = _exp_minus(x, m)
    e[at_max] = d[at_max] = 0
    rest = np.asarray(_sum(e, d), np.longdouble)
    # terms may have lost digits, or vanished each on its own
    tiny = ((rest < np.finfo(x.dtype).tiny * EASE) & np.isfinite(m))[:, 0]
    if tiny.any():
        far = np.where(at_max[tiny], -np.inf, x[tiny]).astype(np.longdouble) - m[tiny]
        rest[tiny] = np.exp(far).sum(axis=1, keepdims=True)
    scale: Array = np.log(count) + np.log1p(rest / count)
    return scale


def softmax(x: Array) -> Array:
    e = _scaled_exp(x, _max(x))
    return np.divide(e, _sum(e), out=e, casting="same_kind")  # a row with +inf, or of -inf alone, is NaN


def log_softmax(x: Array) -> Array:
    m = _max(x)
    scale = _log_scale(x, m)
    scale[np.isposinf(m)] = np.nan  # as the logarithm of softmax, NaN throughout
    y: Array = (x - m) - scale.astype(x.dtype)
    return y


def logsumexp(x: Array) -> Array:
    m = _max(x)
    y: Array = m + _log_scale(x, m)
    return y


def logmeanexp(x: Array) -> Array:
    m = _max(x)
    y: Array = m + (_log_scale(x, m) - np.log(np.longdouble(x.shape[1])))
    return y


def logcumsumexp(x: Array) -> Array:
    """In the widest type, where the roundings of a long chain stay small; that is float64 on some systems."""
    y: Array = np.logaddexp.accumulate(x.astype(np.longdouble), axis=1)
    return y


def sigmoid(x: Array) -> Array:
    z = np.exp(-np.abs(x))
    y: Array = np.where(x < 0, z, 1) / (1 + z)
    return y


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
    EXP: np.exp,
    EXPM1: np.expm1,
}


def softmax_vjp(g: Array, y: Array) -> Array:
    dx: Array = y * (g - np.add.reduce(g * y, axis=-1, keepdims=True))
    return dx


def log_softmax_vjp(g: Array, y: Array) -> Array:
    e = np.exp(y)
    e[y > MOST_LOG] = np.nan
    dx: Array = g - e * np.add.reduce(g, axis=-1, keepdims=True)
    dx[(y == -np.inf).all(axis=-1)] = 0
    return dx


VJPS: dict[str, Callable[[Array, Array], Array]] = {"softmax": softmax_vjp, "log_softmax": log_softmax_vjp}


class NumpyBackend:
    name = "numpy"

    def run(
        self,
        op: str,
        x: Array,
        y: Array,
        outer: int,
        n: int,
        inner: int,
        threads: int,
        modifiers: Modifiers | None = None,
    ) -> None:
        if op in ELEMENT_MAPS and x.flags.c_contiguous and y.flags.c_contiguous:
            outer, n, inner = x.size, 1, 1  # no row to keep together: cut anywhere
        wide = np.promote_types(x.dtype, np.float64)

        def kernel(op: str, rows: Array) -> Array:
            return KERNELS[op](np.ascontiguousarray(rows, dtype=wide).reshape(-1, rows.shape[-1]))

        todo = tiles(outer, n, inner, TILE)
        with np.errstate(all="ignore"):
            if modifiers is not None:
                run_modified(kernel, op, x, y, modifiers, todo, modify_in_numpy)
                return
            rows_of_x = x.reshape(outer, n, inner).swapaxes(1, 2)
            rows_of_y = y.reshape(outer, -1, inner).swapaxes(1, 2)  # one column for the reductions
            for tile in todo:
                rows = rows_of_x[tile]
                rows_of_y[tile] = kernel(op, rows).reshape(*rows.shape[:2], -1)

    def vjp(self, op: str, g: Array, y: Array, dx: Array, outer: int, n: int, inner: int, threads: int) -> None:
        wide = np.dtype(np.float64 if y.dtype == np.float32 else np.longdouble)
        with np.errstate(all="ignore"):
            for tile in tiles(outer, n, inner, TILE):
                rows = [np.ascontiguousarray(a.swapaxes(1, 2)[tile], dtype=wide) for a in (g, y)]
                dx.swapaxes(1, 2)[tile] = VJPS[op](*rows)


def available() -> tuple[str, ...]:
    return ("numpy",)


def load(name: str) -> Backend:
    return NumpyBackend()
