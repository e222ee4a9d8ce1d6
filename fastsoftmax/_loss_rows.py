"""Rows and what they are compared with: checked, and brought to their losses and gradients."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.exceptions import AxisError
from numpy.typing import ArrayLike

from ._arrays import Array, as_array, as_index, convert, overlap, reduced_shapes, result_dtype, same_memory
from ._backends import LOG_PROB, LOSS_GRAD, ROW_MAPS, Modifiers, work_dtype
from ._backends._tilewise import tiles
from ._calls import choose, execute, load
from ._config import resolve
from ._modified import apart, output_for, real_numbers, temperature_of
from ._sums import exact_sum, exact_sums

TILE = 1 << 16  # elements worked on at a time


# ---- what is given ----


class Rows(NamedTuple):
    """Logits, of the result's dtype, along their axis of classes.

    `kept` is the shape of one number a row with that axis, `shape` without; `top` what was taken off big integers.
    """

    x: Array
    axis: int
    result: np.dtype[Any]
    work: np.dtype[Any]
    kept: tuple[int, ...]
    shape: tuple[int, ...]
    temperature: Array | None
    backend: str | None
    top: Array | None = None


class Goal(NamedTuple):
    """What rows are compared with."""

    target: Array  # int64, the class of each row, of the shape `kept`, -1 if it is ignored; or probabilities of all
    ignored: Any  # bool, one a row
    weights: Array | None  # one a row: that of its class
    total: Any  # what a mean is divided by
    rows: int  # how many are not ignored


Losses = tuple[Array, Array | None]  # of the shape `kept`; and the gradient, of the shape of the rows


def rows_of(
    logits: ArrayLike, name: str, axis: int, temperature: ArrayLike, backend: str | None, exact: bool = False
) -> Rows:
    """Logits checked. If exact, only differences count, and those of big integers are kept."""
    x = as_array(logits, name)
    result = result_dtype(x.dtype, None, name)
    index = as_index(axis, "axis: an integer")
    if not -x.ndim <= index < x.ndim:
        raise AxisError(index, x.ndim)
    index %= x.ndim
    kept, shape = reduced_shapes(x.shape, (index,), False)
    work = work_dtype(result)
    divided = temperature_of(temperature, work, kept, (index,))
    top = None
    if exact and divided is None and x.size:
        x, top = load("log_softmax", x, result, result, (index,))
    named = backend if backend is None else resolve(backend)
    return Rows(convert(x, result), index, result, work, kept, shape, divided, named, top)


def check_reduction(reduction: str, known: tuple[str, ...]) -> None:
    if not isinstance(reduction, str) or reduction not in known:
        raise ValueError(f"reduction: one of {', '.join(known)} expected, not {reduction!r}")


def number_of(value: Any, name: str, expected: str, good: Callable[[float], bool]) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: {expected} expected, not {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not good(number):
        raise ValueError(f"{name}: {expected} expected, not {value}")
    return number


def weights_of(weight: ArrayLike, rows: Rows) -> Array:
    weights = real_numbers(weight, "weight", rows.work)
    if weights.shape != (rows.x.shape[rows.axis],):
        raise ValueError(
            f"weight: shape {weights.shape} given, ({rows.x.shape[rows.axis]},) expected: a number a class"
        )
    return weights


def goal_of(target: ArrayLike, rows: Rows, ignore_index: int, weights: Array | None) -> Goal:
    given = as_array(target, "target")
    if given.dtype.kind not in "fV" or _is_empty_list(target):
        return index_goal(target, rows, ignore_index, weights)
    if as_index(ignore_index, "ignore_index: an integer") >= 0:
        raise ValueError(f"ignore_index: {ignore_index} given with probabilities, of which none can be ignored")
    if given.shape != rows.x.shape:
        raise ValueError(f"target: shape {given.shape} of probabilities given, that of logits is {rows.x.shape}")
    result_dtype(given.dtype, None, "target")
    count = math.prod(rows.shape)
    return Goal(given, np.False_, None, count, count)


def index_goal(target: ArrayLike, rows: Rows, ignore_index: int, weights: Array | None) -> Goal:
    index = index_of(target, "target", rows, as_index(ignore_index, "ignore_index: an integer"))
    ignored = index < 0
    count = index.size - int(np.count_nonzero(ignored))
    if weights is None:
        return Goal(index, ignored, None, count, count)
    weights = np.where(ignored, 0, weights[index] if weights.size else 0).astype(rows.work)
    return Goal(index, ignored, weights, exact_sum(weights), count)


def _is_empty_list(target: ArrayLike) -> bool:
    return isinstance(target, (list, tuple)) and np.size(target) == 0


def index_of(target: ArrayLike, name: str, rows: Rows, ignore_index: int | None) -> Array:
    """The class of each row, of the shape `kept`; -1 where it is ignored."""
    given, n = as_array(target, name), rows.x.shape[rows.axis]
    if _is_empty_list(target):
        given = given.astype(np.int64)
    if given.dtype.kind not in "iu":
        raise TypeError(f"{name}: integers expected, not {given.dtype}")
    if given.shape != rows.shape:
        raise ValueError(f"{name}: shape {given.shape} given, one class a row has the shape {rows.shape}")
    outside = (given < 0) | (given >= n)
    if outside.any():
        ignored = np.zeros(given.shape, bool) if ignore_index is None else given == ignore_index
        wrong = outside & ~ignored
        if wrong.any():
            place = tuple(int(i) for i in np.argwhere(wrong)[0])
            at = f" at {place}" if place else ""
            raise IndexError(f"{name}: {given[place]}{at} is out of range for {n} classes")
    if ignore_index is not None:
        ignored = given == ignore_index
        if ignored.any():
            given = np.where(ignored, -1, given.astype(np.int64, copy=False))
    return convert(given, np.dtype(np.int64)).reshape(rows.kept)


# ---- what is computed ----


def _shifted(x: Array, y: Array) -> bool:
    """Whether they overlap, but not element for element."""
    return not same_memory(x, y) and overlap(x, y)


class Wanted(NamedTuple):
    """What is wanted besides the losses. The gradient is of the sum of losses / divisor, and lse_share lse^2 / 2."""

    lse: Array | None
    gradient: bool
    target: Array | None  # where it is put
    divisor: Any
    lse_share: Any


def by_index(rows: Rows, goal: Goal, wanted: Wanted) -> Losses:
    """Losses of rows with a class each, and gradients: by the backend."""
    if not wanted.gradient or not rows.x.size:
        empty = np.empty(rows.x.shape, rows.result) if wanted.gradient else None
        return weighted(log_probs_of(rows, goal.target, wanted.lse), goal), empty
    choice = choose(LOSS_GRAD, rows.x, rows.result, (rows.axis,), rows.backend)
    given = convert(rows.x, choice.dtype)
    with np.errstate(all="ignore"):
        scale = np.full((1,) * rows.x.ndim, 1 / wanted.divisor, rows.work)
        if goal.weights is not None:
            scale = np.where(goal.weights == 0, 0, goal.weights / wanted.divisor).astype(rows.work)
    logs = np.empty(rows.kept, rows.work)
    y = output_for(rows.x, given, wanted.target, rows.x.shape, False)
    if given is rows.x and _shifted(given, y):
        given = given.copy()
    modifiers = Modifiers(
        temperature=rows.temperature,
        lse=wanted.lse,
        target=goal.target,
        scale=scale,
        lse_scale=wanted.lse_share,
        log_prob=logs,
    )
    execute(choice, given, y, (rows.axis,), apart(modifiers, y))
    return weighted(logs, goal), y


def log_probs_of(rows: Rows, index: Array | None, lse: Array | None) -> Array:
    """Log-probabilities of classes, in the type computed in; 0 where they are ignored."""
    if not rows.x.size:
        if lse is not None:
            lse[...] = -np.inf
        return np.zeros(rows.kept, rows.work)
    choice = choose(LOG_PROB, rows.x, rows.result, (rows.axis,), rows.backend)
    given = convert(rows.x, choice.dtype)
    y = np.empty(rows.kept, given.dtype)
    logs = y if y.dtype == rows.work else np.empty(rows.kept, rows.work)
    modifiers = Modifiers(temperature=rows.temperature, lse=lse, target=index, log_prob=None if logs is y else logs)
    execute(choice, given, y, (rows.axis,), modifiers)
    return logs


def weighted(logs: Array, goal: Goal) -> Array:
    """Losses; a weight of 0 drops its row."""
    wide = np.promote_types(logs.dtype, np.float64)
    with np.errstate(all="ignore"):  # a signalling NaN is no reason to warn
        if goal.weights is None:
            return 0 - logs
        return np.where(goal.weights == 0, 0, goal.weights.astype(wide) * -logs)


def by_class(rows: Rows, goal: Goal, smoothing: float, weights: Array | None, wanted: Wanted) -> Losses:
    """Losses of rows of which all classes count, and gradients: tile by tile, through arrays that stay in the cache.

    With u the probabilities times the weights of classes, a loss is -sum u log p, its gradient p sum u - u.
    """
    n, wide = rows.x.shape[rows.axis], np.promote_types(rows.work, np.float64)
    losses, y = np.zeros(rows.kept, wide), wanted.target
    read = [a for a in (goal.target, weights, rows.temperature) if a is not None]
    if wanted.gradient and (
        y is None or not y.flags.c_contiguous or _shifted(rows.x, y) or any(overlap(a, y) for a in read)
    ):
        y = np.empty(rows.x.shape, rows.result)
    if not rows.x.size:
        if wanted.lse is not None:
            wanted.lse[...] = -np.inf
        return losses, y
    outer, inner = math.prod(rows.kept[: rows.axis]), math.prod(rows.kept[rows.axis :])

    def as_rows(a: Any) -> Array:
        return np.reshape(a, (outer, -1, inner)).swapaxes(1, 2)

    def numbers_as_rows(a: Any) -> Array:
        return as_rows(np.broadcast_to(a, rows.kept))

    x, target, ignored = as_rows(rows.x), as_rows(goal.target), numbers_as_rows(goal.ignored)
    temperature = numbers_as_rows(rows.work.type(1) if rows.temperature is None else rows.temperature)
    to_loss, to_lse, to_y = as_rows(losses), *(None if a is None else as_rows(a) for a in (wanted.lse, y))
    for tile in tiles(outer, n, inner, TILE):
        with np.errstate(all="ignore"):
            z = np.ascontiguousarray(x[tile].astype(rows.work) / temperature[tile])
            u = _class_weights(target[tile], n, smoothing, weights, wide)
            logs = _run("log_softmax", z, rows.backend)
            loss = exact_sums(np.where(u == 0, 0, u * -logs))[..., np.newaxis]
            to_loss[tile] = np.where(ignored[tile], 0, loss)
            by_lse: Any = 0
            if to_lse is not None:
                to_lse[tile] = lse = _run("logsumexp", z, rows.backend)
                by_lse = lse.astype(wide) * wanted.lse_share if wanted.lse_share else 0
            if to_y is not None:
                sums = exact_sums(u)[..., np.newaxis] / wanted.divisor
                g = (_run("softmax", z, rows.backend) * (sums + by_lse) - u / wanted.divisor) / temperature[tile]
                nothing = ignored[tile] | (~u.any(axis=2, keepdims=True) & (by_lse == 0))
                to_y[tile] = convert(np.where(nothing, 0, g), rows.result)
    return losses, y


def _class_weights(target: Array, n: int, smoothing: float, weights: Array | None, wide: np.dtype[Any]) -> Array:
    """Probabilities times weights, of some rows (..., n)."""
    if target.dtype.kind != "i":
        u = target.astype(wide)
    else:
        u = np.zeros((*target.shape[:-1], n), wide)
        np.put_along_axis(u, np.maximum(target, 0), 1, axis=-1)
    if smoothing:
        u *= 1 - smoothing
        u += smoothing / n
    return u if weights is None else np.asarray(u * weights)


def _run(op: str, z: Array, backend: str | None) -> Array:
    """An op of rows (outer, inner, n)."""
    y = np.empty(z.shape if op in ROW_MAPS else (*z.shape[:2], 1), z.dtype)
    execute(choose(op, z, z.dtype, (2,), backend), z, y, (2,))
    return y


def reduced(parts: list[tuple[Array, float]], reduction: str, rows: Rows) -> Any:
    """What becomes of the losses of rows, in parts with their divisors for a mean; each part of the shape `kept`."""
    with np.errstate(all="ignore"):
        if reduction == "none":
            losses = parts[0][0] if len(parts) == 1 else parts[0][0] + parts[1][0]
            return convert(losses.reshape(rows.shape), rows.result)[()]
        sums = [(exact_sum(losses), divisor) for losses, divisor in parts]
        total = sum(value if reduction == "sum" else np.divide(value, divisor) for value, divisor in sums)
        return convert(np.asarray(total), rows.result)[()]
