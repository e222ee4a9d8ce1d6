"""The C backends: one for each instruction set that the extension has and this CPU can run."""

from __future__ import annotations

import functools
from typing import Any

from numpy.typing import NDArray

from . import Backend

try:
    from ._fastsoftmax_c import ffi, lib
except ImportError:  # a pure Python install
    lib = None
else:
    _OPS = {
        "softmax": lib.FSM_SOFTMAX,
        "log_softmax": lib.FSM_LOG_SOFTMAX,
        "logsumexp": lib.FSM_LOGSUMEXP,
        "logmeanexp": lib.FSM_LOGMEANEXP,
        "logcumsumexp": lib.FSM_LOGCUMSUMEXP,
        "sigmoid": lib.FSM_SIGMOID,
        "softplus": lib.FSM_SOFTPLUS,
    }
    _TYPES = {"f": lib.FSM_F32, "d": lib.FSM_F64}


def _names(function: Any) -> tuple[str, ...]:
    """What a C function gives for 0, 1, ... until NULL."""
    names: list[str] = []
    while (item := function(len(names))) != ffi.NULL:
        names.append(ffi.string(item if ffi.typeof(item).item.kind == "primitive" else lib.fsm_isa_name(item)).decode())
    return tuple(names)


@functools.cache
def built() -> tuple[str, ...]:
    """The instruction sets in this build, best first; none without the extension."""
    return _names(lib.fsm_isa_built) if lib else ()


@functools.cache
def available() -> tuple[str, ...]:
    return tuple(f"c-{isa}" for isa in _names(lib.fsm_isa_usable)) if lib else ()


def load(name: str) -> Backend:
    return _C(name, lib.fsm_isa_usable(available().index(name)))


class _C:
    def __init__(self, name: str, isa: Any) -> None:
        self.name = name
        self._isa = isa

    def run(self, op: str, x: NDArray[Any], y: NDArray[Any], outer: int, n: int, inner: int, threads: int) -> None:
        if x.flags.c_contiguous and y.flags.c_contiguous:
            from_x, to_y, strides = ffi.from_buffer(x), ffi.from_buffer(y), ffi.NULL
        else:
            from_x, to_y = ffi.cast("void *", x.ctypes.data), ffi.cast("void *", y.ctypes.data)
            y_strides = y.strides if y.ndim == 3 else (y.strides[0], 0, y.strides[1])
            strides = ffi.new("ptrdiff_t[6]", [s // x.itemsize for s in x.strides + y_strides])
        status = lib.fsm_run(self._isa, _OPS[op], _TYPES[x.dtype.char], from_x, to_y, outer, n, inner, strides, threads)
        if status != lib.FSM_OK:
            raise MemoryError(f"{op}: no scratch memory for rows of {n} elements")
