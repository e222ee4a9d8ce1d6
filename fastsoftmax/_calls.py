"""One call: from what the caller gave, over rows, to what the caller gets. Knows axes, dtypes and out; no formulas.

What is given is first brought into a form that a backend's `run` takes: native, aligned, apart from the output, seen as
(outer, n, inner).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import _backends, _dispatch
from ._arrays import (
    FLOAT32,
    FLOAT64,
    Array,
    DTypeArg,
    Rows,
    as_array,
    as_elements,
    as_rows,
    check_out,
    convert,
    deliver,
    normalize_axes,
    overlap,
    reduced_shapes,
    result_dtype,
    rows_last,
    same_memory,
)
from ._config import get_num_threads, resolve

EXACT = 1 << 53  # integers up to here are exact in float64
SHIFTED = ("softmax", "log_softmax", *_backends.ROW_REDUCTIONS)  # what can be had from differences within a row
WIDER: dict[np.dtype[Any], np.dtype[Any]] = {FLOAT32: FLOAT64, FLOAT64: np.dtype(np.longdouble)}


def map_rows(
    op: str,
    x: ArrayLike,
    axis: Any,
    dtype: DTypeArg,
    out: Array | None,
    backend: str | None,
    *,
    negate: bool = False,
    beta: float = 1.0,
) -> Array:
    """softmax and its like, of x or of -x: an array of the shape of x. Also f(beta x) / beta of every element."""
    x = as_array(x, "x")
    result, axes = result_dtype(x.dtype, dtype, "x"), normalize_axes(axis, x.ndim)
    if backend is not None:
        backend = resolve(backend)
    target = None if out is None else check_out(out, x.shape, result)
    if x.size == 0:
        return np.empty(x.shape, result) if out is None else out

    taken = taken_dtype(op, x, result, axes, backend) if beta == 1 else _dispatch.work_dtype(result)
    work, _ = load(op, x, result, taken, axes, negate)
    if beta != 1:  # in a wider type, or e^(beta x) would be off by |beta x| ulp
        with np.errstate(all="ignore"):
            work = np.asarray(work.astype(WIDER.get(work.dtype, work.dtype)) * beta)
    if target is not None and target.dtype == work.dtype and target.flags.aligned:
        y = target
        if work is x and not same_memory(x, y) and overlap(x, y):
            work = x.copy()
    else:
        y = np.empty_like(x) if work is x else work

    execute(op, work, y, axes, backend)
    if beta != 1:
        with np.errstate(all="ignore"):
            y /= beta
    return deliver(y, result, target, out)


def reduce_rows(
    op: str, a: ArrayLike, axis: Any, dtype: DTypeArg, out: Array | None, backend: str | None, keepdims: bool
) -> Any:
    """logsumexp and its like: one number a row; a NumPy scalar if no axis is left."""
    a = as_array(a, "a")
    result, axes = result_dtype(a.dtype, dtype, "a"), normalize_axes(axis, a.ndim)
    if backend is not None:
        backend = resolve(backend)
    kept, shape = reduced_shapes(a.shape, axes, keepdims)
    target = None if out is None else check_out(out, shape, result)

    if a.size == 0:
        y = np.full(kept, np.nan if op == "logmeanexp" else -np.inf, result)
    else:
        work, top = load(op, a, result, taken_dtype(op, a, result, axes, backend), axes)
        if target is not None and target.dtype == work.dtype and target.flags.aligned:
            y = target.reshape(kept)
            if work is a and overlap(a, y):
                work = a.copy()
        else:
            y = np.empty(kept, work.dtype)
        execute(op, work, y, axes, backend)
        if top is not None:
            y += top
    delivered = deliver(y.reshape(shape), result, target, out)
    return delivered[()] if out is None else out


def hardmax_rows(x: ArrayLike, axis: Any, dtype: DTypeArg, out: Array | None, backend: str | None) -> Array:
    """One-hot of the first maximum. NumPy's argmax does all the work, so every backend is this one."""
    x = as_array(x, "x")
    result, axes = result_dtype(x.dtype, dtype, "x"), normalize_axes(axis, x.ndim)
    if backend is not None:
        resolve(backend)
    target = None if out is None else check_out(out, x.shape, result)
    y = np.zeros(x.shape, result)
    if x.size:
        if x.dtype.kind not in "biu" or dtype is not None:
            x = convert(convert(x, result), _dispatch.work_dtype(result))
        moved = rows_last(x, axes)
        rows = moved.reshape(-1, math.prod(x.shape[i] for i in axes))
        first = rows.argmax(axis=1)[:, None]
        hot = np.zeros(rows.shape, result)
        np.put_along_axis(hot, first, 1, axis=1)
        hot[~(np.take_along_axis(rows, first, axis=1) > -np.inf)[:, 0]] = np.nan  # NaN, or -inf throughout
        rows_last(y, axes)[...] = hot.reshape(moved.shape)
    return deliver(y, result, target, out)


