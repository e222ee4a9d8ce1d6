"""The libraries that are compared: one module each, imported when it is asked for.

A module has

- ``DISTRIBUTION``: the name that its version is known by;
- ``THREADED``: whether it can use more than one thread for any of this;
- ``DTYPES``: what it can compute in, of what is asked for;
- ``GIVEN``: what of ``given`` its jobs heed, in its own way or by steps before;
- ``setup(threads)``: makes the library use that many threads, before its first job;
- ``jobs(task)``: the variants in which it can do a task, none if it cannot. The fastest one counts.

It puts its jobs together before the clock starts: compiles, allocates, binds its input and output. All of them read the
same array where the library can read NumPy's memory.
"""

import importlib
import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

SINGLE, DOUBLE, HALVES = ("float32",), ("float64",), ("float16", "bfloat16")

OURS = "fastsoftmax"
PEERS = ("numpy", "scipy", "numexpr", "numba", "torch", "jax", "onnxruntime", "openvino", "litert", "ggml")


@dataclass(frozen=True)
class Task:
    """What to compute, on how many threads, and whether the result goes into an array that was made before."""

    op: str
    x: Array
    axis: int
    out: bool
    threads: int
    given: dict[
        str, Any
    ]  # at most one thing: what modifies rows, as an argument of fastsoftmax.softmax, or their target

    def empty(self) -> Array:
        """An array for the result."""
        shape = list(self.x.shape)
        if self.op in ("logsumexp", "cross_entropy"):
            del shape[self.axis]
        return np.empty(shape, self.x.dtype)


@dataclass(frozen=True)
class Job:
    """`call` does the task once; `result` gives what the last call came to."""

    call: Callable[[], object]
    result: Callable[[], Array]
    variant: str = ""


class Peer(Protocol):
    """What a module of this package looks like."""

    DISTRIBUTION: str
    THREADED: bool
    DTYPES: tuple[str, ...]
    GIVEN: tuple[str, ...]

    def setup(self, threads: int) -> None: ...

    def jobs(self, task: Task) -> Iterator[Job]: ...


def load(name: str, threads: int) -> Peer | None:
    """The library, set to a number of threads; None if it is not installed."""
    try:
        peer = cast(Peer, importlib.import_module(f"{__name__}.{name}"))
    except ImportError:
        return None
    peer.setup(threads)
    return peer


def version(name: str) -> str | None:
    """The installed version; None if there is none."""
    try:
        return importlib.metadata.version(importlib.import_module(f"{__name__}.{name}").DISTRIBUTION)
    except ImportError:
        return None
