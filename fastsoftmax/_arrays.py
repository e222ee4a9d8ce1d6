"""Arrays as rows: what comes in, what may come out, and how either is seen as (outer, n, inner)."""

from __future__ import annotations

import math
import operator
import sys
from typing import Any, NamedTuple

import numpy as np
from numpy.exceptions import AxisError, TooHardError
from numpy.lib.stride_tricks import as_strided
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]
DTypeArg = DTypeLike | None

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
FLOATS = ("float16", "bfloat16", "float32", "float64", "longdouble")


def as_array(x: object, name: str) -> Array:
    """x as a plain ndarray, or a TypeError or ValueError that names the argument."""
    refuse_masked(x, name)
    try:
        return np.asarray(x)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def refuse_masked(x: object, name: str) -> None:
    masked = sys.modules.get("numpy.ma")  # before it is imported there are no masked arrays
    if masked is not None and isinstance(x, masked.MaskedArray):
        raise TypeError(
            f"{name}: masked arrays are not supported; fill in -inf, x.filled(-np.inf), or use x.compressed()"
        )


def result_dtype(given: np.dtype[Any], dtype: DTypeArg, name: str, *, complex_too: bool = False) -> np.dtype[Any]:
    """The dtype of the result, in native byte order: `dtype`, else float64 for integers and bool, else the input's."""
    kinds = "fc" if complex_too else "f"
    if given.kind not in kinds + "biu" and given.name != "bfloat16":
        raise TypeError(f"{name}: dtype {given} is not supported")
    if dtype is None:
        wanted = FLOAT64 if given.kind in "biu" else given
    else:
        wanted = np.dtype(dtype)
        if (wanted.kind not in kinds and wanted.name != "bfloat16") or (given.kind == "c" and wanted.kind != "c"):
            raise TypeError(f"dtype: {wanted} from {given} is not supported; use one of {', '.join(FLOATS)}")
    return wanted if wanted.isnative else wanted.newbyteorder("=")


def convert(x: Array, dtype: np.dtype[Any]) -> Array:
    """x itself if it is native and aligned, else such a copy."""
    if x.dtype == dtype and x.flags.aligned:
        return x
    with np.errstate(all="ignore"):
        return x.astype(dtype)


def normalize_axes(axis: object, ndim: int) -> tuple[int, ...]:
    """The axes that make a row, ascending. A 0-d array has one axis of one element, which none of the shapes shows."""
    if axis is None:
        return tuple(range(ndim))
    if type(axis) is int and -ndim <= axis < ndim:  # a fifth of the time of what follows
        return (axis % ndim,)
    axes = []
    for one in axis if isinstance(axis, tuple) else (axis,):
        index = as_index(one, "axis: an integer, a tuple of integers or None")
        if not -max(ndim, 1) <= index < max(ndim, 1):
            raise AxisError(index, ndim)
        axes.append(index % max(ndim, 1))
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis: {axis} names an axis twice")
    return tuple(sorted(axes)) if ndim else ()


def as_index(value: Any, expected: str) -> int:
    """The integer that value is, bool excepted, or a TypeError."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{expected} expected, not {value!r}") from None


def check_out(out: object, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """out as a plain ndarray that can take the result."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out: an ndarray expected, not {type(out).__name__}")
    refuse_masked(out, "out")
    plain: Array = out if type(out) is np.ndarray else out.view(np.ndarray)
    if plain.shape != shape:
        raise ValueError(f"out: shape {plain.shape} given, the result has shape {shape}")
    if plain.dtype != dtype:
        raise ValueError(f"out: dtype {plain.dtype!r} given, the result has {dtype!r}")
    if not plain.flags.writeable:
        raise ValueError("out: the array is read-only")
    if _overlaps_itself(plain):
        raise ValueError("out: its elements share memory with each other")
    return plain


def _overlaps_itself(y: Array) -> bool:
    reach = y.itemsize
    for stride, length in sorted((abs(s), n) for s, n in zip(y.strides, y.shape, strict=True) if n > 1):
        if stride < reach:
            return y.size > 0
        reach += stride * (length - 1)
    return False


