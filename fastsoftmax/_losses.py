"""Losses of logits and log-probabilities, with torch's semantics; their gradients in the same go."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.exceptions import AxisError
from numpy.typing import ArrayLike

from ._arrays import (
    Array,
    as_array,
    as_index,
    check_out,
    convert,
    deliver,
    overlap,
    reduced_shapes,
    result_dtype,
    same_memory,
)
from ._backends import LOG_PROB, LOSS_GRAD, ROW_MAPS, Modifiers, work_dtype
from ._backends._tilewise import tiles
from ._calls import choose, execute
from ._config import resolve
from ._dispatch import direct
from ._modified import ONE, apart, output_for, real_numbers, temperature_of
from ._sums import exact_sums

REDUCTIONS = ("mean", "sum", "none")
TILE = 1 << 16  # elements worked on at a time
#: Reductions, as functions for direct calls (logits, target, axis, ignored, reduction, gradient) number them; None: none, and
#: log-probabilities instead of losses. gradient: False, True or grad_out.
DIRECT = {None: 0, "none": 1, "sum": 2, "mean": 3}
ZERO = 0.0  # a default, which is told from others by being this object
NO_INDEX = -(1 << 63)  # where no class is to be ignored


def cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    /,
    axis: int = -1,
    *,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = ZERO,
    reduction: str = "mean",
    temperature: ArrayLike = ONE,
    z_loss: float = ZERO,
    return_lse: bool = False,
    return_grad: bool = False,
    grad_out: Array | None = None,
    backend: str | None = None,
) -> Any:
    """Cross-entropy of logits: ``-log_softmax(logits)`` at the targets, as torch.nn.functional.cross_entropy has it.

    Log-probabilities are never kept for all classes, and the gradient is made in the same go.

    Parameters
    ----------
    logits : array_like
        Real numbers of any shape and memory layout.
    target : array_like
        Either integers, the class of each row: of the shape of logits without the axis of the classes. Or floating-point
        numbers, the probability of each class: of the shape of logits.
    axis : int
        The axis of the classes. (torch's is 1.)
    weight : array_like, optional
        One number a class, by which losses are multiplied. What has weight 0 is dropped, even where it is infinite.
    ignore_index : int
        Rows with this target have no loss and no gradient, whatever they hold; it need not be a class.
    label_smoothing : float
        From 0 to 1: so much of a row's probability is shared out among all classes [1]_.
    reduction : {"mean", "sum", "none"}
        "mean" is the sum of the losses, divided by the sum of the weights of the targets that are not ignored, or for
        probabilities by the number of rows.
    temperature : array_like, optional
        Logits are divided by it first; finite, above 0. A number; or one a row, with length 1 along the axis.
    z_loss : float
        ``z_loss * lse**2`` is added to the loss of each row that is not ignored [2]_; to a mean, the mean of it.
    return_lse : bool
        Return the logsumexp of the rows (of logits / temperature), too; in float32 for half types.
    return_grad : bool
        Return the gradient of the loss (of their sum, for "none") with respect to logits, too.
    grad_out : ndarray, optional
        Where the gradient is put, of the shape and dtype of the logits, which it may be itself. It is returned.
    backend : str, optional
        As for `softmax`.

    Returns
    -------
    scalar or ndarray, or a tuple
        The loss, of the dtype of logits (float64 for integers); for "none" one number a row, in the shape of logits
        without the axis. With return_lse or return_grad the tuple (loss, lse), (loss, grad) or (loss, lse, grad). The
        mean of no rows at all is NaN.

    Raises
    ------
    TypeError
        An array is not of real numbers, target is of bool, axis is no integer.
    AxisError
        axis is out of range.
    IndexError
        A target is neither a class nor ignore_index.
    ValueError
        A shape does not fit; label_smoothing, temperature, z_loss or reduction is none of the above; grad_out has another
        shape or dtype or is read-only; ignore_index is a class and target are probabilities.

    Notes
    -----
    With integers alone, losses have the bits of log_softmax: log c + log1p(r / c) + (max - x), where nothing cancels. So do
    the gradients: p less 1 at the target is expm1(log p). At most 2.5 (float32) or 3 (float64) ulp off, with weights,
    smoothing and probabilities 4.

    References
    ----------
    .. [1] C. Szegedy et al., "Rethinking the inception architecture for computer vision", CVPR 2016.
    .. [2] A. Chowdhery et al., "PaLM: scaling language modeling with pathways", 2022, arXiv:2204.02311, section 5.

    Examples
    --------
    >>> from fastsoftmax import cross_entropy
    >>> logits = [[2.0, 1.0, 0.0], [0.0, 50.0, 0.0]]
    >>> print(cross_entropy(logits, [1, 1]).round(4))
    0.7038
    >>> loss, grad = cross_entropy(logits, [1, -100], return_grad=True)
    >>> grad.round(4)
    array([[ 0.6652, -0.7553,  0.09  ],
           [ 0.    ,  0.    ,  0.    ]])
    """
    _check_reduction(reduction, REDUCTIONS)
    if temperature is ONE and weight is backend is None and not return_lse and label_smoothing is z_loss is ZERO:
        gradient = grad_out if grad_out is not None else bool(return_grad)
        loss = direct[LOG_PROB](logits, target, axis, ignore_index, DIRECT[reduction], gradient)
        if loss is not None:
            return loss
    return_grad = return_grad or grad_out is not None
    rows = _rows_of(logits, "logits", axis, temperature, backend)
    smoothing = _number(label_smoothing, "label_smoothing", "a number from 0 to 1", lambda v: 0 <= v <= 1)
    z = _number(z_loss, "z_loss", "a finite number from 0 on", lambda v: 0 <= v < math.inf)
    weights = None if weight is None else _weights_of(weight, rows)
    grad = None if grad_out is None else check_out(grad_out, rows.x.shape, rows.result, "grad_out")
    goal = _goal_of(target, rows, ignore_index, weights)
    total, count = (goal.total or math.nan, goal.count or math.nan) if reduction == "mean" else (1, 1)
    lse = np.empty(rows.kept, rows.work) if return_lse or z else None
    wanted = _Wanted(lse, return_grad, grad, 1 / total, 2 * z / count if z else 0.0)
    if goal.target.dtype.kind == "i" and not smoothing:
        losses, gradients = _by_index(rows, goal, wanted)
    else:
        losses, gradients = _by_class(rows, goal, smoothing, weights, wanted)

    parts = [(losses, goal.total)]
    if z and lse is not None:
        squares = z * lse.astype(np.promote_types(rows.work, np.float64)) ** 2
        parts.append((np.where(goal.ignored, 0, squares), goal.count))
    results = [_reduced(parts, reduction, rows)]
    if return_lse and lse is not None:
        results.append(lse.reshape(rows.shape)[()])
    if gradients is not None:
        results.append(deliver(gradients, rows.result, grad, grad_out))
    return tuple(results) if len(results) > 1 else results[0]


def token_logprobs(
    logits: ArrayLike,
    ids: ArrayLike,
    /,
    axis: int = -1,
    *,
    temperature: ArrayLike = ONE,
    out: Array | None = None,
    backend: str | None = None,
) -> Any:
    """The log-probability of one class a row: ``log_softmax(logits)`` at ids, to the same bits, without all the others.

    Parameters
    ----------
    logits : array_like
        Real numbers of any shape and memory layout.
    ids : array_like of int
        The class of each row, of the shape of logits without the axis.
    axis : int
        The axis of the classes.
    temperature : array_like, optional
        Logits are divided by it first, as for `cross_entropy`.
    out : ndarray, optional
        Where the result is put, of its shape and dtype.
    backend : str, optional
        As for `softmax`.

    Returns
    -------
    ndarray or scalar
        One number a row, of the dtype of logits (float64 for integers).

    Raises
    ------
    TypeError, AxisError, IndexError, ValueError
        As for `cross_entropy`.

    Notes
    -----
    What reinforcement learning and perplexities need of a language model. Like log_softmax (Blanchard, Higham & Higham, IMA
    J. Numer. Anal. 41(4), 2021) at most 2 (float32) or 2.5 (float64) ulp off.

    Examples
    --------
    >>> from fastsoftmax import token_logprobs
    >>> token_logprobs([[2.0, 1.0, 0.0], [0.0, 50.0, 0.0]], [1, 1]).round(4)
    array([-1.4076, -0.    ])
    """
    if temperature is ONE and out is backend is None:
        logs = direct[LOG_PROB](logits, ids, axis, NO_INDEX, DIRECT[None], False)
        if logs is not None:
            return logs
    rows = _rows_of(logits, "logits", axis, temperature, backend)
    target = None if out is None else check_out(out, rows.shape, rows.result)
    index = _index_of(ids, "ids", rows, None)
    logs = _log_probs(rows, index, None)
    delivered = deliver(logs.reshape(rows.shape), rows.result, target, out)
    return delivered[()] if out is None else out


def nll_loss(
    log_probs: ArrayLike,
    target: ArrayLike,
    /,
    axis: int = -1,
    *,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Any:
    """The negative log-likelihood loss: ``-log_probs`` at the targets, as torch.nn.functional.nll_loss has it.

    Of `log_softmax` it is `cross_entropy`. Parameters, results and errors are those of cross_entropy with integer targets.

    Examples
    --------
    >>> from fastsoftmax import log_softmax, nll_loss
    >>> print(nll_loss(log_softmax([[2.0, 1.0, 0.0], [0.0, 50.0, 0.0]]), [1, 1]).round(4))
    0.7038
    """
    rows = _rows_of(log_probs, "log_probs", axis, ONE, None)
    _check_reduction(reduction, REDUCTIONS)
    weights = None if weight is None else _weights_of(weight, rows)
    goal = _index_goal(target, rows, ignore_index, weights)
    logs = np.zeros(rows.kept, rows.work)
    if rows.x.size:
        logs = convert(np.take_along_axis(rows.x, np.maximum(goal.target, 0), rows.axis), rows.work)
        logs[goal.ignored] = 0
    return _reduced([(_weighted(logs, goal), goal.total)], reduction, rows)


def kl_div(log_probs: ArrayLike, target: ArrayLike, /, *, reduction: str = "mean", log_target: bool = False) -> Any:
    """The Kullback-Leibler divergence from log-probabilities to a target: ``target * (log(target) - log_probs)``.

    Parameters
    ----------
    log_probs : array_like
        Logarithms of probabilities, as of `log_softmax`.
    target : array_like
        Probabilities; they and log_probs broadcast with each other. Where they are 0 so is the result.
    reduction : {"mean", "batchmean", "sum", "none"}
        "mean" is that of all elements, as in torch.nn.functional.kl_div; the divergence itself is "batchmean": the sum
        divided by the length of the first axis.
    log_target : bool
        target are logarithms of probabilities, too.

    Returns
    -------
    scalar or ndarray
        Of the common dtype of both (float64 for integers); for "none" of their common shape.

    Raises
    ------
    TypeError
        An array is not of real numbers.
    ValueError
        The shapes do not broadcast; reduction is none of the above.

    Notes
    -----
    S. Kullback, R. A. Leibler, "On information and sufficiency", Ann. Math. Stat. 22(1), 1951. Computed in double.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax import kl_div
    >>> print(kl_div(np.log([[0.5, 0.25, 0.25]]), [[1.0, 0.0, 0.0]], reduction="batchmean").round(4))
    0.6931
    """
    _check_reduction(reduction, (*REDUCTIONS, "batchmean"))
    x, q = as_array(log_probs, "log_probs"), as_array(target, "target")
    floats = result_dtype(x.dtype, None, "log_probs"), result_dtype(q.dtype, None, "target")
    result = np.promote_types(*floats) if floats[0] != floats[1] else floats[0]
    try:
        shape = np.broadcast_shapes(x.shape, q.shape)
    except ValueError:
        raise ValueError(f"target: shape {q.shape} does not broadcast with that of log_probs, {x.shape}") from None
    wide = np.promote_types(work_dtype(result), np.float64)
    with np.errstate(all="ignore"):
        if reduction == "none":
            values = _divergence(x.astype(wide), q.astype(wide), log_target)
            return np.broadcast_to(values, shape).astype(result)[()]
        if x.dtype.kind == "V" or q.dtype.kind == "V":  # bfloat16, which nditer does not know
            x, q = x.astype(wide), q.astype(wide)
        sums = [0.0]
        if math.prod(shape):
            pieces = np.nditer([x, q], ["external_loop", "buffered"], op_dtypes=[wide, wide], casting="unsafe", buffersize=TILE)
            sums = [exact_sums(_divergence(a, b, log_target)) for a, b in pieces]
        divisor = {"sum": 1, "mean": math.prod(shape), "batchmean": shape[0] if shape else 1}[reduction]
        return np.divide(exact_sums(np.asarray(sums, wide)), divisor).astype(result)[()]


def _divergence(log_probs: Array, target: Array, log_target: bool) -> Array:
    probabilities, logs = (np.exp(target), target) if log_target else (target, np.log(target))
    return np.where(probabilities == 0, 0, probabilities * (logs - log_probs))


# ---- what is given ----


class _Rows(NamedTuple):
    """Logits along their axis of classes; `kept` is the shape of one number a row with that axis, `shape` without."""

    x: Array
    axis: int
    result: np.dtype[Any]
    work: np.dtype[Any]
    kept: tuple[int, ...]
    shape: tuple[int, ...]
    temperature: Array | None
    backend: str | None


class _Goal(NamedTuple):
    """What rows are compared with."""

    target: Array  # int64, the class of each row, of the shape `kept`, -1 where it is ignored; or probabilities, as the rows
    ignored: Any  # bool, one a row
    weights: Array | None  # one a row: that of its class
    total: float  # what a mean is divided by
    count: int  # how many rows are not ignored


_Losses = tuple[Array, Array | None]  # of the shape `kept`; and the gradient, of the shape of the rows


def _rows_of(logits: ArrayLike, name: str, axis: int, temperature: ArrayLike, backend: str | None) -> _Rows:
    x = as_array(logits, name)
    result = result_dtype(x.dtype, None, name)
    index = as_index(axis, "axis: an integer")
    if not -x.ndim <= index < x.ndim:
        raise AxisError(index, x.ndim)
    index %= x.ndim
    kept, shape = reduced_shapes(x.shape, (index,), False)
    work = work_dtype(result)
    divided = temperature_of(temperature, work, kept, (index,))
    return _Rows(x, index, result, work, kept, shape, divided, backend if backend is None else resolve(backend))


def _check_reduction(reduction: str, known: tuple[str, ...]) -> None:
    if reduction not in known:
        raise ValueError(f"reduction: one of {', '.join(known)} expected, not {reduction!r}")


def _number(value: Any, name: str, expected: str, good: Callable[[float], bool]) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: {expected} expected, not {value!r}")
    if not good(float(value)):
        raise ValueError(f"{name}: {expected} expected, not {value}")
    return float(value)


def _weights_of(weight: ArrayLike, rows: _Rows) -> Array:
    weights = real_numbers(weight, "weight", rows.work)
    if weights.shape != (rows.x.shape[rows.axis],):
        raise ValueError(f"weight: shape {weights.shape} given, ({rows.x.shape[rows.axis]},) expected: a number a class")
    return weights


def _goal_of(target: ArrayLike, rows: _Rows, ignore_index: int, weights: Array | None) -> _Goal:
    given = as_array(target, "target")
    if given.dtype.kind not in "fV":
        return _index_goal(given, rows, ignore_index, weights)
    if as_index(ignore_index, "ignore_index: an integer") >= 0:
        raise ValueError(f"ignore_index: {ignore_index} given with probabilities, of which none can be ignored")
    if given.shape != rows.x.shape:
        raise ValueError(f"target: shape {given.shape} of probabilities given, that of logits is {rows.x.shape}")
    result_dtype(given.dtype, None, "target")
    count = math.prod(rows.shape)
    return _Goal(given, np.False_, None, count, count)


def _index_goal(target: ArrayLike, rows: _Rows, ignore_index: int, weights: Array | None) -> _Goal:
    index = _index_of(target, "target", rows, as_index(ignore_index, "ignore_index: an integer"))
    ignored = index < 0
    count = index.size - int(np.count_nonzero(ignored))
    if weights is None:
        return _Goal(index, ignored, None, count, count)
    weights = np.where(ignored, 0, weights[index] if weights.size else 0).astype(rows.work)
    return _Goal(index, ignored, weights, float(exact_sums(weights.ravel())), count)


def _index_of(target: ArrayLike, name: str, rows: _Rows, ignore_index: int | None) -> Array:
    """The class of each row, of the shape `kept`; -1 where it is ignored."""
    given, n = as_array(target, name), rows.x.shape[rows.axis]
    if given.size == 0 and given.dtype.kind == "f" and not isinstance(target, np.ndarray):
        given = given.astype(np.int64)  # an empty list
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
    index = given.astype(np.int64)
    if ignore_index is not None:
        index[given == ignore_index] = -1
    return index.reshape(rows.kept)


# ---- what is computed ----


def _shifted(x: Array, y: Array) -> bool:
    """Whether they overlap, but not element for element."""
    return not same_memory(x, y) and overlap(x, y)


class _Wanted(NamedTuple):
    """What is wanted besides the losses. The gradient is of share times the sum of losses, and lse_share lse^2 / 2."""

    lse: Array | None
    gradient: bool
    target: Array | None  # where it is put
    share: float
    lse_share: float


def _by_index(rows: _Rows, goal: _Goal, wanted: _Wanted) -> _Losses:
    """Losses of rows with a class each, and gradients: by the backend."""
    if not wanted.gradient or not rows.x.size:
        empty = np.empty(rows.x.shape, rows.result) if wanted.gradient else None
        return _weighted(_log_probs(rows, goal.target, wanted.lse), goal), empty
    choice = choose(LOSS_GRAD, rows.x, rows.result, (rows.axis,), rows.backend)
    given = convert(convert(rows.x, rows.result), choice.dtype)
    scale = np.full((1,) * rows.x.ndim, wanted.share, rows.work)
    if goal.weights is not None:
        scale = np.where(goal.weights == 0, 0, goal.weights * np.float64(wanted.share)).astype(rows.work)
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
    return _weighted(logs, goal), y


def _log_probs(rows: _Rows, index: Array | None, lse: Array | None) -> Array:
    """Log-probabilities of classes, in the type computed in; 0 where they are ignored."""
    if not rows.x.size:
        if lse is not None:
            lse[...] = -np.inf
        return np.zeros(rows.kept, rows.work)
    choice = choose(LOG_PROB, rows.x, rows.result, (rows.axis,), rows.backend)
    given = convert(convert(rows.x, rows.result), choice.dtype)
    y = np.empty(rows.kept, given.dtype)
    logs = y if y.dtype == rows.work else np.empty(rows.kept, rows.work)
    modifiers = Modifiers(
        temperature=rows.temperature, lse=lse, target=index, log_prob=None if logs is y else logs
    )
    execute(choice, given, y, (rows.axis,), modifiers)
    return logs


def _weighted(logs: Array, goal: _Goal) -> Array:
    """Losses; a weight of 0 drops its row."""
    if goal.weights is None:
        return 0 - logs
    wide = np.promote_types(logs.dtype, np.float64)
    with np.errstate(all="ignore"):
        return np.where(goal.weights == 0, 0, goal.weights.astype(wide) * -logs)


def _by_class(rows: _Rows, goal: _Goal, smoothing: float, weights: Array | None, wanted: _Wanted) -> _Losses:
    """Losses of rows of which all classes count, and gradients: tile by tile, through arrays that stay in the cache.

    With u the probabilities times the weights of classes, a loss is -sum u log p, its gradient p sum u - u.
    """
    n, wide = rows.x.shape[rows.axis], np.promote_types(rows.work, np.float64)
    losses, y = np.zeros(rows.kept, wide), wanted.target
    if wanted.gradient and (y is None or not y.flags.c_contiguous or overlap(goal.target, y) or _shifted(rows.x, y)):
        y = np.empty(rows.x.shape, rows.result)
    outer, inner = math.prod(rows.kept[: rows.axis]), math.prod(rows.kept[rows.axis :])

    def cut(a: Any) -> Array:
        return np.reshape(a, (outer, -1, inner)).swapaxes(1, 2)

    def cut_numbers(a: Any) -> Array:
        return cut(np.broadcast_to(a, rows.kept))

    x, target, ignored = cut(rows.x), cut(goal.target), cut_numbers(goal.ignored)
    temperature = cut_numbers(rows.work.type(1) if rows.temperature is None else rows.temperature)
    to_loss, to_lse, to_y = cut(losses), *(None if a is None else cut(a) for a in (wanted.lse, y))
    for tile in tiles(outer, n, inner, TILE):
        with np.errstate(all="ignore"):
            z = np.ascontiguousarray(x[tile].astype(rows.work) / temperature[tile])
            u = _class_weights(target[tile], n, smoothing, weights, wide)
            logs = _run("log_softmax", z, rows.backend)
            loss = exact_sums(np.where(u == 0, 0, u * -logs), axis=2)[..., np.newaxis]
            to_loss[tile] = np.where(ignored[tile], 0, loss)
            by_lse: Any = 0
            if to_lse is not None:
                to_lse[tile] = lse = _run("logsumexp", z, rows.backend)
                by_lse = lse.astype(wide) * wanted.lse_share if wanted.lse_share else 0
            if to_y is not None:
                sums = exact_sums(u, axis=2)[..., np.newaxis] * wanted.share
                g = (_run("softmax", z, rows.backend) * (sums + by_lse) - u * wanted.share) / temperature[tile]
                to_y[tile] = np.where(ignored[tile], 0, g)
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


def _reduced(parts: list[tuple[Array, float]], reduction: str, rows: _Rows) -> Any:
    """What becomes of the losses of rows, in parts with their divisors for a mean; each part of the shape `kept`."""
    with np.errstate(all="ignore"):
        if reduction == "none":
            losses = parts[0][0] if len(parts) == 1 else parts[0][0] + parts[1][0]
            return losses.reshape(rows.shape).astype(rows.result)[()]
        sums = [(exact_sums(losses.ravel()), divisor) for losses, divisor in parts]
        total = sum(value if reduction == "sum" else np.divide(value, divisor) for value, divisor in sums)
        return np.asarray(total).astype(rows.result)[()]
