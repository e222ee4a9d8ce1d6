"""The Numba backend: which machine code runs, and on how many threads. The kernels are in _numba_kernels.

Nothing here imports Numba before `load`: that takes half a second and 65 MB.

Threads are a plain executor over kernels that release the GIL, and not Numba's prange, which cannot be made safe from
here: its workqueue layer aborts the process when two threads are in parallel code, and one may be in the user's own;
its omp layer kills a child forked after any OpenMP has run, ours or not. The price is a launch of 20 to 40 µs instead
of 2 (omp) to 30 (workqueue); the gain, besides, no second compilation and none of Numba's thread-local settings.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import numpy as np

from fastsoftmax._backends import ELEMENT_MAPS, ROW_REDUCTIONS, Array, Modifiers
from fastsoftmax._backends._tilewise import Tile, run_modified, tiles

if TYPE_CHECKING:
    from types import ModuleType

PAUSE = 50e-6  # seconds
GRAIN = 1 << 19  # bytes that are worth a thread: 50 to 100 µs of work, what it takes to wake one
GATHERED = 1 << 26  # bytes of rows that are gathered at once, if these are not fewer than eight
ONE_UP_TO = 64  # elements of rows that are modified as one, if they may be
TILE = 1 << 17  # elements that are modified at once
TOGETHER = 4096  # elements of rows that are worked on together: so few that they stay in the first level of the cache
# Rows that are worked on at once, if not one.
STEP = {"gathered": 8, "gathered_long": 8, "turned": 16, "columns": 16, "columns_long": 16}


def available() -> tuple[str, ...]:
    """The names of the backends that can run here."""
    return () if obstacle() else ("numba",)


def obstacle() -> str | None:
    """Why Numba cannot run here, if it cannot."""
    if not importlib.util.find_spec("numba"):
        return "numba is not installed"
    if _in_subinterpreter():  # any function that takes an array waits for the GIL for ever
        return "numba does not work in subinterpreters"
    try:
        os.getcwd()  # as Numba does when it compiles
    except OSError:
        return "numba cannot compile in a directory that is gone"
    return None


def _in_subinterpreter() -> bool:
    name = next((name for name in ("_interpreters", "_xxsubinterpreters") if importlib.util.find_spec(name)), None)
    if name is None:
        return False
    interpreters = importlib.import_module(name)
    return bool(interpreters.get_current() != interpreters.get_main())


def load(name: str) -> NumbaBackend:
    """The backend called `name`. Imports Numba; machine code is made (or read from Numba's cache) when first needed."""
    with _state.compiling:
        from fastsoftmax._backends import _numba_kernels, _numba_modified

    return NumbaBackend(name, _numba_kernels, _numba_modified)


class NumbaBackend:
    """See Backend in fastsoftmax._backends for what is promised."""

    def __init__(self, name: str, kernels: ModuleType, modified: ModuleType) -> None:
        self.name = name
        self._kernels, self._modified = kernels, modified
        self._code: dict[tuple[str, str, str], Callable[..., bool | None]] = {}

    def run(
        self,
        op: str,
        x: Array,
        y: Array,
        outer: int,
        n: int,
        inner: int,
        threads: int,
        modifiers: Modifiers | None = None,
    ) -> None:
        if modifiers is not None:
            self._run_modified(op, x, y, threads, modifiers)
            return
        if op in ELEMENT_MAPS and x.flags.c_contiguous and y.flags.c_contiguous:
            outer, n, inner = 1, outer * n * inner, 1
        x = _shaped(x, (outer, n, inner))
        y = _shaped(y, (outer, 1 if op in ROW_REDUCTIONS else n, inner))
        if inner == 1:  # rows with one outer index are worked on together
            x, y, outer, inner = x.T, y.T, 1, outer
        layout, together = self._layout(op, x, y)
        helpers = max(0, min(threads, x.nbytes // (GRAIN >> 3 if op == "logcumsumexp" else GRAIN)) - 1)
        if helpers:  # two pieces a thread at least, if need be of fewer rows
            step = STEP.get(layout, 1)
            together = min(together, -(-outer * inner // (2 * threads * step)) * step)
        kernel, rows, parts = self._compiled(op, layout, x.dtype), outer * inner, -(-n // self._kernels.BLOCK)
        if layout == "long":
            known = np.empty((rows, 4, parts))
            claims, share = np.zeros(self._kernels.STEPS * rows + 1, np.intp), -(-rows // (helpers + 1))
            _together(lambda: _insist(kernel, x, y, known, claims, share), helpers)
            return
        units = rows * parts if layout == "pieces" else outer * -(-inner // together)
        claims, share = np.zeros(1, np.intp), -(-units // (4 * threads)) if helpers else units
        _together(lambda: kernel(x, y, claims, share, units, together), helpers if units > 1 else 0)

    def vjp(self, op: str, g: Array, y: Array, dx: Array, outer: int, n: int, inner: int, threads: int) -> None:
        if n == 1 or all(a.strides[1] == a.itemsize for a in (g, y, dx)):
            self._pull(op, g, y, dx, threads)
            return
        for tile in tiles(outer, n, inner, TILE):  # elements that are apart: through copies
            rows = y.swapaxes(1, 2)[tile].copy()
            given = np.ascontiguousarray(g.swapaxes(1, 2)[tile])
            as_rows = rows.reshape(-1, n, 1)
            self._pull(op, given.reshape(-1, n, 1), as_rows, as_rows, threads)
            dx.swapaxes(1, 2)[tile] = rows

    def _pull(self, op: str, g: Array, y: Array, dx: Array, threads: int) -> None:
        from fastsoftmax._backends import _numba_vjp

        with _state.compiling:
            kernel = _numba_vjp.compiled(op, y.dtype)
        rows = y.shape[0] * y.shape[2]
        helpers = max(0, min(threads, y.nbytes // GRAIN, rows) - 1)
        claims, share = np.zeros(1, np.intp), -(-rows // (4 * threads)) if helpers else rows
        _together(lambda: kernel(g, y, dx, claims, share), helpers)

    def _run_modified(self, op: str, x: Array, y: Array, threads: int, modifiers: Modifiers) -> None:
        m = modifiers
        if self._is_read_modified(op, x, y, threads, m):
            y, empty = (y[:, np.newaxis], None) if op in ROW_REDUCTIONS else (y, m.empty)
            self._read_modified(op, x, y, threads, m.temperature, m.bias, m.where, empty)
            return
        outer, n, inner = x.shape
        todo = deque(tiles(outer, n, inner, TILE))
        alone = len(todo) == 1 or threads == 1

        def run(op: str, rows: Array) -> Array:
            results = np.empty((len(rows), 1), rows.dtype) if op in ROW_REDUCTIONS else rows
            self.run(op, rows, results, len(rows), rows.shape[1], 1, threads if alone else 1)
            return results

        def modify(rows: Array, z: Array, *given: Array | None) -> None:
            x, y, temperature, bias, where = (a if a is None else a.swapaxes(1, 2) for a in _in_lines(rows, z, *given))
            assert x is not None and y is not None
            self._read_modified(self._modified.MODIFY, x, y, threads if alone else 1, temperature, bias, where)

        def some() -> Iterator[Tile]:
            with contextlib.suppress(IndexError):
                while True:
                    yield todo.popleft()

        helpers = 0 if alone else min(threads, len(todo)) - 1
        _together(lambda: run_modified(run, op, x, y, modifiers, some(), modify), helpers)

    def _is_read_modified(self, op: str, x: Array, y: Array, threads: int, m: Modifiers) -> bool:
        """Whether rows are modified as they are read: not if they are short, or so few that threads must share them."""
        n = x.shape[1]
        if m.softcap or not (m.sink is m.lse is m.target is None) or n <= self._kernels.SHORT:
            return False
        if n > self._kernels.BLOCK and x.shape[0] * x.shape[2] < threads:
            return False
        as_long = [x, *([] if op in ROW_REDUCTIONS else [y]), *(a for a in (m.bias, m.where) if a is not None)]
        return all(a.strides[1] == a.itemsize and a.shape[1] == n for a in as_long)

    def _read_modified(
        self,
        op: str,
        x: Array,
        y: Array,
        threads: int,
        temperature: Array | None = None,
        bias: Array | None = None,
        where: Array | None = None,
        empty: float | None = None,
    ) -> None:
        """The op, or MODIFY, of rows whose elements are next to each other, as they are in bias and where."""
        asked = temperature, bias, where, empty
        how = sum(bit for bit, a in zip(self._modified.HOW, asked, strict=True) if a is not None)
        one, masks = _one(x.dtype), _TRUE if where is None else where.view(np.uint8)
        arrays = x, y, one if temperature is None else temperature, one if bias is None else bias, masks
        if x.shape[2] == 1:  # rows with one outer index are worked on together
            arrays = x.T, y.T, arrays[2].T, arrays[3].T, masks.T
        x = arrays[0]
        outer, n, inner = x.shape
        long = op != self._modified.MODIFY and n > self._kernels.BLOCK
        together = 1 if long else min(self._kernels.WIDTH, max(1, TOGETHER // n), inner)
        helpers = max(0, min(threads, x.nbytes // GRAIN) - 1)
        if helpers:
            together = min(together, -(-outer * inner // (2 * threads)))
        units = outer * -(-inner // together)
        claims, share = np.zeros(1, np.intp), -(-units // (4 * threads)) if helpers else units
        kernel = self._compiled(op, "modified_long" if long else "modified", x.dtype)
        numbers = how, empty or 0.0, claims, share, units, together
        _together(lambda: kernel(*arrays, *numbers), helpers if units > 1 else 0)

    def _layout(self, op: str, x: Array, y: Array) -> tuple[str, int]:
        """How the rows lie in memory, and how many to work on together."""
        n, kernels = x.shape[1], self._kernels
        by_columns = op in kernels.BY_COLUMNS
        long = by_columns and n > kernels.BLOCK
        if n == 1 or (x.strides[1] == x.itemsize and (op in ROW_REDUCTIONS or y.strides[1] == y.itemsize)):
            short = by_columns and n <= kernels.SHORT
            layout = "pieces" if op in ELEMENT_MAPS else "long" if long else "turned" if short else "rows"
        elif by_columns and x.strides[2] == y.strides[2] == x.itemsize and x.shape[2] >= kernels.WIDTH:
            layout = "columns_long" if long else "columns"
        else:
            layout = "gathered_long" if long else "gathered"
        most = x.shape[2]
        if layout == "rows":
            most = max(1, TOGETHER // n)
        elif layout == "gathered_long":
            most = max(STEP[layout], GATHERED // (n * x.itemsize))
        return layout, min(kernels.LAYOUTS[layout][2], most)

    def _compiled(self, op: str, layout: str, dtype: np.dtype[Any]) -> Callable[..., bool | None]:
        """The machine code of an operation for a layout."""
        key = op, layout, dtype.char
        if key not in self._code:
            with _state.compiling:
                if key not in self._code:
                    module = self._kernels if layout in self._kernels.LAYOUTS else self._modified
                    self._code[key] = module.compiled(op, layout, dtype)
        return self._code[key]


def _shaped(a: Array, shape: tuple[int, ...]) -> Array:
    return a if a.shape == shape else a.reshape(shape)


_TRUE = np.ones((1, 1, 1), np.uint8)


@functools.cache
def _one(dtype: np.dtype[Any]) -> Array:
    return np.ones((1, 1, 1), dtype)


def _in_lines(
    rows: Array, z: Array, temperature: Array | None, bias: Array | None, where: Array | None
) -> list[Array | None]:
    """The same with elements next to each other; short rows that are all divided by one number as one row."""
    if rows.strides[2] != rows.itemsize:
        z[...] = rows
        rows = z
    n = rows.shape[2]
    if temperature is not None and not any(temperature.strides[:2]):
        temperature = temperature[:1, :1]
    as_one = n <= ONE_UP_TO and (temperature is None or temperature.size == 1)
    as_one = as_one and rows.flags.c_contiguous and z.flags.c_contiguous
    arrays: list[Array | None] = [rows, z, temperature]
    for a in (bias, where):
        if a is not None and (as_one or a.shape[2] != n or a.strides[2] != a.itemsize):
            a = np.ascontiguousarray(np.broadcast_to(a, rows.shape if as_one else (*a.shape[:2], n)))
        arrays.append(a)
    return [a if a is None or a is temperature else a.reshape(1, 1, -1) for a in arrays] if as_one else arrays


# ---- threads ----


_libm = ctypes.PyDLL(None if os.name == "posix" else "ucrtbase")


def _in_the_same_environment(task: Callable[[], object]) -> Callable[[], None]:
    """The task for a helper: it takes over the caller's rounding mode, and whether subnormals are flushed to zero.

    A thread is born with those of the thread that started it, which may have been another caller's.
    """
    environment = ctypes.create_string_buffer(64)  # fenv_t: 8 to 32 bytes
    _libm.fegetenv(environment)

    def work() -> None:
        _libm.fesetenv(environment)
        task()

    return work


class _State:
    """The helpers, and what else a fork must not hand on: locks that another thread held, threads that are gone.

    A fork waits for those that load Numba or compile: in the child the locks of both would be held for ever.
    """

    def __init__(self) -> None:
        self.compiling = threading.RLock()
        self.starting = threading.Lock()
        self.pool: ThreadPoolExecutor | None = None

    def submit(self, work: Callable[[], object], helpers: int) -> list[Future[object]]:
        """Ask for helpers; none at all is fine (the interpreter is going down, or the system has no threads left)."""
        asked: list[Future[object]] = []
        try:
            with self.starting:
                pool = self.pool = self.pool or ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="fastsoftmax")
            for _ in range(helpers):
                asked.append(pool.submit(work))
        except RuntimeError:
            self.pool = None  # it would keep the work, and with it the arrays, until there is a thread
        return asked


_state = _State()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _state.compiling.acquire(),
        after_in_parent=lambda: _state.compiling.release(),
        after_in_child=_state.__init__,  # type: ignore[misc]
    )


def _together(task: Callable[[], object], helpers: int) -> None:
    """task() here and, if they come in time, in the helpers. It claims what there is to do piece by piece.

    Pieces are claimed, not assigned, and a helper that has not begun by the end is not waited for: a busy processor, or
    an executor busy with other callers, costs nothing. They are claimed in machine code. Lost: claims in Python, each
    of which takes the GIL, and a launch for each step of a huge row: 290 µs instead of 200 to 240 (512 x 1000,
    float32, two threads), 950 instead of 410 to 630 (a row of 2^20).
    """
    asked = _state.submit(_in_the_same_environment(task), helpers) if helpers else []
    try:
        task()
    finally:  # also on MemoryError: nobody may write to the caller's arrays after this returns
        running = [helper for helper in asked if not helper.cancel()]
        _wait_for(running)
    for helper in running:
        helper.result()


def _wait_for(running: list[Future[object]]) -> None:
    """Until all are done, even if that is interrupted; only then is the interrupt passed on."""
    try:
        wait(running)
    except BaseException:
        _wait_for(running)
        raise


def _insist(kernel: Callable[..., bool | None], *arguments: Array | int) -> None:
    """Until all is done: others may have begun what they have no processor to finish on."""
    while not kernel(*arguments):
        time.sleep(PAUSE)