def same_memory(x: Array, y: Array) -> bool:
    """Whether y is x, element for element."""
    return x is y or (
        x.shape == y.shape
        and x.strides == y.strides
        and x.dtype == y.dtype
        and x.__array_interface__["data"][0] == y.__array_interface__["data"][0]
    )


def overlap(x: Array, y: Array) -> bool:
    """Whether x and y may share a byte; a search that takes too long counts as yes."""
    try:
        return np.shares_memory(x, y, max_work=1000)  # type: ignore[arg-type]  # the stub knows -1 and 0 alone
    except TooHardError:
        return True


class Rows(NamedTuple):
    """x and y as a backend takes them: both contiguous, or 3-D views of the same axes (y 2-D for a reduction)."""

    x: Array
    y: Array
    outer: int
    n: int
    inner: int


def as_rows(x: Array, y: Array, axes: tuple[int, ...], reduces: bool) -> Rows | None:
    """x, and y of its shape (or with axes of length 1 where it reduces), seen as rows without a copy, or None."""
    shape = x.shape
    n = math.prod(shape[axis] for axis in axes)
    first, last = (axes[0], axes[-1] + 1) if axes else (x.ndim, x.ndim)
    if last - first == len(axes) and x.flags.c_contiguous and y.flags.c_contiguous:
        return Rows(x, y, math.prod(shape[:first]), n, math.prod(shape[last:]))

    steps = [(shape[axis], x.strides[axis], y.strides[axis]) for axis in range(x.ndim)]
    batch = sorted((steps[i] for i in range(x.ndim) if i not in axes), key=lambda step: (-abs(step[1]), -abs(step[2])))
    row = [(length, sx, 0 if reduces else sy) for length, sx, sy in (steps[i] for i in axes)]
    batch, row = merge(batch), merge(row) or [(1, 0, 0)]
    if len(batch) > 2 or len(row) > 1 or any(sx % x.itemsize or sy % y.itemsize for _, sx, sy in batch + row):
        return None
    one = (1, 0, 0)
    if len(batch) == 1 and abs(batch[0][1]) < abs(row[0][1]):
        batch.insert(0, one)  # rows lie side by side
    outer, inner = (*batch, one, one)[:2]
    (n, xn, yn), (o, xo, yo), (i, xi, yi) = row[0], outer, inner
    x3 = as_strided(x, (o, n, i), (xo, xn, xi), writeable=y is x)
    y3 = as_strided(y, (o, i), (yo, yi)) if reduces else as_strided(y, (o, n, i), (yo, yn, yi))
    return Rows(x3, y3, o, n, i)


def as_elements(x: Array, y: Array) -> Rows | None:
    """The same where rows do not matter: one long row if memory allows, else rows along the smallest stride."""
    order = tuple(sorted(range(x.ndim), key=lambda i: -abs(x.strides[i])))
    x, y = x.transpose(order), y.transpose(order)
    return as_rows(x, y, tuple(range(x.ndim)), False) or as_rows(x, y, (x.ndim - 1,), False)


def merge(steps: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Neighbouring (length, stride of x, stride of y) that step through both arrays as one become one."""
    merged: list[tuple[int, int, int]] = []
    for length, sx, sy in steps:
        if length == 1:
            continue
        if merged and merged[-1][1:] == (sx * length, sy * length):
            length *= merged.pop()[0]
        merged.append((length, sx, sy))
    return merged


def rows_last(x: Array, axes: tuple[int, ...]) -> Array:
    """A view of x with the axes of a row moved to the end, in order."""
    return x.transpose(*(i for i in range(x.ndim) if i not in axes), *axes)


def reduced_shapes(
    shape: tuple[int, ...], axes: tuple[int, ...], keepdims: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape with ones for the axes of a row, and the shape of the result."""
    kept = tuple(1 if i in axes else length for i, length in enumerate(shape))
    return kept, kept if keepdims else tuple(length for i, length in enumerate(shape) if i not in axes)


def deliver(y: Array, result: np.dtype[Any], target: Array | None, out: Array | None) -> Array:
    """y rounded to the dtype of the result, and in out if there is one."""
    if out is None or target is None:
        return convert(y, result)
    if y is not target:
        with np.errstate(all="ignore"):
            np.copyto(target, y, casting="unsafe")
    return out
