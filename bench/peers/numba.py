"""A user's Numba loops: what one writes at the first go, with the sums free to be vectorised."""

from collections.abc import Callable, Iterator
from functools import cache, partial

import numba
import numpy as np

from . import DOUBLE, SINGLE, Job, Task

DISTRIBUTION = "numba"
THREADED = True
DTYPES = SINGLE + DOUBLE
GIVEN: tuple[str, ...] = ()


def setup(threads: int) -> None:
    numba.set_num_threads(threads)


def softmax(x, y):
    for i in numba.prange(x.shape[0]):
        top = x[i].max()
        total = x.dtype.type(0)
        for j in range(x.shape[1]):
            y[i, j] = np.exp(x[i, j] - top)
            total += y[i, j]
        for j in range(x.shape[1]):
            y[i, j] /= total


def log_softmax(x, y):
    for i in numba.prange(x.shape[0]):
        top = x[i].max()
        total = x.dtype.type(0)
        for j in range(x.shape[1]):
            total += np.exp(x[i, j] - top)
        log = np.log(total)
        for j in range(x.shape[1]):
            y[i, j] = x[i, j] - top - log


def logsumexp(x, y):
    for i in numba.prange(x.shape[0]):
        top = x[i].max()
        total = x.dtype.type(0)
        for j in range(x.shape[1]):
            total += np.exp(x[i, j] - top)
        y[i] = top + np.log(total)


@cache
def compiled(op: str, parallel: bool) -> Callable[..., None]:
    function = {"softmax": softmax, "log_softmax": log_softmax, "logsumexp": logsumexp}[op]
    return numba.njit(parallel=parallel, fastmath={"reassoc", "nsz", "contract", "arcp"})(function)


def jobs(task: Task) -> Iterator[Job]:
    x = task.x
    if task.axis != -1 or not task.out:
        return
    y = task.empty()
    rows = x.reshape(-1, x.shape[-1])
    results = y.reshape(-1) if task.op == "logsumexp" else y.reshape(rows.shape)
    yield Job(partial(compiled(task.op, task.threads > 1), rows, results), lambda: y)
