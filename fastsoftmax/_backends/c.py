"""The C backends: one for each instruction set that the extension has and this CPU can run."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from . import LOG_PROB, LOSS_GRAD, ROW_REDUCTIONS, VJP, Array, Backend, Direct, Modifiers, work_dtype

TINY = 512  # elements below which a direct function keeps the GIL

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
        LOG_PROB: lib.FSM_LOG_PROB,
        LOSS_GRAD: lib.FSM_LOSS_GRAD,
    }
    _TYPES = {"f": lib.FSM_F32, "d": lib.FSM_F64, "e": lib.FSM_F16, "E": lib.FSM_BF16}
    _run, _from_buffer = lib.fsm_run, ffi.from_buffer  # looked up once: 200 ns a call


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
        dtype = x.dtype
        number = _TYPES[dtype.char]
        if number == lib.FSM_BF16:  # NumPy exports no buffer of another's dtype
            _learn(dtype)
            x, y = x.view(np.uint16), y.view(np.uint16)
        if modifiers is None and x.flags.c_contiguous and y.flags.c_contiguous:
            from_x, to_y, strides = x, y, ffi.NULL
        else:  # a view of the first element is contiguous; half the time of x.ctypes.data
            from_x, to_y = x[_FIRST], y[_FIRST[: y.ndim]]
            y_strides = y.strides if y.ndim == 3 else (y.strides[0], 0, y.strides[1])
            strides = ffi.new("ptrdiff_t[6]", [s // x.itemsize for s in x.strides + y_strides])
        data_x, data_y = _from_buffer(from_x), _from_buffer(to_y)
        if modifiers is None:
            status = _run(self._isa, _OPS[op], number, data_x, data_y, outer, n, inner, strides, threads)
        else:
            how, _arrays = _struct_of(modifiers, dtype)
            status = lib.fsm_run_modified(
                self._isa, _OPS[op], number, data_x, data_y, outer, n, inner, strides, threads, how
            )
        if status:  # FSM_NO_MEMORY
            raise MemoryError(f"{op}: no scratch memory for rows of {n} elements")

    def vjp(self, op: str, g: Array, y: Array, dx: Array, outer: int, n: int, inner: int, threads: int) -> None:
        arrays = [g, y, dx]
        number, strides = _TYPES[y.dtype.char], [s // y.itemsize for a in arrays for s in a.strides]
        if number == lib.FSM_BF16:
            arrays = [a.view(np.uint16) for a in arrays]
        data = [_from_buffer(a[_FIRST]) for a in arrays]
        steps = ffi.new("ptrdiff_t[9]", strides)
        if lib.fsm_vjp(self._isa, _OPS[op], number, *data, outer, n, inner, steps, threads):  # FSM_NO_MEMORY
            raise MemoryError(f"{op}_vjp: no scratch memory for rows of {n} elements")

    def direct(
        self, name: str, alone_below: Callable[[np.dtype[Any]], int], threads: Callable[[int, np.dtype[Any]], int]
    ) -> Direct | None:
        """A function as `_dispatch.direct` has it by that name, for what is simple; None where it cannot be made."""
        if not layout_as_expected():
            return None
        how = ffi.new("struct direct *")
        op = name.removesuffix(VJP)
        how.isa, how.op, how.reduces = self._isa, _OPS[op], op in ROW_REDUCTIONS
        how.kind = lib.DIRECT_LOSS if op == LOG_PROB else lib.DIRECT_VJP if op != name else lib.DIRECT_CALL
        how.tiny_below, how.threads = TINY, id(threads)
        how.alone_below = [alone_below(dtype) for dtype in (*_DTYPES, _FLOAT16)]  # bfloat16, known or not, as float16
        for dtype in (*_DTYPES, *_learnt):
            _add(how, dtype)
        how.ndarray, how.numpy = id(np.ndarray), id(_numpy_functions())
        how.boolean, how.integer = id(np.dtype(np.bool_)), id(np.dtype(np.int64))
        made: list[Direct] = []
        if lib.direct_function(how, id(made)) != 0:
            return None
        _hows.append(how)
        _kept.append(threads)
        return made[0]


_FIRST = (slice(0, 1),) * 3


def _struct_of(modifiers: Modifiers, dtype: np.dtype[Any]) -> tuple[Any, list[Any]]:
    """The same in C for x of that dtype, and what must live as long as that."""
    how, kept = ffi.new("fsm_modifiers *"), []

    def point(name: str, array: Array) -> None:
        kept.append(_from_buffer(array.view(np.uint16) if _TYPES.get(array.dtype.char) == lib.FSM_BF16 else array))
        setattr(how, name, ffi.cast("void *", kept[-1]))

    for name, array in zip(modifiers._fields, modifiers, strict=True):
        if isinstance(array, np.ndarray):
            point(name, array[_FIRST])
            steps = [
                0 if n == 1 else step // array.itemsize for n, step in zip(array.shape, array.strides, strict=True)
            ]
            setattr(how, f"{name}_strides", steps if name in ("bias", "where") else steps[::2])
    if modifiers.bias is not None:
        how.bias_type = _TYPES[modifiers.bias.dtype.char]
    if modifiers.empty is not None:
        point("empty", np.array(modifiers.empty, work_dtype(dtype)))
    how.softcap, how.ignored, how.lse_scale = modifiers.softcap, modifiers.ignored, modifiers.lse_scale
    return how, kept


_FLOAT16 = np.dtype(np.float16)
_DTYPES: tuple[np.dtype[Any], ...] = (np.dtype(np.float32), np.dtype(np.float64), _FLOAT16)  # which are always there
_hows: list[Any] = []  # of all direct functions
_kept: list[Any] = []  # what they point to
_learnt: list[np.dtype[Any]] = []  # bfloat16, once it is known


def _add(how: Any, dtype: np.dtype[Any]) -> None:
    """Let a direct function take arrays of that dtype, too."""
    number = _TYPES[dtype.char]
    how.scalars[number] = id(dtype.type)
    how.dtypes[number] = id(dtype)


def _learn(dtype: np.dtype[Any]) -> None:
    """From its first array on direct functions take bfloat16: it is not NumPy's, and who has none need not have it."""
    if not _learnt and _hows and _scalar_as_expected(dtype.type):
        _learnt.append(dtype)
        for how in _hows:
            _add(how, dtype)