def taken_dtype(op: str, x: Array, result: np.dtype[Any], axes: tuple[int, ...], backend: str | None) -> np.dtype[Any]:
    """What the backend is given for a result of that dtype: the same, or the dtype that it is computed in."""
    if result.itemsize != 2:
        return result
    n = math.prod(x.shape[i] for i in axes)
    return _dispatch.choose(op, result, x.size // n, n, backend, get_num_threads()).dtype


def load(
    op: str, x: Array, result: np.dtype[Any], taken: np.dtype[Any], axes: tuple[int, ...], negate: bool = False
) -> tuple[Array, Array | None]:
    """x or -x as a backend is given it, x itself where it can be; and what was taken off integers that are too big."""
    big = x.dtype.kind in "iu" and x.itemsize == 8 and (x.max() > EXACT or x.min() < -EXACT)
    if big and result == FLOAT64 and op in SHIFTED:
        return shift_integers(x, axes, negate)
    work = convert(convert(x, result), taken)
    if negate:
        work = np.negative(work, out=np.empty_like(work) if work is x else work)
    return work, None


def shift_integers(x: Array, axes: tuple[int, ...], negate: bool) -> tuple[Array, Array]:
    """x (or -x) less its maximum, and the maximum: differences of 64-bit integers are exact modulo 2^64."""
    top = x.min(axis=axes, keepdims=True) if negate else x.max(axis=axes, keepdims=True)
    high, low = (x, top) if negate else (top, x)
    below = np.asarray(high.astype(np.uint64) - low.astype(np.uint64)).astype(np.float64)
    return np.negative(below, out=below), top.astype(np.float64)


def execute(op: str, x: Array, y: Array, axes: tuple[int, ...], backend: str | None) -> None:
    """Run op from x into y; both native and aligned, y of a reduction with axes of length 1."""
    reduces = op in _backends.ROW_REDUCTIONS
    rows = as_elements(x, y) if op in _backends.ELEMENT_MAPS else as_rows(x, y, axes, reduces)
    if rows is not None:
        run(op, rows, backend)
        return
    view = rows_last(y, axes)  # no three strides describe it: through a copy that has its rows side by side
    copy = rows_last(x, axes).copy(order="C")
    values = np.empty(view.shape, view.dtype) if reduces else copy
    n = math.prod(x.shape[i] for i in axes)
    run(op, Rows(copy, values, x.size // n, n, 1), backend)
    view[...] = values


def run(op: str, rows: Rows, backend: str | None) -> None:
    x, y, outer, n, inner = rows
    choice = _dispatch.choose(op, x.dtype, outer * inner, n, backend, get_num_threads())
    _backends.load(choice.backend).run(op, x, y, outer, n, inner, choice.threads)


def explain(
    x: ArrayLike, axis: Any = -1, *, op: str = "softmax", dtype: DTypeArg = None, backend: str | None = None
) -> _dispatch.Choice:
    """Say which backend and how many threads a call would use, and why.

    Parameters
    ----------
    x : array_like
        The array of that call.
    axis : int, tuple of ints or None
        The axis or axes that make a row; None is all of them.
    op : str
        The name of the function.
    dtype, backend
        As they would be given to the function.

    Returns
    -------
    Choice
        With attributes op, backend, threads, dtype, rows, n and reason; `str` makes a sentence of it.

    Examples
    --------
    >>> import numpy as np, fastsoftmax
    >>> print(fastsoftmax.explain(np.zeros((4, 10)), backend="numpy"))
    softmax of 4 x 10 float64: numpy, 1 thread (asked for by backend=; numpy uses one thread)
    """
    if op not in _dispatch.OPS:
        raise ValueError(f"op: {op!r} is unknown; there are {', '.join(_dispatch.OPS)}")
    array = as_array(x, "x")
    result = result_dtype(array.dtype, dtype, "x")
    n = math.prod(array.shape[i] for i in normalize_axes(axis, array.ndim))
    return _dispatch.choose(op, result, array.size // max(n, 1), n, backend, get_num_threads())
