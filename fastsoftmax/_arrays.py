"""Arrays as rows: what comes in, what may come out, and how either is seen as (outer, n, inner)."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterator, Sequence
from typing import Any

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


def row_views(arrays: Sequence[Array], axes: tuple[int, ...]) -> Iterator[list[Array]] | None:
    """Arrays of one shape, or with length 1 along the axes of a row, seen as (outer, n, inner). None if that cannot be.

    Batch dimensions that do not merge for all of them, but for the two longest, are gone through: a list of views each.
    """
    shape = arrays[0].shape
    steps = [(length, *(0 if a.shape[i] == 1 else a.strides[i] for a in arrays)) for i, length in enumerate(shape)]
    if any(step % a.itemsize for _, *strides in steps for step, a in zip(strides, arrays, strict=True)):
        return None
    batch = [step for i, step in enumerate(steps) if i not in axes]
    batch = merge(sorted(batch, key=lambda step: [-abs(stride) for stride in step[1:]]))
    one = (1, *(0 for _ in arrays))
    row = merge([steps[i] for i in axes]) or [one]
    if len(row) > 1:
        return None
    longest = sorted(sorted(range(len(batch)), key=lambda i: -batch[i][0])[:2])
    around = [step for i, step in enumerate(batch) if i not in longest]
    outer, inner = (*(batch[i] for i in longest), one, one)[:2]
    if len(longest) == 1 and abs(outer[1]) < abs(row[0][1]):
        outer, inner = one, outer  # rows lie side by side
    views = []
    for k, a in enumerate(arrays):
        lengths, *strides = zip(*around, outer, row[0], inner, strict=True)
        if a.shape != shape:
            lengths = (*lengths[:-2], 1, lengths[-1])
        views.append(as_strided(a, lengths, strides[k], writeable=a.flags.writeable))
    return ([view[place] for view in views] for place in np.ndindex(views[0].shape[:-3]))


def merge(steps: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Neighbouring (length, stride of each array) that step through all arrays as one become one."""
    merged: list[tuple[int, ...]] = []
    for length, *strides in steps:
        if length == 1:
            continue
        if merged and merged[-1][1:] == tuple(stride * length for stride in strides):
            length *= merged.pop()[0]
        merged.append((length, *strides))
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
