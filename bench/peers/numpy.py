"""NumPy: the usual formula, in arrays made before."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from . import DOUBLE, SINGLE, Array, Job, Task

DISTRIBUTION = "numpy"
THREADED = False
DTYPES = SINGLE + DOUBLE
GIVEN = ("temperature", "bias", "where")


def setup(threads: int) -> None:
    """NumPy computes all of this on one thread."""


def modify(x: Array, given: dict[str, Any], z: Array) -> None:
    """z = x, modified."""
    if "temperature" in given:
        np.divide(x, given["temperature"], out=z)
    elif "bias" in given:
        np.add(x, given["bias"], out=z)
    else:
        z.fill(-np.inf)
        np.copyto(z, x, where=given["where"])


def with_out(task: Task) -> Job:
    x, axis, op = task.x, task.axis, task.op
    if task.given:
        x = np.empty_like(x)
    m = np.max(task.x, axis=axis, keepdims=True)
    s, d, e = np.empty_like(m), np.empty_like(x), np.empty_like(x)

    def sums() -> None:
        if task.given:
            modify(task.x, task.given, x)
        np.max(x, axis=axis, keepdims=True, out=m)
        np.subtract(x, m, out=d)
        np.exp(d, out=e)
        np.sum(e, axis=axis, keepdims=True, out=s)

    def softmax() -> None:
        sums()
        np.divide(e, s, out=e)

    def log_softmax() -> None:
        sums()
        np.log(s, out=s)
        np.subtract(d, s, out=d)

    def logsumexp() -> None:
        sums()
        np.log(s, out=s)
        np.add(m, s, out=s)

    calls = {"softmax": (softmax, e), "log_softmax": (log_softmax, d), "logsumexp": (logsumexp, s)}
    call, y = calls[op]
    return Job(call, lambda: y)


def without_out(task: Task) -> Job:
    x, axis, op = task.x, task.axis, task.op

    def call() -> Array:
        m = np.max(x, axis=axis, keepdims=True)
        d = x - m
        e = np.exp(d)
        s = np.sum(e, axis=axis, keepdims=True)
        if op == "softmax":
            return e / s
        return d - np.log(s) if op == "log_softmax" else m + np.log(s)

    return Job(call, call)


def jobs(task: Task) -> Iterator[Job]:
    yield with_out(task) if task.out else without_out(task)
