"""What the results should be, and how far off they are."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

OPS = ("softmax", "log_softmax", "logsumexp", "cross_entropy", "cross_entropy_grad")
BOUNDS = {  # ulp, as README.md promises them
    "float32": dict(zip(OPS, (3.0, 2.0, 1.5, 2.5, 8.0), strict=True)),
    "float64": dict(zip(OPS, (3.5, 2.5, 2.0, 3.0, 8.0), strict=True)),
    "float16": dict.fromkeys(OPS, 0.51),
    "bfloat16": dict.fromkeys(OPS, 0.51),
}


def modified(
    x: Array,
    temperature: float = 1,
    bias: Array | float = 0,
    where: NDArray[np.bool_] | bool = True,
    target: object = None,
) -> Array:
    """Rows on their way, each step rounded as x is."""
    t = x.dtype.type(temperature)
    return np.where(where, x / t + np.asarray(bias, x.dtype), x.dtype.type(-np.inf))


def reference(op: str, x: Array, axis: int = -1, target: NDArray[np.int64] | None = None) -> tuple[Array, Array]:
    """The formula in a wider type, no logarithm cancels; and the size whose ulp its errors are counted in."""
    x = x.astype(np.longdouble if x.dtype == np.float64 else np.float64)
    top = x.max(axis=axis, keepdims=True)
    e = np.exp(x - top)
    p = e / e.sum(axis=axis, keepdims=True)
    if op == "softmax":
        return p, p
    count = (x == top).sum(axis=axis, keepdims=True)
    log = np.log(count) + np.log1p(np.where(x == top, 0, e).sum(axis=axis, keepdims=True) / count)
    if op == "log_softmax":
        exact = (x - top) - log
        return exact, exact
    if target is not None:
        index = np.expand_dims(target, axis)
        log_prob = np.take_along_axis((x - top) - log, index, axis)
        if op == "cross_entropy":
            exact = np.squeeze(-log_prob, axis)
            return exact, exact
        np.put_along_axis(p, index, np.expm1(log_prob), axis)
        return p, p
    exact = np.squeeze(top + log, axis)
    return exact, np.maximum(np.abs(exact), np.squeeze(log, axis))


def worst_ulp(y: Array, exact: Array, size: Array) -> float:
    """The largest error in ulp of `size` in y's type; infinite if the two differ where one of them is not finite."""
    finite = np.isfinite(exact)
    if not np.array_equal(y[~finite], exact[~finite], equal_nan=True):
        return np.inf
    ulp = np.spacing(np.abs(size[finite]).astype(y.dtype)).astype(exact.dtype)
    return float(np.max(np.abs(y[finite].astype(exact.dtype) - exact[finite]) / ulp, initial=0))
