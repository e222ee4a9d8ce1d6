"""Which backend and how many threads, from the operation, the dtype and the size alone; and why."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import _backends, _config
from ._backends import work_dtype

OPS = (*_backends.OPS, "softmin", "hardmax")
AS = {
    "softmin": "softmax",
    _backends.LOG_PROB: "logsumexp",
    _backends.LOSS_GRAD: "softmax",
}  # whose crossovers are theirs
DTYPES = ("float32", "float64")
#: What a table of crossovers says of every operation and dtype: from how many elements two threads beat one, in C and
#: in Numba, and from how many Numba is worth its loading where there is no C part. None: at no size.
SECTIONS = ("c_threads", "numba_threads", "numba")
SHIPPED = Path(__file__).with_name("crossovers.json")
VARIABLE = "FASTSOFTMAX_CROSSOVERS"
MOST_BYTES = 1 << 20  # of a table: the shipped one has a few thousand


class Crossovers(NamedTuple):
    """A table of crossovers, and where it is from."""

    origin: str
    table: dict[str, dict[str, dict[str, int | None]]]

    def of(self, section: str, op: str, dtype: str) -> int | None:
        return self.table[section][AS.get(op, op)][dtype]


def read(path: Path, origin: str) -> Crossovers:
    """The table in a file. Whatever is wrong with it is a ValueError that begins with the origin."""
    import json

    try:
        table = json.loads(_text(path))
    except OSError as error:
        raise ValueError(f"{origin}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{origin}: not JSON: {error}") from error
    for keys in ((section, op, dtype) for section in SECTIONS for op in _backends.OPS for dtype in DTYPES):
        entry = table
        for key in keys:
            if not isinstance(entry, dict) or key not in entry:
                raise ValueError(f"{origin}: no entry {'.'.join(keys)}; `python -m fastsoftmax tune` makes such a file")
            entry = entry[key]
        if entry is not None and (type(entry) is not int or not 1 <= entry <= sys.maxsize):
            raise ValueError(f"{origin}: {'.'.join(keys)}: a number of elements or null expected, not {entry!r}")
    return Crossovers(origin, table)


def _text(path: Path) -> str:
    """What a file holds. Of a pipe or a device there may be no end, and of anything more than there is memory for."""
    if path.exists() and not path.is_file():
        raise OSError("not a regular file")
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise OSError(f"more than {MOST_BYTES} bytes")
    return content.decode("utf-8")


@functools.cache
def crossovers() -> Crossovers:
    """The table in force, read when first needed: the one that FASTSOFTMAX_CROSSOVERS names, or the shipped one.

    A file that cannot be used costs speed at most, so it is a warning.
    """
    if name := os.environ.get(VARIABLE):
        try:
            return read(Path(name), f"{VARIABLE}={name}")
        except ValueError as error:
            warnings.warn(f"{error}; the shipped table is used", stacklevel=3)
    return read(SHIPPED, "the shipped table")


@dataclass(frozen=True)
class Choice:
    """What would run, and why: for so many rows of n elements, which the backend is given in that dtype."""

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
    computed = work_dtype(dtype)
    name, reason = _backend(op, computed, elements, backend)
    threads, why = _threads(op, computed, elements, name, most)
    taken = dtype if name.partition("-")[0] in _backends.TAKE_HALVES else computed
    return Choice(op, name, threads, taken, rows, n, f"{reason}; {why}")


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
    if best == "numpy":
        return best, "neither the C part nor numba"
    limit = crossovers().of("numba", op, dtype.name)
    if limit is None or elements < limit:
        return "numpy", f"no C part, and numba is worth its loading {_from(limit)}"
    return best, f"no C part; numba is worth its loading {_from(limit)}"


def _threads(op: str, dtype: np.dtype[Any], elements: int, name: str, most: int) -> tuple[int, str]:
    if name == "numpy":
        return 1, "numpy uses one thread"
    if name == "numba":
        most = min(most, _config.most_numba_threads())
    if most == 1:
        return 1, "one thread is allowed"
    limit = crossovers().of(f"{name.partition('-')[0]}_threads", op, dtype.name)
    if limit is None or elements < limit:
        return 1, f"threads pay {_from(limit)}"
    return min(most, max(2, elements // max(1, limit // 2))), f"threads pay {_from(limit)}; {most} allowed"


def _from(limit: int | None) -> str:
    size = "at no size" if limit is None else f"from {limit} elements"
    return f"{size}, says {crossovers().origin}"


def _direct(name: str) -> _backends.Direct:
    """The function for direct calls of the backend that is chosen in float32 and float64, if it has such functions."""
    op = name.removesuffix(_backends.VJP)
    backend = _backends.load(choose(op, np.dtype(np.float64), 1, 1, None, 1).backend)
    make = getattr(backend, "direct", None)

    def alone_below(dtype: np.dtype[Any]) -> int:
        limit = crossovers().of("c_threads", op, work_dtype(dtype).name)
        return sys.maxsize if limit is None else limit

    def threads(elements: int, dtype: np.dtype[Any]) -> int:
        return choose(op, dtype, 1, elements, None, _config.get_num_threads()).threads

    function: _backends.Direct | None = make and make(name, alone_below, threads)
    return function or (lambda *arguments: None)


def _first(op: str) -> _backends.Direct:
    def call(*arguments: Any) -> Any:
        direct[op] = _direct(op)
        return direct[op](*arguments)

    return call


#: op -> a function of (x, axis, out), or of these and (where, temperature, bias, softcap, return_lse), that does a
#: simple call, or gives None if it is not one; op + VJP -> one of (g, y, axis, out); for LOG_PROB see `_losses`. Made
#: by the first call.
direct = {
    name: _first(name)
    for name in (*_backends.OPS, _backends.LOG_PROB, "softmax" + _backends.VJP, "log_softmax" + _backends.VJP)
}
