"""What the results should be, and how far off they are."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

BOUNDS = {  # ulp, as README.md promises them
    "float32": {"softmax": 3.0, "log_softmax": 2.0, "logsumexp": 1.5},
    "float64": {"softmax": 3.5, "log_softmax": 2.5, "logsumexp": 2.0},
}
WIDER = {"float32": np.float64, "float64": np.longdouble}


def reference(op: str, x: Array, axis: int = -1) -> tuple[Array, Array]:
    """The formula in a wider type, no logarithm cancels; and the size whose ulp its errors are counted in."""
    x = x.astype(WIDER[x.dtype.name])
    top = x.max(axis=axis, keepdims=True)
    e = np.exp(x - top)
    if op == "softmax":
        exact = e / e.sum(axis=axis, keepdims=True)
        return exact, exact
    count = (x == top).sum(axis=axis, keepdims=True)
    log = np.log(count) + np.log1p(np.where(x == top, 0, e).sum(axis=axis, keepdims=True) / count)
    if op == "log_softmax":
        exact = (x - top) - log
        return exact, exact
    exact = np.squeeze(top + log, axis)
    return exact, np.maximum(np.abs(exact), np.squeeze(log, axis))


def worst_ulp(y: Array, exact: Array, size: Array) -> float:
    """The largest error in ulp of `size` in y's type; infinite if the two differ where one of them is not finite."""
    finite = np.isfinite(exact)
    if not np.array_equal(y[~finite], exact[~finite], equal_nan=True):
        return np.inf
    ulp = np.spacing(np.abs(size[finite]).astype(y.dtype))
    return float(np.max(np.abs(y[finite] - exact[finite]) / ulp, initial=0))
