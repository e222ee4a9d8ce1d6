"""softmax and its like of rows that are scaled, capped, biased or masked first: what is asked for, checked and run."""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from . import _backends
from ._arrays import (
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
    same_memory,
)
from ._backends import Modifiers, work_dtype
from ._calls import RESULTS, arrays_of, choose, execute, load
from ._config import resolve

EMPTY = ("nan", "zero", "uniform")
ONE = 1.0  # the default temperature, which is told from others by being this object


class Asked(NamedTuple):
    """The arguments that modify rows, as the caller gave them."""

    where: ArrayLike | None
    temperature: ArrayLike
    bias: ArrayLike | None
    softcap: float | None
    sink: ArrayLike | None
    empty: str | None = None
    return_lse: bool = False

    @property
    def keeps_differences(self) -> bool:
        """Whether x itself stays as it is, where it is not masked."""
        return self.bias is self.softcap is self.sink is None and self.temperature is ONE

    @property
    def nothing(self) -> bool:
        """Whether nothing was asked for."""
        return self.where is self.empty is None and not self.return_lse and self.keeps_differences


def modified_rows(
    op: str,
    x: ArrayLike,
    name: str,
    asked: Asked,
    axis: Any,
    dtype: DTypeArg,
    out: Array | None,
    backend: str | None,
    keepdims: bool = False,
) -> Any:
    """The result of a row map, or of a reduction; with it logsumexp, if that was asked for."""
    reduces = op in _backends.ROW_REDUCTIONS
    x = as_array(x, name)
    result, axes = result_dtype(x.dtype, dtype, name), normalize_axes(axis, x.ndim)
    if backend is not None:
        backend = resolve(backend)
    kept, shape = reduced_shapes(x.shape, axes, keepdims)
    target = None if out is None else check_out(out, shape if reduces else x.shape, result)
    choice = choose(op, x, result, axes, backend)
    modifiers = _check(op, x, asked, axes, kept, choice.dtype)
    lse = modifiers.lse
    if x.size == 0:
        y = _of_nothing(kept if reduces else x.shape, result, modifiers)
        if lse is not None:
            lse[...] = _of_nothing(kept, lse.dtype, modifiers)
    else:
        given, top = convert(convert(x, result), choice.dtype), None
        if asked.keeps_differences:  # of integers that are too big, too
            given, top = load(op, x, result, choice.dtype, axes)
        y = output_for(x, given, target, kept if reduces else x.shape, reduces)
        if given is x and not (not reduces and same_memory(x, y)) and overlap(x, y):
            given = x.copy()
        modifiers = apart(modifiers, y)
        execute(choice, given, y, axes, modifiers)
        for numbers_of_rows in (y if reduces else None, lse):
            if top is not None and numbers_of_rows is not None:
                numbers_of_rows += top
    delivered = deliver(y.reshape(shape) if reduces else y, result, target, out)
    value = delivered[()] if out is None and reduces else delivered
    if lse is None:
        return value
    return value, lse.reshape(tuple(length for i, length in enumerate(x.shape) if i not in axes))[()]


def applied(a: Array, asked: Asked, axis: Any, dtype: np.dtype[Any]) -> Array:
    """What is to be summed, of that dtype, for sums that no kernel computes: with weights, or of complex numbers."""
    for name in ("softcap", "sink"):
        if getattr(asked, name) is not None:
            raise ValueError(f"{name}: not with b or complex a")
    work = work_dtype(dtype)
    axes = normalize_axes(axis, a.ndim)
    kept, _ = reduced_shapes(a.shape, axes, True)
    temperature = real_numbers(asked.temperature, "temperature", np.empty(0, work).real.dtype)
    _check_positive(temperature, asked.temperature)
    with np.errstate(all="ignore"):
        z = np.asarray(convert(a, work) / broadcast(temperature, "temperature", kept, axes))
        if asked.bias is not None:
            z = np.asarray(z + broadcast(real_numbers(asked.bias, "bias", temperature.dtype), "bias", a.shape))
        if asked.where is not None:
            np.copyto(z, -np.inf, where=~broadcast(_mask(asked.where), "where", a.shape))
    return z


def output_for(x: Array, given: Array, target: Array | None, shape: tuple[int, ...], reduces: bool) -> Array:
    """Where the backend writes to: the caller's array, if it can; a new one; or what x was converted to."""
    if target is not None and target.dtype == given.dtype and target.flags.aligned:
        return target.reshape(shape)
    return np.empty(shape, given.dtype) if reduces or given is x else given


def _of_nothing(shape: tuple[int, ...], dtype: np.dtype[Any], modifiers: Modifiers) -> Array:
    y = np.full(shape, -np.inf, dtype)
    if y.size and modifiers.sink is not None:
        y[...] = modifiers.sink
    return y


