"""logsumexp with weights and of complex numbers: SciPy's semantics, computed one precision wider.

With T the sum of b e^(a - shift), B its part where (the real part of) a is largest and s the rest, log|T| is
log|B| + log|1 + s/B|, and log|1 + q| = log1p(Re q (2 + Re q) + (Im q)^2) / 2 keeps the digits of a small q.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._arrays import (
    Array,
    DTypeArg,
    as_array,
    check_out,
    common_shape,
    convert,
    deliver,
    normalize_axes,
    reduced_shapes,
    result_dtype,
    rows_last,
)
from ._config import resolve
from ._modified import Asked, applied

TILE = 1 << 16  # elements worked on at a time
WIDER = {"f": "d", "d": "g", "F": "D", "D": "G"}


def weighted_logsumexp(
    a: ArrayLike,
    b: ArrayLike | None,
    asked: Asked,
    axis: Any,
    keepdims: bool,
    return_sign: bool,
    dtype: DTypeArg,
    out: Array | None,
    backend: str | None,
) -> Any:
    """log(sum b e^a), or with return_sign log|sum b e^a| and the sign (complex: the phase) of the sum."""
    if return_sign and out is not None:
        raise ValueError("out: cannot take two results; leave it away with return_sign=True")
    if backend is not None:
        resolve(backend)
    arrays = [as_array(a, "a")] + ([] if b is None else [as_array(b, "b")])
    floats = [result_dtype(x.dtype, None, name, complex_too=True) for x, name in zip(arrays, "ab", strict=False)]
    given = [x.dtype for x in arrays] if all(x.dtype.kind != "V" for x in arrays) else floats  # bfloat16 knows no ints
    result = result_dtype(np.result_type(*given), dtype, "a", complex_too=True)
    if not asked.nothing:
        arrays[0] = applied(arrays[0], asked, axis, result)
    arrays = list(_broadcast(arrays))
    axes = normalize_axes(axis, arrays[0].ndim)
    _, shape = reduced_shapes(arrays[0].shape, axes, keepdims)
    target = None if out is None else check_out(out, shape, result)

    logs, totals = _rows_of(arrays, axes, result)
    with np.errstate(all="ignore"):
        if return_sign:
            signs = np.sign(totals).astype(result).reshape(shape)
            return logs.astype(result.type(0).real.dtype).reshape(shape)[()], signs[()]
        if result.kind == "c":
            angle = np.angle(totals)
            values = logs + 1j * np.where(angle == -np.pi, np.pi, angle)
        else:
            values = np.where(totals < 0, np.nan, logs)
    delivered = deliver(values.reshape(shape), result, target, out)
    return delivered[()] if out is None else out


def _broadcast(arrays: list[Array]) -> tuple[Array, ...]:
    try:
        shape = common_shape(*(array.shape for array in arrays))
    except ValueError:
        raise ValueError(f"b: shape {arrays[1].shape} does not broadcast with a of shape {arrays[0].shape}") from None
    return tuple(np.broadcast_to(array, shape) for array in arrays)


def _rows_of(arrays: list[Array], axes: tuple[int, ...], result: np.dtype[Any]) -> tuple[Array, Array]:
    """log|T| and T (up to a positive factor) of every row, in the wider type."""
    wide = np.dtype(WIDER.get(result.char, result.char if result.itemsize > 2 else "d"))
    n = math.prod(arrays[0].shape[i] for i in axes)
    count = math.prod(length for i, length in enumerate(arrays[0].shape) if i not in axes)
    totals = np.zeros(count, wide)
    logs = np.full(count, -np.inf, totals.real.dtype)
    if n:
        rows = [rows_last(array, axes).reshape(count, n) for array in arrays]
        step = max(1, TILE // n)
        with np.errstate(all="ignore"):
            for i in range(0, count, step):
                tile = slice(i, i + step)
                logs[tile], totals[tile] = _log_sums(
                    *(convert(row[tile], result).astype(wide, order="C") for row in rows)
                )
    return logs, totals


def _log_sums(a: Array, b: Array | None = None) -> tuple[Array, Array]:
    if b is not None:
        a[b == 0] = -np.inf  # a weight of zero drops its term, even an infinite or NaN one
    top = a.real.max(axis=1, keepdims=True)
    finite = np.isfinite(top)
    shift = np.where(finite, top, 0)  # infinities are left to the exponential
    terms = np.exp(a - shift)
    if b is not None:
        terms *= b
    at_top = (a.real == top) & finite
    largest = np.add.reduce(np.where(at_top, terms, 0), axis=1)
    rest = np.add.reduce(np.where(at_top, 0, terms), axis=1)
    total = np.where(finite[:, 0], largest + rest, np.add.reduce(terms, axis=1))
    q = rest / largest
    near = np.log(np.abs(largest)) + 0.5 * np.log1p(q.real * (2 + q.real) + q.imag * q.imag)
    logs = np.where(finite[:, 0] & (np.abs(q) < 0.5), near, np.log(np.abs(total)))
    return logs + shift[:, 0], total
