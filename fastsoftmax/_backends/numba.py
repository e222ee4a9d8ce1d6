"""The Numba backend: which machine code runs, and on how many threads. The kernels are in _numba_kernels.

Nothing here imports Numba before `load`: that takes half a second and 65 MB.

Threads are a plain executor over kernels that release the GIL, and not Numba's prange, which cannot be made safe from
here: its workqueue layer aborts the process when two threads are in parallel code, and one may be in the user's own;
its omp layer kills a child forked after any OpenMP has run, ours or not. The price is a launch of 20 to 40 µs instead
of 2 (omp) to 30 (workqueue); the gain, besides, no second compilation and none of Numba's thread-local settings.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import numpy as np

from fastsoftmax._backends import ELEMENT_MAPS, ROW_REDUCTIONS, Array

if TYPE_CHECKING:
    from types import ModuleType

GRAIN = 1 << 15  # elements that are worth a hand to another thread: some 10 to 60 µs of work


def available() -> tuple[str, ...]:
    """The names of the backends that can run here."""
    return ("numba",) if importlib.util.find_spec("numba") else ()


def load(name: str) -> NumbaBackend:
    """The backend called `name`. Imports Numba; machine code is made (or read from Numba's cache) when first needed."""
    from fastsoftmax._backends import _numba_kernels

    return NumbaBackend(name, _numba_kernels)


class NumbaBackend:
    """See Backend in fastsoftmax._backends for what is promised."""

    def __init__(self, name: str, kernels: ModuleType) -> None:
        self.name = name
        self._kernels = kernels
        self._code: dict[tuple[str, str | int, str], Callable[..., None]] = {}

    def run(self, op: str, x: Array, y: Array, outer: int, n: int, inner: int, threads: int) -> None:
        if op in ELEMENT_MAPS and x.flags.c_contiguous and y.flags.c_contiguous:
            outer, n, inner = 1, outer * n * inner, 1
        x = _shaped(x, (outer, n, inner))
        y = _shaped(y, (outer, 1 if op in ROW_REDUCTIONS else n, inner))
        if inner == 1:  # rows with one outer index are worked on together
            x, y, outer, inner = x.T, y.T, 1, outer
        layout, together, step = self._layout(op, x, y)
        if threads > 1:  # two pieces a thread at least, if need be of fewer rows
            together = min(together, -(-outer * inner // (2 * threads * step)) * step)
        units = outer * -(-inner // together)
        shares = min(4 * threads, x.size // GRAIN) if threads > 1 else 1
        rows = outer * inner
        if shares > 1 and layout == "rows" and rows < threads and op in ELEMENT_MAPS + tuple(self._kernels.STEPS):
            self._split_rows(op, x, y, rows, shares, threads)
            return
        kernel = self._compiled(op, layout, x.dtype)
        if shares <= 1 or units == 1:
            kernel(x, y, 0, units, together)
        else:
            _share(lambda start, stop: kernel(x, y, start, stop, together), units, shares, threads)

    def _layout(self, op: str, x: Array, y: Array) -> tuple[str, int, int]:
        """How the rows lie in memory, how many to work on together, and of how many that should be a multiple."""
        n, kernels = x.shape[1], self._kernels
        by_columns = op in kernels.BY_COLUMNS
        if n == 1 or (x.strides[1] == x.itemsize and (op in ROW_REDUCTIONS or y.strides[1] == y.itemsize)):
            if by_columns and n <= kernels.SHORT:
                return "turned", kernels.TURNED, kernels.WIDTH
            return "rows", min(kernels.WIDTH, max(1, 4096 // n)), 1
        if by_columns and x.strides[2] == y.strides[2] == x.itemsize and x.shape[2] >= kernels.WIDTH:
            return "columns", kernels.ROOM, kernels.WIDTH
        return "gathered", min(kernels.WIDTH, x.shape[2]), kernels.SQUARE

    def _split_rows(self, op: str, x: Array, y: Array, rows: int, shares: int, threads: int) -> None:
        """A few long rows, one after another, each split by blocks whose sums are added in order, whoever made them."""
        n, block = x.shape[1], self._kernels.BLOCK
        blocks = -(-n // block)
        if op in ELEMENT_MAPS:
            kernel = self._compiled(op, "rows", x.dtype)

            def piece(start: int, stop: int) -> None:
                span = slice(start * block, stop * block)
                kernel(x[:, span], y[:, span], 0, rows, 1)

            _share(piece, blocks, shares, threads)
            return
        work = np.empty((4, blocks))
        steps = [self._compiled(op, step, x.dtype) for step in range(len(self._kernels.STEPS[op]))]
        for row in range(rows):
            for step in steps:
                _share(_bound(step, x, y, work, row), blocks, shares, threads)

    def _compiled(self, op: str, part: str | int, dtype: np.dtype[Any]) -> Callable[..., None]:
        """The machine code of an operation for a layout, or of one step of it."""
        key = op, part, dtype.char
        if key not in self._code:
            with _state.compiling:
                if key not in self._code:
                    make = self._kernels.compiled_step if isinstance(part, int) else self._kernels.compiled
                    self._code[key] = make(op, part, dtype)
        return self._code[key]


def _shaped(a: Array, shape: tuple[int, ...]) -> Array:
    return a if a.shape == shape else a.reshape(shape)


def _bound(step: Callable[..., None], x: Array, y: Array, work: Array, row: int) -> Callable[[int, int], None]:
    return lambda start, stop: step(x, y, work, row, start, stop)


# ---- threads ----


class _State:
    """The helpers, and what else a fork must not hand on: locks that another thread held, threads that are gone."""

    def __init__(self) -> None:
        self.compiling = threading.Lock()
        self.starting = threading.Lock()
        self.pool: ThreadPoolExecutor | None = None

    def submit(self, work: Callable[[], None], helpers: int) -> list[Future[None]]:
        """Ask for helpers; none at all is fine (the interpreter is going down, or the system has no threads left)."""
        asked: list[Future[None]] = []
        try:
            with self.starting:
                if self.pool is None:
                    self.pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="fastsoftmax")
            for _ in range(helpers):
                asked.append(self.pool.submit(work))
        except RuntimeError:
            pass
        return asked


_state = _State()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_state.__init__)  # type: ignore[misc]


def _share(task: Callable[[int, int], None], count: int, shares: int, threads: int) -> None:
    """task(start, stop) over all of range(count) in about `shares` pieces.

    Pieces are claimed, not assigned, and a helper that has claimed none by the end is not waited for: a busy processor,
    or an executor busy with other callers, costs nothing.
    """
    size = -(-count // min(shares, count))
    starts, claiming = iter(range(0, count, size)), threading.Lock()

    def work() -> None:
        while True:
            with claiming:
                start = next(starts, None)
            if start is None:
                return
            task(start, min(start + size, count))

    helpers = _state.submit(work, min(threads, -(-count // size)) - 1)
    try:
        work()
    finally:  # also on MemoryError: nobody may write to the caller's arrays after this returns
        running = [helper for helper in helpers if not helper.cancel()]
        wait(running)
    for helper in running:
        helper.result()
