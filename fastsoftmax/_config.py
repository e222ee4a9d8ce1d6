"""Settings: what the environment asks for, how many threads, and a report of it all."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import math
import os
import platform
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from . import _backends
from ._arrays import as_index

VARIABLES = (
    "FASTSOFTMAX_BACKEND",
    "FASTSOFTMAX_ISA",
    "FASTSOFTMAX_CROSSOVERS",
    "FASTSOFTMAX_NUM_THREADS",
    "OMP_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


@functools.cache
def backends() -> tuple[str, ...]:
    """The names of the backends that can run here, best first.

    ``FASTSOFTMAX_ISA`` leaves one of the C backends; "c", wherever a backend is named, is the first of them.

    Examples
    --------
    >>> import fastsoftmax
    >>> "numpy" in fastsoftmax.backends()
    True
    """
    names = _backends.available()
    isa = os.environ.get("FASTSOFTMAX_ISA")
    if not isa:
        return names
    if isa not in _backends.ISAS:
        raise ValueError(f"FASTSOFTMAX_ISA={isa}: unknown; there are {', '.join(_backends.ISAS)}")
    if f"c-{isa}" not in names:
        raise ValueError(f"FASTSOFTMAX_ISA={isa}: {_why_not('c-' + isa)}")
    return tuple(name for name in names if name == f"c-{isa}" or not name.startswith("c-"))


def resolve(name: str, origin: str = "backend") -> str:
    """The full name of a backend that can run here, or a ValueError that says which can, or why this one cannot."""
    names = backends()
    if name in names:
        return name
    best = next((full for full in names if full.partition("-")[0] == name), None)
    if best is not None:
        return best
    if name in _backends.KINDS or name in (f"c-{isa}" for isa in _backends.ISAS):
        raise ValueError(f"{origin}: {name!r} cannot run here: {_why_not(name)}; there are {', '.join(names)}")
    raise ValueError(f"{origin}: {name!r} is unknown; there are {', '.join(names)}")


@functools.cache
def default_backend() -> str | None:
    """What FASTSOFTMAX_BACKEND asks for."""
    name = os.environ.get("FASTSOFTMAX_BACKEND")
    return resolve(name, "FASTSOFTMAX_BACKEND") if name else None


def _why_not(name: str) -> str:
    if name == "numba":
        from ._backends import numba

        return str(numba.obstacle())
    built = c_isas()
    if not built:
        return "the C part is not built (pure Python install)"
    if name.removeprefix("c-") not in built:
        return f"it is not in this build, which has {', '.join(built)}"
    if name in _backends.available():
        return f"FASTSOFTMAX_ISA={os.environ['FASTSOFTMAX_ISA']} excludes it"
    return "this CPU lacks it"


# Threads


def _threads_in(variable: str) -> int | None:
    """The number of threads that a variable of the environment asks for, if it is one."""
    text = os.environ.get(variable, "").partition(",")[0].strip()  # OMP: one number per level of nesting
    digits = text.lstrip("0")
    if digits.isascii() and digits.isdigit() and len(digits) < 10:
        return int(digits)
    if text:
        said = os.environ[variable]
        shown = repr(said) if len(said) < 80 else f"{said[:40]!r}..."
        warnings.warn(f"{variable}={shown} is not a positive number of threads; ignored", stacklevel=4)
    return None


def _environment_threads() -> int | None:
    return _threads_in("FASTSOFTMAX_NUM_THREADS") or _threads_in("OMP_NUM_THREADS")


@functools.cache
def most_numba_threads() -> int:
    """How many threads Numba may use, whatever is allowed otherwise: as in Numba itself."""
    return _threads_in("NUMBA_NUM_THREADS") or sys.maxsize


def _cgroups() -> Iterator[tuple[Path, tuple[str, ...]]]:
    """The cgroups that this process is in, up to the roots, and the files that limit the CPU there."""
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:
        lines = []
    for line in (*lines, "0::/", "0:cpu:/"):  # in a container the roots may be its own, under another name
        controllers, _, path = line.partition(":")[2].partition(":")
        own = Path(path.lstrip("/"))
        for folder in (own, *own.parents):
            if controllers == "":
                yield CGROUP / folder, ("cpu.max",)
            elif "cpu" in controllers.split(","):
                yield CGROUP / "cpu" / folder, ("cpu.cfs_quota_us", "cpu.cfs_period_us")


def _cgroup_quota() -> float:
    """How many CPUs' time this process may use (cgroup v2 and v1); infinite where nothing is said."""
    least = math.inf
    for folder, files in _cgroups():
        try:
            quota, period = " ".join((folder / file).read_text() for file in files).split()
            if float(quota) > 0:
                least = min(least, float(quota) / float(period))
        except (OSError, ValueError, ZeroDivisionError):  # absent, or "max"
            continue
    return least


