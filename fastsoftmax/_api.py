"""The functions: names, defaults and what they promise. How a call is carried out is in `_calls`."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._arrays import Array, DTypeArg, as_array, asked_dtype
from ._calls import hardmax_rows, map_rows, reduce_rows
from ._dispatch import direct
from ._modified import ONE, Asked, modified_rows
from ._weighted import weighted_logsumexp


def softmax(
    x: ArrayLike,
    /,
    axis: Any = -1,
    *,
    where: ArrayLike | None = None,
    temperature: ArrayLike = ONE,
    bias: ArrayLike | None = None,
    softcap: float | None = None,
    sink: ArrayLike | None = None,
    empty: str | None = None,
    dtype: DTypeArg = None,
    out: Array | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Any:
    """Exponentials, divided by their sum: ``e**x / sum(e**x)`` along an axis.

    Parameters
    ----------
    x : array_like
        Real numbers of any shape and memory layout.
    axis : int, tuple of ints or None
        The axis or axes that make up a row, over which the results add up to 1. None: all of them.
    where : array_like of bool, optional
        True: keep. What is not kept counts as -inf, whatever it was, NaN included. Broadcasts to x.
    temperature : array_like, optional
        x is divided by it [3]_; finite, above 0. A number; or one a row: an array that broadcasts to x, with length 1
        along the axes of a row.
    bias : array_like, optional
        Is added. Broadcasts to x: additive masks, ALiBi.
    softcap : float, optional
        Logits are capped smoothly [4]_: ``softcap * tanh(logits / softcap)``.
    sink : array_like, optional
        One more logit of each row, which has its part in the sum but no result; rows then add up to less than 1. A
        number, or one a row, as for temperature. With 0 it is ``e**x / (1 + sum(e**x))``.
    empty : {"nan", "zero", "uniform"}, optional
        What a row becomes that is -inf throughout: NaN; 0 (-inf for log_softmax); equal chances. By default "zero" with
        where, since that says that there is nothing, and else "nan".
    dtype : dtype, optional
        What x is cast to first, and the dtype of the result: float16, bfloat16 (of ml_dtypes), float32, float64 or
        longdouble. By default that of x; float64 for integers and bool.
    out : ndarray, optional
        Where the result is put, of its shape and dtype. It may be x, or overlap any of the arrays.
    return_lse : bool
        Return the pair result, logsumexp of the rows (sink included); the latter of half types in float32.
    backend : str, optional
        One of `backends()`, or "c" for the best of its kind. By default the size decides, see `explain`.

    Returns
    -------
    ndarray, or a pair of them
        Of the shape of x; `out` if that was given. A row that holds a NaN or +inf, or nothing but -inf, is NaN; an
        empty row is empty.

    Raises
    ------
    TypeError
        x or dtype is not of real numbers, x is a masked array, axis is no integer, where is not of bool.
    AxisError
        axis is out of range.
    ValueError
        An axis is named twice; out has another shape or dtype or is read-only; the backend does not exist here; an
        array does not broadcast; temperature or softcap is not a finite number above 0 (in the dtype computed in).

    Notes
    -----
    Rows are modified on their way, as if written ``numpy.where(where, cap(x / temperature) + bias, -inf)``, each step
    rounded once in the type that is computed in, and to the same bits (but for tanh).

    The name is Bridle's [1]_. Large x do not overflow, and x - max(x), whose rounding costs others up to 70 units in
    the last place [2]_, is not rounded: the error is at most 3 (float32) or 3.5 (float64), for subnormal results too.

    References
    ----------
    .. [1] J. S. Bridle, "Probabilistic interpretation of feedforward classification network outputs", 1990.
    .. [2] P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax functions",
       IMA J. Numer. Anal. 41(4), 2021.
    .. [3] G. Hinton, O. Vinyals, J. Dean, "Distilling the knowledge in a neural network", 2015, arXiv:1503.02531.
    .. [4] I. Bello et al., "Neural combinatorial optimization with reinforcement learning", 2016, arXiv:1611.09940.

    Examples
    --------
    >>> from fastsoftmax import softmax
    >>> softmax([[1.0, 2.0, 3.0], [1000.0, 1000.0, 0.0]]).round(4)
    array([[0.09  , 0.2447, 0.6652],
           [0.5   , 0.5   , 0.    ]])
    >>> softmax([1.0, 2.0, 3.0], where=[True, False, True], temperature=0.5).round(4)
    array([0.018, 0.   , 0.982])
    """
    if sink is empty is dtype is backend is None:
        if where is bias is softcap is None and temperature is ONE and not return_lse:
            y = direct["softmax"](x, axis, out)
        else:
            y = direct["softmax"](x, axis, out, where, temperature, bias, softcap, return_lse)
        if y is not None:
            return y
    asked = Asked(where, temperature, bias, softcap, sink, empty, return_lse)
    if asked.nothing:
        return map_rows("softmax", x, axis, dtype, out, backend)
    return modified_rows("softmax", x, "x", asked, axis, dtype, out, backend)


def log_softmax(
    x: ArrayLike,
    /,
    axis: Any = -1,
    *,
    where: ArrayLike | None = None,
    temperature: ArrayLike = ONE,
    bias: ArrayLike | None = None,
    softcap: float | None = None,
    sink: ArrayLike | None = None,
    empty: str | None = None,
    dtype: DTypeArg = None,
    out: Array | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Any:
    """The logarithm of softmax: ``x - log(sum(e**x))`` along an axis, also where softmax is 0 or next to 1.

    Parameters, results and errors are those of `softmax`. With m the maximum of a row, c its number and r the sum of
    e**(x - m) over all others, it is (x - m) - (log c + log1p(r / c)): both parts have one sign, nothing cancels
    (Blanchard, Higham & Higham, IMA J. Numer. Anal. 41(4), 2021). At most 2 (float32) or 2.5 (float64) ulp off.

    Examples
    --------
    >>> from fastsoftmax import log_softmax
    >>> y = log_softmax([1000.0, 1.0, 960.0])
    >>> print(f"{y[0]:.4e} {y[1]:.1f} {y[2]:.1f}")
    -4.2484e-18 -999.0 -40.0
    """
    if sink is empty is dtype is backend is None:
        if where is bias is softcap is None and temperature is ONE and not return_lse:
            y = direct["log_softmax"](x, axis, out)
        else:
            y = direct["log_softmax"](x, axis, out, where, temperature, bias, softcap, return_lse)
        if y is not None:
            return y
    asked = Asked(where, temperature, bias, softcap, sink, empty, return_lse)
    if asked.nothing:
        return map_rows("log_softmax", x, axis, dtype, out, backend)
    return modified_rows("log_softmax", x, "x", asked, axis, dtype, out, backend)


def softmin(
    x: ArrayLike,
    /,
    axis: Any = -1,
    *,
    dtype: DTypeArg = None,
    out: Array | None = None,
    backend: str | None = None,
) -> Array:
    """``softmax(-x)``, for unsigned integers too. Parameters, results and errors are those of `softmax`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax import softmin
    >>> softmin(np.array([0, 1, 3], np.uint8)).round(4)
    array([0.7054, 0.2595, 0.0351])
    """
    return map_rows("softmax", x, axis, dtype, out, backend, negate=True)


def hardmax(
    x: ArrayLike,
    /,
    axis: Any = -1,
    *,
    dtype: DTypeArg = None,
    out: Array | None = None,
    backend: str | None = None,
) -> Array:
    """1 for the first maximum of a row, 0 for everything else (ONNX Hardmax; softmax(x / T) for T -> 0).

    Parameters, results and errors are those of `softmax`, but the first +inf of a row wins. Every backend is the same.

    Examples
    --------
    >>> from fastsoftmax import hardmax
    >>> hardmax([[1.0, 3.0, 3.0], [0.0, float("nan"), 1.0]])
    array([[ 0.,  1.,  0.],
           [nan, nan, nan]])
    """
    return hardmax_rows(x, axis, dtype, out, backend)


def logcumsumexp(
    x: ArrayLike,
    /,
    axis: Any = -1,
    *,
    dtype: DTypeArg = None,
    out: Array | None = None,
    backend: str | None = None,
) -> Array:
    """The logarithm of the cumulative sum of exponentials: ``log(cumsum(e**x))`` along an axis (torch.logcumsumexp).

    Parameters and errors are those of `softmax`; several axes are run through in C order. A NaN shows from where it
    stands, +inf makes what follows +inf, and before the first number other than -inf it is -inf.

    Examples
    --------
    >>> from fastsoftmax import logcumsumexp
    >>> logcumsumexp([0.0, 0.0, 90.0, 90.0]).round(4)
    array([ 0.    ,  0.6931, 90.    , 90.6931])
    """
    if dtype is None and backend is None and (y := direct["logcumsumexp"](x, axis, out)) is not None:
        return y  # type: ignore[no-any-return]
    return map_rows("logcumsumexp", x, axis, dtype, out, backend)


def logsumexp(
    a: ArrayLike,
    /,
    axis: Any = None,
    b: ArrayLike | None = None,
    *,
    keepdims: bool = False,
    return_sign: bool = False,
    where: ArrayLike | None = None,
    temperature: ArrayLike = ONE,
    bias: ArrayLike | None = None,
    softcap: float | None = None,
    sink: ArrayLike | None = None,
    dtype: DTypeArg = None,
    out: Array | None = None,
    backend: str | None = None,
) -> Any:
    """The logarithm of the sum of exponentials: ``log(sum(b * e**a))``, with SciPy's semantics.

    Parameters
    ----------
    a : array_like
        Numbers of any shape and memory layout; complex ones too.
    axis : int, tuple of ints or None
        The axis or axes to sum over. None: all of them.
    b : array_like, optional
        Weights of either sign, broadcast with a. A weight of 0 drops its term, even an infinite or NaN one.
    keepdims : bool
        Leave the axes summed over in the result, with length one.
    return_sign : bool
        Return the pair log(abs(sum)), sign(sum), the sign of a complex sum being its phase. Otherwise the logarithm of
        a negative sum is NaN.
    where, temperature, bias, softcap, sink
        What is done to a first, as for `softmax`; softcap and sink not with b or complex a.
    dtype, out, backend
        As for `softmax`. Weighted and complex sums, and those in longdouble, are always computed by NumPy.

    Returns
    -------
    ndarray or scalar, or a pair of them
        One number for each row; a scalar where no axis is left. -inf if nothing, or nothing but -inf, is summed; NaN if
        there is a NaN, else +inf if there is a +inf. The imaginary part is in (-pi, pi].

    Raises
    ------
    TypeError, AxisError, ValueError
        As for `softmax`; ValueError also if a and b do not broadcast, or for out= with return_sign=True.

    Notes
    -----
    m + log c + log1p(r / c), with m the maximum, c how often it occurs and r the sum of e**(a - m) over all others: as
    exact when the result is close to 0 (P. Blanchard, D. J. Higham, N. J. Higham, IMA J. Numer. Anal. 41(4), 2021).
    At most 1.5 (float32) or 2 (float64) ulp of the larger of abs(result) and result - m. Weighted and complex sums are
    computed in the next wider type.

    Examples
    --------
    >>> from fastsoftmax import logsumexp
    >>> print(logsumexp([1000.0, 1000.0]).round(4), f"{logsumexp([0.0, -40.0]):.4e}")
    1000.6931 4.2484e-18
    >>> value, sign = logsumexp([1.0, 2.0], b=[1.0, -1.0], return_sign=True)
    >>> print(value.round(4), sign)
    1.5413 -1.0
    """
    if b is sink is dtype is backend is None and not keepdims and not return_sign:
        if where is bias is softcap is None and temperature is ONE:
            y = direct["logsumexp"](a, axis, out)
        else:
            y = direct["logsumexp"](a, axis, out, where, temperature, bias, softcap, False)
        if y is not None:
            return y
    a, asked = as_array(a, "a"), Asked(where, temperature, bias, softcap, sink)
    if b is not None or a.dtype.kind == "c" or (dtype is not None and asked_dtype(dtype).kind == "c"):
        return weighted_logsumexp(a, b, asked, axis, keepdims, return_sign, dtype, out, backend)
    if return_sign and out is not None:
        raise ValueError("out: cannot take two results; leave it away with return_sign=True")
    if asked.nothing:
        value = reduce_rows("logsumexp", a, axis, dtype, out, backend, keepdims)
    else:
        value = modified_rows("logsumexp", a, "a", asked, axis, dtype, out, backend, keepdims)
    if not return_sign:
        return value
    return value, np.where(np.isnan(value), value, value > -np.inf).astype(value.dtype)[()]


def logmeanexp(
    a: ArrayLike,
    /,
    axis: Any = None,
    *,
    keepdims: bool = False,
    dtype: DTypeArg = None,
    out: Array | None = None,
    backend: str | None = None,
) -> Any:
    """The logarithm of the mean of exponentials: ``log(mean(e**a))``, `logsumexp` less log n (jax.nn.logmeanexp).

    Parameters, results and errors are those of `logsumexp`, but complex numbers are a TypeError and the mean of nothing
    is NaN.

    Examples
    --------
    >>> from fastsoftmax import logmeanexp
    >>> print(logmeanexp([1000.0, 1000.0]), logmeanexp([[0.0, 1.0], [2.0, 2.0]], axis=1).round(4))
    1000.0 [0.6201 2.    ]
    """
    if dtype is None and backend is None and not keepdims:
        y = direct["logmeanexp"](a, axis, out)
        if y is not None:
            return y
    return reduce_rows("logmeanexp", a, axis, dtype, out, backend, keepdims)


def sigmoid(x: ArrayLike, /, *, dtype: DTypeArg = None, out: Array | None = None, backend: str | None = None) -> Array:
    """The logistic function ``1 / (1 + e**-x)`` of every element (Cox 1958): softmax of (x, 0), its first half.

    Parameters, results and errors are those of `softmax`; NaN stays, -inf and +inf give 0 and 1.

    Examples
    --------
    >>> from fastsoftmax import sigmoid
    >>> sigmoid([-1000.0, 0.0, 1.0]).round(4)
    array([0.    , 0.5   , 0.7311])
    """
    if dtype is None and backend is None and (y := direct["sigmoid"](x, None, out)) is not None:
        return y  # type: ignore[no-any-return]
    return map_rows("sigmoid", x, (), dtype, out, backend)


def softplus(
    x: ArrayLike,
    /,
    *,
    beta: float = 1.0,
    dtype: DTypeArg = None,
    out: Array | None = None,
    backend: str | None = None,
) -> Array:
    """``log(1 + e**(beta * x)) / beta`` of every element (Dugas et al. 2001): logsumexp of (x, 0), without overflow.

    Parameters, results and errors are those of `softmax`; a beta that is not finite and positive is a ValueError.

    Examples
    --------
    >>> from fastsoftmax import softplus
    >>> softplus([-1000.0, 0.0, 90.0], beta=2.0).round(4)
    array([ 0.    ,  0.3466, 90.    ])
    """
    if type(beta) is not float and not isinstance(beta, numbers.Real):
        raise TypeError(f"beta: a real number expected, not {beta!r}")
    try:
        beta = float(beta)
    except OverflowError:
        beta = math.inf
    if not 0 < beta < math.inf:
        raise ValueError(f"beta: a finite number above 0 expected, not {beta}")
    if beta == 1 and dtype is None and backend is None and (y := direct["softplus"](x, None, out)) is not None:
        return y  # type: ignore[no-any-return]
    return map_rows("softplus", x, (), dtype, out, backend, beta=beta)
