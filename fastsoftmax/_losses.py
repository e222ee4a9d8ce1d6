"""Losses of logits and log-probabilities, with torch's semantics; their gradients in the same go."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._arrays import Array, as_array, check_out, common_shape, convert, deliver, result_dtype
from ._backends import LOG_PROB, work_dtype
from ._dispatch import direct
from ._loss_rows import (
    TILE,
    Wanted,
    by_class,
    by_index,
    check_reduction,
    goal_of,
    index_goal,
    index_of,
    log_probs_of,
    number_of,
    reduced,
    rows_of,
    weighted,
    weights_of,
)
from ._modified import ONE
from ._sums import exact_sum

REDUCTIONS = ("mean", "sum", "none")
#: Reductions, as functions for direct calls number them: (logits, target, axis, ignored, reduction, gradient), the
#: gradient being False, True or grad_out. None: none, and log-probabilities instead of losses.
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
        Either integers, the class of each row, of the shape of logits without the axis of the classes; or
        floating-point numbers, the probability of each class, of the shape of logits.
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
        A shape does not fit; label_smoothing, temperature, z_loss or reduction is none of the above; grad_out has
        another shape or dtype or is read-only; ignore_index is a class and target are probabilities.

    Notes
    -----
    With integers alone, losses have the bits of log_softmax, where nothing cancels; nor does it in the gradients: p
    less 1 at the target is expm1(log p). (With smoothing or probabilities it is a difference.) Losses are at most 2.5
    (float32) or 3 (float64) ulp off, with weights, smoothing or probabilities 4.

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
    check_reduction(reduction, REDUCTIONS)
    simple = temperature is ONE and weight is backend is None and not return_lse and label_smoothing is z_loss is ZERO
    if simple and (grad_out is None or type(grad_out) is np.ndarray):
        gradient = grad_out if grad_out is not None else bool(return_grad)
        loss = direct[LOG_PROB](logits, target, axis, ignore_index, DIRECT[reduction], gradient)
        if loss is not None:
            return loss
    return_grad = return_grad or grad_out is not None
    smoothing = number_of(label_smoothing, "label_smoothing", "a number from 0 to 1", lambda v: 0 <= v <= 1)
    z = number_of(z_loss, "z_loss", "a finite number from 0 on", lambda v: 0 <= v < math.inf)
    rows = rows_of(logits, "logits", axis, temperature, backend, exact=not z)
    weights = None if weight is None else weights_of(weight, rows)
    grad = None if grad_out is None else check_out(grad_out, rows.x.shape, rows.result, "grad_out")
    goal = goal_of(target, rows, ignore_index, weights)
    total, count = (goal.total or math.nan, goal.rows or math.nan) if reduction == "mean" else (1, 1)
    lse = np.empty(rows.kept, rows.work) if return_lse or z else None
    wide = np.promote_types(rows.work, np.float64).type
    with np.errstate(all="ignore"):
        wanted = Wanted(lse, return_grad, grad, wide(total), 2 * z / wide(count) if z else 0)
    if goal.target.dtype.kind == "i" and not smoothing:
        losses, gradients = by_index(rows, goal, wanted)
    else:
        losses, gradients = by_class(rows, goal, smoothing, weights, wanted)

    parts = [(losses, goal.total)]
    if z and lse is not None:
        with np.errstate(all="ignore"):
            squares = z * lse.astype(wide) ** 2
        parts.append((np.where(goal.ignored, 0, squares), goal.rows))
    results = [reduced(parts, reduction, rows)]
    if return_lse and lse is not None:
        if rows.top is not None:
            lse += rows.top
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
    What perplexities and reinforcement learning need of a language model. Like log_softmax (Blanchard, Higham & Higham,
    IMA J. Numer. Anal. 41(4), 2021) at most 2 (float32) or 2.5 (float64) ulp off.

    Examples
    --------
    >>> from fastsoftmax import token_logprobs
    >>> token_logprobs([[2.0, 1.0, 0.0], [0.0, 50.0, 0.0]], [1, 1]).round(4)
    array([-1.4076, -0.    ])
    """
    if temperature is ONE and out is None and backend is None:
        logs = direct[LOG_PROB](logits, ids, axis, NO_INDEX, DIRECT[None], False)
        if logs is not None:
            return logs
    rows = rows_of(logits, "logits", axis, temperature, backend, exact=True)
    target = None if out is None else check_out(out, rows.shape, rows.result)
    index = index_of(ids, "ids", rows, None)
    logs = log_probs_of(rows, index, None)
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

    Of `log_softmax` it is `cross_entropy`, whose parameters, results and errors with integer targets it has.

    Examples
    --------
    >>> from fastsoftmax import log_softmax, nll_loss
    >>> print(nll_loss(log_softmax([[2.0, 1.0, 0.0], [0.0, 50.0, 0.0]]), [1, 1]).round(4))
    0.7038
    """
    rows = rows_of(log_probs, "log_probs", axis, ONE, None)
    check_reduction(reduction, REDUCTIONS)
    weights = None if weight is None else weights_of(weight, rows)
    goal = index_goal(target, rows, ignore_index, weights)
    logs = np.zeros(rows.kept, rows.work)
    if rows.x.size:
        logs = convert(np.take_along_axis(rows.x, np.maximum(goal.target, 0), rows.axis), rows.work)
        logs[goal.ignored] = 0
    return reduced([(weighted(logs, goal), goal.total)], reduction, rows)


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
    check_reduction(reduction, (*REDUCTIONS, "batchmean"))
    x, q = as_array(log_probs, "log_probs"), as_array(target, "target")
    floats = result_dtype(x.dtype, None, "log_probs"), result_dtype(q.dtype, None, "target")
    result = np.promote_types(*floats) if floats[0] != floats[1] else floats[0]
    try:
        shape = common_shape(x.shape, q.shape)
    except ValueError:
        raise ValueError(f"target: shape {q.shape} does not broadcast with that of log_probs, {x.shape}") from None
    wide = np.promote_types(work_dtype(result), np.float64)
    with np.errstate(all="ignore"):
        if reduction == "none":
            values = _divergence(x.astype(wide), q.astype(wide), log_target)
            return convert(np.broadcast_to(values, shape), result)[()]
        if x.dtype.kind == "V" or q.dtype.kind == "V":  # bfloat16, which nditer does not know
            x, q = x.astype(wide), q.astype(wide)
        sums = [0.0]
        if math.prod(shape):
            how: dict[str, Any] = {"op_dtypes": [wide, wide], "order": "C", "casting": "unsafe", "buffersize": TILE}
            pieces = np.nditer([x, q], ["external_loop", "buffered"], **how)
            sums = [exact_sum(_divergence(a, b, log_target)) for a, b in pieces]
        divisor = {"sum": 1, "mean": math.prod(shape), "batchmean": shape[0] if shape else 1}[reduction]
        return convert(np.divide(exact_sum(np.asarray(sums, wide)), divisor), result)[()]


def _divergence(log_probs: Array, target: Array, log_target: bool) -> Array:
    probabilities, logs = (np.exp(target), target) if log_target else (target, np.log(target))
    return np.where(probabilities == 0, 0, probabilities * (logs - log_probs))
