"""Sums that are all but exactly rounded, whatever the order: of the losses of rows, and of the parts of one."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np

from ._arrays import Array

TILE = 1 << 16  # elements worked on at a time


def exact_sums(x: Array) -> Array:
    """Sums along the last axis in double at least, as if computed exactly and rounded once, but for one of millions."""
    wide = x.astype(np.promote_types(x.dtype, np.float64), copy=False)
    with np.errstate(all="ignore"):
        leading, low = _parts(wide)
        sums: Array = leading + low
        return np.where(np.isfinite(sums), sums, np.add.reduce(wide, axis=-1))


def exact_sum(x: Array) -> Any:
    """The same of all elements of an array."""
    flat = x.reshape(-1)
    wide = np.promote_types(x.dtype, np.float64)
    with np.errstate(all="ignore"):
        pieces = (flat[i : i + TILE].astype(wide) for i in range(0, flat.size, TILE))
        parts = np.asarray([part for piece in pieces for part in _parts(piece)], wide)
        if wide == np.float64 and np.isfinite(parts).all():
            with contextlib.suppress(OverflowError):
                return math.fsum(parts.tolist())
        return np.add.reduce(flat, dtype=wide)


def _parts(x: Array) -> tuple[Any, Any]:
    """Two sums along the last axis, which make up the whole.

    Numbers are cut at a bit above which they add up without any rounding, and what is below is added apart (S. M. Rump,
    T. Ogita, S. Oishi, "Accurate floating-point summation", SIAM J. Sci. Comput. 31(1), 2008).
    """
    _, exponent = np.frexp(np.maximum.reduce(np.abs(x), axis=-1, keepdims=True, initial=0))
    cut = np.ldexp(x.dtype.type(1.5), exponent + x.shape[-1].bit_length())
    leading = (x + cut) - cut
    return np.add.reduce(leading, axis=-1), np.add.reduce(x - leading, axis=-1)