def _numpy_functions() -> Any:
    """The capsule from which every extension has NumPy's functions (import_array in __multiarray_api.h)."""
    core = "numpy._core" if hasattr(np, "_core") else "numpy.core"
    return importlib.import_module(f"{core}._multiarray_umath")._ARRAY_API


@functools.cache
def layout_as_expected() -> bool:
    """Whether arrays and scalars are in memory what binding/prelude.h says: compared with what Python says of some."""
    if sys.implementation.name != "cpython" or np.ndarray.__basicsize__ < ffi.sizeof("struct array"):
        return False
    for dtype in _DTYPES:
        whole = np.zeros((2, 3, 5), dtype)
        for x in (whole, whole[:, ::-1, ::2], whole[0, 0], whole[0, 0, 0, ...]):
            array = ffi.cast("struct array *", id(x))
            pointers = [int(ffi.cast("uintptr_t", p)) for p in (array.data, array.dtype)]
            if [*pointers, array.ndim, array.flags] != [x.ctypes.data, id(dtype), x.ndim, x.flags.num]:
                return False  # and only if they are right follow the others
            steps = [(array.shape[i], array.strides[i]) for i in range(x.ndim)]
            if steps != list(zip(x.shape, x.strides, strict=True)):
                return False
        if not _scalar_as_expected(dtype.type):
            return False
    return True


def _scalar_as_expected(scalar: Any) -> bool:
    """The same of scalars; each must be an object of its own."""
    one, other = scalar(1.5), scalar(1.5)
    read = ffi.cast(f"struct scalar{8 * one.itemsize} *", id(one)).value
    wanted = np.asarray(one).view(np.uint16) if one.itemsize == 2 else 1.5
    return bool(read == wanted) and one is not other and scalar(0) is not scalar(0)
