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
    as_array,
    check_out,
    convert,
    deliver,
    normalize_axes,
    overlap,
    reduced_shapes,
    result_dtype,
    row_views,
    rows_last,
    same_memory,
)
from ._backends import Modifiers, work_dtype
from ._config import get_num_threads, resolve

EXACT = 1 << 53  # integers up to here are exact in float64
SHIFTED = ("softmax", "log_softmax", *_backends.ROW_REDUCTIONS)  # what can be had from differences within a row
RESULTS = ("lse", "log_prob")  # modifiers that are written
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

    choice = choose(op, x, result, axes, backend)
    work, _ = load(op, x, result, choice.dtype if beta == 1 else work_dtype(result), axes, negate)
    if beta != 1:  # in a wider type, or e^(beta x) would be off by |beta x| ulp
        with np.errstate(all="ignore"):
            work = np.asarray(work.astype(WIDER.get(work.dtype, work.dtype)) * beta)
        choice = choose(op, x, work.dtype, axes, backend)
    if target is not None and target.dtype == work.dtype and target.flags.aligned:
        y = target
        if work is x and not same_memory(x, y) and overlap(x, y):
            work = x.copy()
    else:
        y = np.empty_like(x) if work is x else work

    execute(choice, work, y, axes)
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
        choice = choose(op, a, result, axes, backend)
        work, top = load(op, a, result, choice.dtype, axes)
        if target is not None and target.dtype == work.dtype and target.flags.aligned:
            y = target.reshape(kept)
            if work is a and overlap(a, y):
                work = a.copy()
        else:
            y = np.empty(kept, work.dtype)
        execute(choice, work, y, axes)
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
            x = convert(convert(x, result), work_dtype(result))
        moved = rows_last(x, axes)
        rows = moved.reshape(-1, math.prod(x.shape[i] for i in axes))
        first = rows.argmax(axis=1)[:, None]
        hot = np.zeros(rows.shape, result)
        np.put_along_axis(hot, first, 1, axis=1)
        hot[~(np.take_along_axis(rows, first, axis=1) > -np.inf)[:, 0]] = np.nan  # NaN, or -inf throughout
        rows_last(y, axes)[...] = hot.reshape(moved.shape)
    return deliver(y, result, target, out)


def choose(op: str, x: Array, dtype: np.dtype[Any], axes: tuple[int, ...], backend: str | None) -> _dispatch.Choice:
    """What runs op on the rows of x, and in which dtype, for a result of that dtype."""
    n = math.prod(x.shape[i] for i in axes)
    return _dispatch.choose(op, dtype, x.size // max(n, 1), n, backend, get_num_threads())


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


def execute(
    choice: _dispatch.Choice, x: Array, y: Array, axes: tuple[int, ...], modifiers: Modifiers | None = None
) -> None:
    """Run it from x into y; both native and aligned. What is one number a row has length 1 along the axes."""
    op, run = choice.op, _backends.load(choice.backend).run
    if op in _backends.ELEMENT_MAPS:
        order = tuple(sorted(range(x.ndim), key=lambda i: -abs(x.strides[i])))
        x, y, axes = x.transpose(order), y.transpose(order), tuple(range(x.ndim))
    first, last = (axes[0], axes[-1] + 1) if axes else (x.ndim, x.ndim)
    if modifiers is None and last - first == len(axes) and x.flags.c_contiguous and y.flags.c_contiguous:
        outer, n, inner = (math.prod(lengths) for lengths in (x.shape[:first], x.shape[first:last], x.shape[last:]))
        run(op, x, y, outer, n, inner, choice.threads)
        return
    given = arrays_of(modifiers)
    arrays = [x, y, *given.values()]
    views = row_views(arrays, axes)
    if views is None and op in _backends.ELEMENT_MAPS:
        views = row_views(arrays, axes[-1:])
    if views is None:  # of what broadcasts along part of a row it can be a copy
        spread = {name: a for name, a in given.items() if name in ("bias", "where")}
        whole: dict[str, Any] = {name: np.broadcast_to(a, x.shape).copy() for name, a in spread.items()}
        given |= whole
        views = row_views([x, y, *given.values()], axes)
    if views is None:
        through_copies(choice, x, y, axes, modifiers and modifiers._replace(**whole))
        return
    for x3, y3, *others in views:
        outer, n, inner = x3.shape
        y3 = y3[:, 0, :] if op in _backends.ONE_A_ROW else y3
        parts: dict[str, Any] = dict(zip(given, others, strict=True))
        run(op, x3, y3, outer, n, inner, choice.threads, modifiers and modifiers._replace(**parts))


def through_copies(
    choice: _dispatch.Choice, x: Array, y: Array, axes: tuple[int, ...], modifiers: Modifiers | None
) -> None:
    """The same where no strides describe the rows: copies have them side by side."""
    moved = {name: rows_last(a, axes) for name, a in {"x": x, "y": y, **arrays_of(modifiers)}.items()}
    copies: dict[str, Any] = {name: a.copy(order="C") for name, a in moved.items()}
    last = tuple(range(x.ndim - len(axes), x.ndim))
    x, y = copies.pop("x"), copies.pop("y")
    execute(choice, x, y, last, modifiers and modifiers._replace(**copies))
    moved["y"][...] = y
    for name in RESULTS:
        if name in copies:
            moved[name][...] = copies[name]


def arrays_of(modifiers: Modifiers | None) -> dict[str, Array]:
    """Those that are arrays, by name."""
    if modifiers is None:
        return {}
    return {name: a for name, a in zip(modifiers._fields, modifiers, strict=True) if isinstance(a, np.ndarray)}


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
    if backend is not None:
        backend = resolve(backend)
    return _dispatch.choose(op, result, array.size // max(n, 1), n, backend, get_num_threads())
