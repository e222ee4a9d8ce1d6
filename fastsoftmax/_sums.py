"""Sums that are all but exactly rounded, whatever the order: of the losses of rows, and of the parts of one."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._arrays import Array


def exact_sums(x: Array, axis: int | None = None) -> Any:
    """Sums of floats, in double at least, as if computed exactly and rounded once, but for one case in millions.

    Numbers are cut at a bit above which they add up without any rounding, and what is below is added apart (S. M. Rump,
    T. Ogita, S. Oishi, "Accurate floating-point summation", SIAM J. Sci. Comput. 31(1), 2008).
    """
    x = x.astype(np.promote_types(x.dtype, np.float64), copy=False)
    if x.size == 0:
        return np.add.reduce(x, axis=axis)
    with np.errstate(all="ignore"):
        most = np.maximum.reduce(np.abs(x), axis=axis, keepdims=True)
        _, exponent = np.frexp(most)
        count = x.size if axis is None else x.shape[axis]
        cut = np.ldexp(x.dtype.type(1.5), exponent + count.bit_length())
        leading = (x + cut) - cut
        low = np.add.reduce(x - leading, axis=axis)
        total = np.add.reduce(leading, axis=axis) + low
        return np.where(np.isfinite(np.squeeze(most, axis)), total, np.add.reduce(x, axis=axis))[()]