def _usable_cpus() -> int:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cpus, _cgroup_quota())))


_lock = threading.Lock()
_threads = 0  # 0: not asked for yet


def get_num_threads() -> int:
    """How many threads a call may use at most, the caller's included.

    At first ``FASTSOFTMAX_NUM_THREADS``, else ``OMP_NUM_THREADS``, else the CPUs that affinity and cgroup allow.
    """
    global _threads
    if not _threads:
        with _lock:
            _threads = _threads or _environment_threads() or _usable_cpus()
    return _threads


def set_num_threads(n: int) -> int:
    """Set how many threads a call may use, for the whole process, and return what it was.

    Examples
    --------
    >>> import fastsoftmax
    >>> old = fastsoftmax.set_num_threads(1)
    >>> fastsoftmax.set_num_threads(old)
    1
    """
    global _threads
    new = as_index(n, "n: an integer")
    if new < 1:
        raise ValueError(f"n: at least one thread expected, not {n}")
    old = get_num_threads()
    _threads = new
    return old


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """A context in which calls use at most n threads; process-wide, as `set_num_threads` is.

    Examples
    --------
    >>> import fastsoftmax
    >>> with fastsoftmax.threads(1):
    ...     fastsoftmax.get_num_threads()
    1
    """
    old = set_num_threads(n)
    try:
        yield
    finally:
        set_num_threads(old)


def register_with_threadpoolctl() -> None:
    """Let `threadpoolctl.threadpool_limits` limit fastsoftmax too, and `threadpoolctl.threadpool_info` list it.

    Needs the C part: threadpoolctl finds libraries by their files. A second call does nothing.

    Examples
    --------
    >>> import fastsoftmax, threadpoolctl  # doctest: +SKIP
    >>> fastsoftmax.register_with_threadpoolctl()  # doctest: +SKIP
    >>> with threadpoolctl.threadpool_limits(1):  # doctest: +SKIP
    ...     fastsoftmax.get_num_threads()
    1
    """
    if not c_isas():  # which also loads the extension, if there is one
        warnings.warn("threadpoolctl cannot see fastsoftmax without its C part (pure Python install)", stacklevel=2)
        return
    _register()


@functools.cache
def _register() -> None:
    import threadpoolctl

    class Controller(threadpoolctl.LibController):  # type: ignore[misc]
        user_api = internal_api = "fastsoftmax"
        filename_prefixes = ("_fastsoftmax_c",)

        def get_num_threads(self) -> int:
            return get_num_threads()

        def set_num_threads(self, num_threads: int) -> None:
            set_num_threads(num_threads)

        def get_version(self) -> str:
            from . import __version__

            return __version__

    threadpoolctl.register(Controller)


# Report


def c_isas() -> tuple[str, ...]:
    """The ISAs that the C part was built for; none without it."""
    from ._backends import c

    return c.built()


def _numba_version() -> str:
    try:
        return importlib.metadata.version("numba")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _report() -> dict[str, dict[str, Any]]:
    from . import __version__

    built, names = c_isas(), backends()
    return {
        "fastsoftmax": {"version": __version__, "path": str(Path(__file__).parent)},
        "python": {"version": platform.python_version(), "numpy": np.__version__, "numba": _numba_version()},
        "machine": {"system": sys.platform, "processor": platform.machine(), "cpus": _usable_cpus()},
        "c": {
            "extension": "present" if built else "not built (pure Python install)",
            "isas built": built,
            "isas that run here": tuple(n.removeprefix("c-") for n in _backends.available() if n.startswith("c-")),
        },
        "backends": {"available": names, "selected": default_backend() or names[0], "threads": get_num_threads()},
        "environment": {variable: os.environ[variable] for variable in VARIABLES if variable in os.environ},
    }


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, dict[str, Any]]: ...
def show_config(mode: str = "stdout") -> dict[str, dict[str, Any]] | None:
    """Print what is installed, what runs here and what the environment asks for; return it with mode="dicts"."""
    if mode not in ("stdout", "dicts"):
        raise ValueError(f"mode: 'stdout' or 'dicts' expected, not {mode!r}")
    report = _report()
    if mode == "dicts":
        return report
    for title, entries in report.items():
        print(f"{title}:")
        for key, value in entries.items():
            print(f"  {key}: {', '.join(value) or 'none' if isinstance(value, tuple) else value}")
    return None
