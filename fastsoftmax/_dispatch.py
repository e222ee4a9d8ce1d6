"""Which backend and how many threads, from the operation, the dtype and the size alone; and why."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _backends, _config

#: Elements of float32 that make about 40 us of work: below, waking a thread costs more than it saves.
SPLIT = {op: 1 << 17 for op in (*_backends.OPS, "softmin", "hardmax")} | {"logcumsumexp": 1 << 15}
#: Without the C part, elements below which NumPy is done before Numba has started its threads.
NUMPY_BELOW = 1 << 15


@dataclass(frozen=True)
class Choice:
    """What would run, and why. Rows and n are the number of rows and the elements in each."""

    op: str
    backend: str
    threads: int
    dtype: np.dtype[Any]
    rows: int
    n: int
    reason: str

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.op} of {self.rows} x {self.n} {self.dtype}: {self.backend}, {threads} ({self.reason})"


@functools.lru_cache(maxsize=256)
def choose(op: str, dtype: np.dtype[Any], rows: int, n: int, backend: str | None, most: int) -> Choice:
    """The backend for one call, `backend` as the caller named it, and how many of at most `most` threads."""
    elements = rows * n
    name, reason = _backend(op, dtype, elements, backend)
    threads, why = _threads(op, dtype, elements, name, most)
    return Choice(op, name, threads, dtype, rows, n, f"{reason}; {why}")


def _backend(op: str, dtype: np.dtype[Any], elements: int, backend: str | None) -> tuple[str, str]:
    asked = _config.resolve(backend) if backend is not None else _config.default_backend()
    if op == "hardmax":
        return "numpy", "argmax is NumPy's own"
    if dtype.char not in "fd":
        return "numpy", f"only numpy computes in {dtype}"
    if asked is not None:
        return asked, "asked for by backend=" if backend is not None else "asked for by FASTSOFTMAX_BACKEND"
    best = _config.backends()[0]
    if best.startswith("c-"):
        return best, "the C part is best at every size"
    if best == "numba" and elements < NUMPY_BELOW:
        return "numpy", f"no C part, and fewer than {NUMPY_BELOW} elements do not pay for the JIT"
    return best, "no C part" if best == "numba" else "neither the C part nor numba"


def _threads(op: str, dtype: np.dtype[Any], elements: int, name: str, most: int) -> tuple[int, str]:
    if name == "numpy":
        return 1, "numpy uses one thread"
    limit = SPLIT[op] * 4 // dtype.itemsize
    if elements < limit:
        return 1, f"fewer than {limit} elements do not pay for threads"
    return min(most, elements // (limit // 2)), f"of {most} at most"


def _small(op: str) -> _backends.Small:
    """The function for small calls of the backend that is chosen in float32 and float64, where always one thread is."""
    backend = _backends.load(choose(op, np.dtype(np.float64), 1, 1, None, 1).backend)
    make = getattr(backend, "small", None)
    function: _backends.Small | None = make and make(op, min(NUMPY_BELOW, SPLIT[op] // 2))
    return function or (lambda x, axis, out: None)


def _first(op: str) -> _backends.Small:
    def call(x: Any, axis: Any, out: Any) -> Any:
        small[op] = _small(op)
        return small[op](x, axis, out)

    return call


#: op -> a function of (x, axis, out) that does a small call, or gives None if it is not one. Made by the first call.
small = {op: _first(op) for op in _backends.OPS}
