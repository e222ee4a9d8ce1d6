"""numexpr: NumPy's formula with the passes over all elements compiled; its own reductions are slower than NumPy's."""

from collections.abc import Callable, Iterator
from functools import partial

import numexpr
import numpy as np

from . import DOUBLE, SINGLE, Array, Job, Task

DISTRIBUTION = "numexpr"
THREADED = True
DTYPES = SINGLE + DOUBLE
GIVEN: tuple[str, ...] = ()
KINDS = {"float32": float, "float64": np.double}  # numexpr's names for them


def setup(threads: int) -> None:
    numexpr.set_num_threads(threads)


def compiled(text: str, names: str, dtype: str) -> Callable[..., Array]:
    """An expression as a function of variables whose names are letters."""
    expression = numexpr.NumExpr(text, [(name, KINDS[dtype]) for name in names])
    return partial(expression, ex_uses_vml=False)


def jobs(task: Task) -> Iterator[Job]:
    if not task.out:
        return
    x, axis, op = task.x, task.axis, task.op
    exp = compiled("exp(x - m)", "xm", x.dtype.name)
    divide = compiled("e / s", "es", x.dtype.name)
    subtract = compiled("x - (m + s)", "xms", x.dtype.name)
    m = np.max(x, axis=axis, keepdims=True)
    s, e = np.empty_like(m), np.empty_like(x)

    def call() -> None:
        np.max(x, axis=axis, keepdims=True, out=m)
        exp(x, m, out=e)
        np.sum(e, axis=axis, keepdims=True, out=s)
        if op == "softmax":
            divide(e, s, out=e)
            return
        np.log(s, out=s)
        if op == "log_softmax":
            subtract(x, m, s, out=e)
        else:
            np.add(m, s, out=s)

    yield Job(call, lambda: s if op == "logsumexp" else e)