def apart(modifiers: Modifiers, y: Array) -> Modifiers:
    """With copies of what may share memory with y."""
    copies: dict[str, Any] = {
        name: a.copy() for name, a in arrays_of(modifiers).items() if name not in RESULTS and overlap(a, y)
    }
    return modifiers._replace(**copies) if copies else modifiers


# ---- what was asked for ----


def _check(
    op: str, x: Array, asked: Asked, axes: tuple[int, ...], kept: tuple[int, ...], taken: np.dtype[Any]
) -> Modifiers:
    """The modifiers for a backend that is given x as `taken`; arrays have the dimensions of x, or 1."""
    work = work_dtype(taken)
    temperature = temperature_of(asked.temperature, work, kept, axes)
    where = bias = sink = None
    if asked.where is not None:
        where = broadcast(_mask(asked.where), "where", x.shape)
    if asked.bias is not None:
        bias = as_array(asked.bias, "bias")
        bias = broadcast(real_numbers(bias, "bias", taken if bias.dtype == taken else work), "bias", x.shape)
    if asked.sink is not None:
        sink = broadcast(real_numbers(asked.sink, "sink", work), "sink", kept, axes)
    if asked.empty is not None and not (isinstance(asked.empty, str) and asked.empty in EMPTY):
        raise ValueError(f"empty: one of {', '.join(EMPTY)} expected, not {asked.empty!r}")
    empty = asked.empty or ("nan" if where is None else "zero")
    n = math.prod(x.shape[i] for i in axes)
    of_empty = None if empty == "nan" else _value_of_empty(op, empty == "uniform", n)
    lse = np.empty(kept, work) if asked.return_lse else None
    return Modifiers(temperature, _check_softcap(asked.softcap, work), bias, where, sink, of_empty, lse)


def temperature_of(given: ArrayLike, work: np.dtype[Any], kept: tuple[int, ...], axes: tuple[int, ...]) -> Array | None:
    """One number a row, or one for all; None for 1."""
    if type(given) is float and 1e-30 < given < 1e30:  # a third of the time of what follows
        return None if given == 1 else np.full((1,) * len(kept), given, work)
    temperature = real_numbers(given, "temperature", work)
    _check_positive(temperature, given)
    return broadcast(temperature, "temperature", kept, axes)


def real_numbers(values: Any, name: str, dtype: np.dtype[Any]) -> Array:
    array = as_array(values, name)
    if array.dtype.kind == "b":
        raise TypeError(f"{name}: real numbers expected, not bool")
    result_dtype(array.dtype, None, name)
    return convert(array, dtype)


def _mask(given: ArrayLike) -> Array:
    where = as_array(given, "where")
    if where.dtype != np.bool_:
        raise TypeError(f"where: an array of bool expected (True: keep), not of {where.dtype}")
    return where


def _check_positive(temperature: Array, given: Any) -> None:
    wrong = ~((temperature > 0) & (temperature < np.inf))
    if not wrong.any():
        return
    given = np.asarray(given)
    place = tuple(int(i) for i in np.argwhere(wrong)[0])
    at = f" at {place}" if place else ""
    raise ValueError(f"temperature: finite numbers above 0 (in {temperature.dtype}) expected, not {given[place]}{at}")


def _check_softcap(softcap: Any, work: np.dtype[Any]) -> float:
    if softcap is None:
        return 0.0
    if isinstance(softcap, (bool, np.bool_)) or not isinstance(softcap, numbers.Real):
        raise TypeError(f"softcap: a real number or None expected, not {softcap!r}")
    try:
        with np.errstate(all="ignore"):
            value = float(work.type(softcap))
    except OverflowError:
        value = math.inf
    if not 0 < value < np.inf:
        raise ValueError(f"softcap: a finite number above 0 (in {work}) expected, not {softcap}")
    return value


def _value_of_empty(op: str, uniform: bool, n: int) -> float:
    if op == "log_softmax":
        return -math.log(n) if uniform and n else -math.inf
    return 1 / n if uniform and n else 0.0


def broadcast(
    array: Array, name: str, shape: tuple[int, ...], axes: tuple[int, ...] | None = None, of: str = "x"
) -> Array:
    """The array with as many dimensions as shape, which it broadcasts to. With axes that is one number a row."""
    missing = len(shape) - array.ndim
    if missing >= 0 and all(n in (1, m) for n, m in zip(array.shape, shape[missing:], strict=True)):
        array = array[(np.newaxis,) * missing] if missing else array
        if 0 in array.strides:  # broadcast by the caller
            array = array[tuple(slice(0, 1) if step == 0 else slice(None) for step in array.strides)]
        return array
    if axes is None:
        raise ValueError(f"{name}: shape {array.shape} does not broadcast to that of {of}, {shape}")
    raise ValueError(
        f"{name}: shape {array.shape} does not broadcast to one number a row, {shape}: the rows of x lie along {axes}"
    )
