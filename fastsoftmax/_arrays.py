"""Arrays as rows: what comes in, what may come out, and how either is seen as (outer, n, inner)."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.exceptions import AxisError, TooHardError
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
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
    except (ValueError, OverflowError) as error:  # the last for what an interface may say of its shape
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
        wanted = asked_dtype(dtype)
        if (wanted.kind not in kinds and wanted.name != "bfloat16") or (given.kind == "c" and wanted.kind != "c"):
            raise TypeError(f"dtype: {wanted} from {given} is not supported; use one of {', '.join(FLOATS)}")
    return wanted if wanted.isnative else wanted.newbyteorder("=")


def asked_dtype(dtype: DTypeArg) -> np.dtype[Any]:
    try:
        return np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError) as error:  # the last for ","
        raise TypeError(f"dtype: {error}") from None


def convert(x: Array, dtype: np.dtype[Any]) -> Array:
    """x itself if it is native and aligned, else such a copy."""
    if x.dtype == dtype and x.flags.aligned:
        return x
    with np.errstate(all="ignore"):
        if dtype.kind == "V" and x.dtype.itemsize > 4:  # bfloat16, which would be rounded to float32 first
            return _rounded_to_odd(x).astype(dtype)
        return x.astype(dtype)


def _rounded_to_odd(x: Array) -> Array:
    """x in float32, cut off, its last bit set if anything was: what is rounded from there on is rounded once.

    (S. Boldo, G. Melquiond, "Emulation of FMA and correctly rounded sums", IEEE Trans. Comput. 57(4), 2008.)
    """
    y = np.array(x, np.float32, ndmin=1)
    y = np.where(np.abs(y) > np.abs(x), np.nextafter(y, np.float32(0)), y)
    y.view(np.uint32)[...] |= (y != x) & (x == x)
    return y.reshape(x.shape)


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


def check_out(out: object, shape: tuple[int, ...], dtype: np.dtype[Any], name: str = "out") -> Array:
    """out as a plain ndarray that can take the result."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{name}: an ndarray expected, not {type(out).__name__}")
    refuse_masked(out, name)
    plain: Array = out if type(out) is np.ndarray else out.view(np.ndarray)
    if plain.shape != shape:
        raise ValueError(f"{name}: shape {plain.shape} given, the result has shape {shape}")
    if plain.dtype != dtype:
        raise ValueError(f"{name}: dtype {plain.dtype!r} given, the result has {dtype!r}")
    if not plain.flags.writeable:
        raise ValueError(f"{name}: the array is read-only")
    if _overlaps_itself(plain):
        raise ValueError(f"{name}: its elements share memory with each other")
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


def common_shape(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """What they broadcast to, or a ValueError. (NumPy's own functions stop at 32 dimensions.)"""
    most = max(map(len, shapes))
    common = []
    for lengths in zip(*((1,) * (most - len(shape)) + shape for shape in shapes), strict=True):
        others = {n for n in lengths if n != 1}
        if len(others) > 1:
            raise ValueError("the shapes do not broadcast")
        common.append(others.pop() if others else 1)
    return tuple(common)


def row_views(arrays: Sequence[Array], axes: tuple[int, ...]) -> Iterator[list[Array]] | None:
    """The first array, and others that broadcast to it, seen as (outer, n, inner). None if that cannot be.

    Dimensions around these, where batch dimensions do not merge for all arrays, are gone through: a list of views each.
    """
    shape, last = arrays[0].shape, len(arrays[0].shape) - 1
    if axes == (last,) and all(
        a.flags.c_contiguous and (a.shape[:-1] == shape[:-1] or a.size == a.shape[-1]) for a in arrays
    ):  # what is usual, in an eighth of the time
        return iter([[a.reshape(-1, a.shape[-1], 1) for a in arrays]])
    strides = [[0 if length == 1 else step for length, step in zip(a.shape, a.strides, strict=True)] for a in arrays]
    if any(step % a.itemsize for a, steps in zip(arrays, strides, strict=True) for step in steps):
        return None
    row = merge(axes, shape, strides)
    if len(row) > 1:
        return None
    rest = (i for i in range(len(shape)) if i not in axes)
    batch = merge(sorted(rest, key=lambda i: [-abs(steps[i]) for steps in strides]), shape, strides)
    longest = sorted(sorted(range(len(batch)), key=lambda k: -math.prod(shape[i] for i in batch[k]))[:2])
    outer, inner = (*(batch[k] for k in longest), [], [])[:2]
    if len(longest) == 1 and row and abs(strides[0][outer[-1]]) < abs(strides[0][row[0][-1]]):
        outer, inner = inner, outer  # rows lie side by side
    around = [group for k, group in enumerate(batch) if k not in longest]
    groups = [*around, outer, row[0] if row else [], inner]
    order = [i for group in groups for i in group]
    order = [*(i for i in range(len(shape)) if i not in order), *order]  # those of length 1 first
    views = [a.transpose(order).reshape([math.prod(a.shape[i] for i in group) for group in groups]) for a in arrays]
    if not around:
        return iter([views])
    places = np.ndindex(*views[0].shape[:-3])
    return ([view[tuple(map(min, place, (n - 1 for n in view.shape)))] for view in views] for place in places)


def merge(dims: Iterable[int], shape: tuple[int, ...], strides: list[list[int]]) -> list[list[int]]:
    """Groups of neighbouring dimensions that all arrays step through as through one; those of length 1 are left out."""
    groups: list[list[int]] = []
    for i in dims:
        if shape[i] == 1:
            continue
        if groups and all(steps[groups[-1][-1]] == steps[i] * shape[i] for steps in strides):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


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
