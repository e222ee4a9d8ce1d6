"""The backends: who they are, what they promise, and a lazy loader. Nothing heavy is imported before it is chosen."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Direct = Callable[..., Any]

#: Row maps give an array like x, row reductions one number a row, element maps do not know rows at all.
ROW_MAPS = ("softmax", "log_softmax", "logcumsumexp")
ROW_REDUCTIONS = ("logsumexp", "logmeanexp")
ELEMENT_MAPS = ("sigmoid", "softplus")
OPS = ROW_MAPS + ROW_REDUCTIONS + ELEMENT_MAPS

#: Of rows that have a target (see Modifiers): the log-probability of it, and the gradient of a loss made of that.
LOG_PROB, LOSS_GRAD = "log_prob", "loss_grad"
VJP = "_vjp"  # ends the names of gradients
ONE_A_ROW = (*ROW_REDUCTIONS, LOG_PROB)

ISAS = ("avx512", "avx2", "neon", "scalar")
KINDS = ("c", "numba", "numpy")  # best first; each is a module of this package
TAKE_HALVES = ("c",)  # kinds that compute from and to float16 and bfloat16; the others are given float32


class Modifiers(NamedTuple):
    """What is done to rows before their operation, in this order, each step rounded once (half types: in float32).

    Arrays are views (outer, n, inner) with any strides that are whole elements; a length is 1 where all have the same.
    """

    temperature: Array | None = None  # n = 1; as work_dtype(x.dtype), above 0: x is divided by it
    softcap: float = 0.0  # above 0: softcap * tanh(x / softcap)
    bias: Array | None = None  # as x or as work_dtype(x.dtype): is added
    where: Array | None = None  # bool: elsewhere x is -inf, whatever it was
    sink: Array | None = None  # n = 1; as work_dtype(x.dtype): one more element of the row, without a result
    empty: float | None = None  # what a map makes of a row that is -inf throughout; None: NaN
    lse: Array | None = None  # n = 1; as work_dtype(x.dtype): where logsumexp of the row is put, too
    # What the ops LOG_PROB and LOSS_GRAD take, all with n = 1; the last three as work_dtype(x.dtype):
    target: Array | None = None  # int64: the element of the row that is meant
    ignored: int = -1  # rows of this target have the log-probability and the gradient 0
    scale: Array | None = None  # the gradient is that of -scale log_prob + lse_scale lse^2 / 2; None: 1
    lse_scale: float = 0.0
    log_prob: Array | None = None  # where log-probabilities are put, too


def work_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Half precision is computed in float32 and rounded once; everything else as it is."""
    return np.dtype(np.float32) if dtype.itemsize == 2 else dtype


class Backend(Protocol):
    """One way to run an operation over rows.

    x is (outer, n, inner), none of them zero; a row is the n elements with one outer and one inner index. Both arrays
    are aligned, of one native dtype (float32 or float64; some kinds TAKE_HALVES, "numpy" takes longdouble), and are
    either C-contiguous of any shape, or 3-D views with any strides that are whole elements (y of a reduction: 2-D,
    outer and inner). They are the same memory element for element, or apart. Nothing but MemoryError is raised.
    Modifiers come with 3-D views, and for softmax, log_softmax, logsumexp, logmeanexp, LOG_PROB and LOSS_GRAD only.

    `vjp` takes g, the gradient of y, to that of the input, dx, for op softmax and log_softmax. All three are 3-D views
    (outer, n, inner) of one dtype with strides that are whole elements, those of g may be 0; dx may be g or y.

    A backend may also have `direct(op, alone_below, threads)`, which makes a function that does a whole call, without
    the overhead of any layer above. It takes x, axis and out as the caller gave them, and if the operation takes
    modifiers, all or none of where, temperature, bias and softcap. If all is simple it gives the result, else None,
    having done nothing. From alone_below(dtype) elements on it asks for how many threads, threads(elements, dtype).
    """

    name: str

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
    ) -> None: ...

    def vjp(self, op: str, g: Array, y: Array, dx: Array, outer: int, n: int, inner: int, threads: int) -> None: ...


class BackendModule(Protocol):
    """What the module of a kind of backend offers."""

    def available(self) -> tuple[str, ...]: ...  # the names that can run here, best first

    def load(self, name: str) -> Backend: ...  # only names that are available


def module(kind: str) -> BackendModule:
    return cast(BackendModule, importlib.import_module(f"{__name__}.{kind}"))


@functools.cache
def available() -> tuple[str, ...]:
    """The names of all backends that can run on this machine, best first."""
    return tuple(name for kind in KINDS for name in module(kind).available())


@functools.cache
def load(name: str) -> Backend:
    """The backend of that name, one of `available()`."""
    return module(name.partition("-")[0]).load(name)
