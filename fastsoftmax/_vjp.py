"""Gradients: what a framework's backward pass asks of softmax, log_softmax and logsumexp (vector-Jacobian products)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import _backends
from ._arrays import (
    Array,
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
from ._backends import VJP, Modifiers, work_dtype
from ._calls import choose, execute, load
from ._config import resolve
from ._dispatch import Choice, direct
from ._modified import broadcast

PIECE = 1 << 19  # elements of a logsumexp's gradient at a time: they stay in the cache for the second step


def softmax_vjp(
    g: ArrayLike, y: ArrayLike, /, axis: Any = -1, *, out: Array | None = None, backend: str | None = None
) -> Array:
    """The gradient through softmax: from g, that of ``y = softmax(x)``, to that of x, ``y * (g - sum(g * y))``.

    Parameters
    ----------
    g : array_like
        Real numbers that broadcast to y. They are taken in the dtype that is computed in.
    y : array_like
        What softmax gave, with any of its modifiers.
    axis, backend
        As they were given to softmax.
    out : ndarray, optional
        Where the result is put, of the shape and dtype of y. It may be g or y, or overlap either.

    Returns
    -------
    ndarray
        Of the shape of y, and its dtype (float64 for integers and bool).

    Raises
    ------
    TypeError, AxisError, ValueError
        As for `softmax`; ValueError also if g does not broadcast to y.

    Notes
    -----
    The sum is taken in double (for float64 in two parts, with the rounding errors of products), in an order that is a
    function of the length of a row alone; the result is within 3 ulp of the formula's for these y and g. float16 and
    bfloat16 are computed in float32 and rounded once. It is the gradient of x as it enters the softmax: with a
    temperature t it has to be divided by t. Where y is 0 it is 0, so what was masked has none.

    Examples
    --------
    >>> from fastsoftmax import softmax, softmax_vjp
    >>> y = softmax([1.0, 2.0, 3.0])
    >>> softmax_vjp([1.0, 0.0, 0.0], y).round(4)
    array([ 0.0819, -0.022 , -0.0599])
    """
    dx: Array | None = direct["softmax" + VJP](g, y, axis, out) if backend is None else None
    if dx is not None:
        return dx
    return _pull("softmax", g, y, axis, out, backend)


def log_softmax_vjp(
    g: ArrayLike, y: ArrayLike, /, axis: Any = -1, *, out: Array | None = None, backend: str | None = None
) -> Array:
    """The gradient through log_softmax: from g, that of ``y = log_softmax(x)``, to ``g - exp(y) * sum(g)``.

    Parameters, results and errors are those of `softmax_vjp`. At most 3 ulp of the larger of g and exp(y) * sum(g) off.
    A row that is -inf throughout, as a mask makes it, gives 0. Where single elements are -inf the result is g, as the
    formula says. A y above 32 is the logarithm of no softmax and gives NaN.

    Examples
    --------
    >>> from fastsoftmax import log_softmax, log_softmax_vjp
    >>> y = log_softmax([1.0, 2.0, 3.0])
    >>> log_softmax_vjp([0.0, 0.0, -1.0], y).round(4)
    array([ 0.09  ,  0.2447, -0.3348])
    """
    dx: Array | None = direct["log_softmax" + VJP](g, y, axis, out) if backend is None else None
    if dx is not None:
        return dx
    return _pull("log_softmax", g, y, axis, out, backend)


def logsumexp_vjp(
    g: ArrayLike, x: ArrayLike, /, axis: Any = None, *, out: Array | None = None, backend: str | None = None
) -> Array:
    """The gradient through logsumexp: from g, that of ``logsumexp(x)``, to that of x, ``g * softmax(x)``.

    g broadcasts to the shape of the result of logsumexp, with or without keepdims: one number a row. Other parameters,
    results and errors are those of `softmax_vjp`, with x in the place of y. A row that is -inf throughout gives 0. The
    softmax is rounded (for half types: to float32) before it is multiplied.

    Examples
    --------
    >>> from fastsoftmax import logsumexp_vjp
    >>> logsumexp_vjp([1.0, -2.0], [[0.0, 0.0], [1000.0, 0.0]], axis=1)
    array([[ 0.5,  0.5],
           [-2. , -0. ]])
    """
    x = as_array(x, "x")
    result, axes = result_dtype(x.dtype, None, "x"), normalize_axes(axis, x.ndim)
    g = _a_row(_numbers(g), x.shape, axes)
    if backend is not None:
        backend = resolve(backend)
    target = None if out is None else check_out(out, x.shape, result)
    if x.size == 0:
        return np.empty(x.shape, result) if out is None else out
    dx, work = np.empty_like(x, result) if target is None else target, work_dtype(result)
    if overlap(x, dx) and not same_memory(x, dx):
        x = x.copy()
    g = convert(g.copy() if overlap(g, dx) else g, work)
    in_place = dx.dtype == work and dx.flags.aligned
    choice = choose("softmax", x, work, axes, backend)
    for cut in _pieces(x.shape, axes):
        rows, _ = load("softmax", x[cut], result, work, axes)
        z = dx[cut] if in_place else np.empty_like(rows)
        execute(choice, rows, z, axes, Modifiers(empty=0.0))
        with np.errstate(all="ignore"):
            np.multiply(z, np.broadcast_to(g, dx.shape)[cut], out=z)
            if not in_place:
                dx[cut] = z
    return dx if out is None else out


def _pull(op: str, g: ArrayLike, y: ArrayLike, axis: Any, out: Array | None, backend: str | None) -> Array:
    y = as_array(y, "y")
    result, axes = result_dtype(y.dtype, None, "y"), normalize_axes(axis, y.ndim)
    g = broadcast(_numbers(g), "g", y.shape, of="y")
    if backend is not None:
        backend = resolve(backend)
    target = None if out is None else check_out(out, y.shape, result)
    if y.size == 0:
        return np.empty(y.shape, result) if out is None else out

    choice = choose(op, y, result, axes, backend)
    taken = choice.dtype if g.dtype == result else work_dtype(result)  # a gradient may be beyond a half type
    given, rows = convert(g, taken), convert(convert(y, result), taken)
    if target is not None and target.dtype == taken and target.flags.aligned:
        dx = target
        given, rows = (a.copy() if overlap(a, dx) and not same_memory(a, dx) else a for a in (given, rows))
    else:
        dx = np.empty_like(y) if rows is y else rows
    _execute(choice, given, rows, dx, axes)
    return deliver(dx, result, target, out)


def _execute(choice: Choice, g: Array, y: Array, dx: Array, axes: tuple[int, ...]) -> None:
    """From g and y into dx: all native, aligned and of one dtype; dx is one of them or apart. g broadcasts to y."""
    views = row_views([y, g, dx], axes)
    if views is None:  # g may broadcast along part of a row
        g = np.broadcast_to(g, y.shape).copy()
        views = row_views([y, g, dx], axes)
    if views is None:
        moved = rows_last(dx, axes)
        g, y = (rows_last(a, axes).copy() for a in (g, y))
        _execute(choice, g, y, y, tuple(range(y.ndim - len(axes), y.ndim)))
        moved[...] = y
        return
    run = _backends.load(choice.backend).vjp
    for y3, g3, dx3 in views:
        outer, n, inner = y3.shape
        run(choice.op, np.broadcast_to(g3, y3.shape), y3, dx3, outer, n, inner, choice.threads)


def _numbers(given: ArrayLike) -> Array:
    g = as_array(given, "g")
    result_dtype(g.dtype, None, "g")
    return g


def _a_row(g: Array, shape: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    """g with length 1 along the axes, which it may have been given without."""
    kept, reduced = reduced_shapes(shape, axes, False)
    wanted = kept if g.ndim == len(kept) else reduced
    missing = len(wanted) - g.ndim
    if missing < 0 or any(n not in (1, m) for n, m in zip(g.shape, wanted[missing:], strict=True)):
        raise ValueError(f"g: shape {g.shape} does not broadcast to one number a row of x, {reduced} or {kept}")
    return g if wanted is kept else np.expand_dims(g[(np.newaxis,) * missing], axes)


def _pieces(shape: tuple[int, ...], axes: tuple[int, ...]) -> Iterator[tuple[Any, ...]]:
    """Cuts along the longest axis that is not one of the rows, of about PIECE elements."""
    batch = [i for i in range(len(shape)) if i not in axes]
    if not batch:
        yield (...,)
        return
    longest = max(batch, key=lambda i: shape[i])
    step = max(1, PIECE * shape[longest] // math.prod(shape))
    for start in range(0, shape[longest], step):
        yield (*[slice(None)] * longest, slice(start, start + step), ...)
