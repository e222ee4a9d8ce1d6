"""What belongs to the process and its threads is as it was after any call: the floating-point environment, signals,
error numbers (TRUST.md G8). test_fp_environment.py has the numbers at the edges, this has every function."""

import ctypes
import re
import signal
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from all_calls import SHAPES, SOFTCAP, calls
from conftest import BACKENDS
from test_fp_environment import ALL_FLAGS, FLAGS, ROUNDING, X86, control_bits, libm, restored  # noqa: F401

import fastsoftmax as fsm

pytestmark = pytest.mark.usefixtures("split_early")

ALL_BACKENDS = pytest.mark.parametrize("backend", [*BACKENDS, None])  # None: direct calls
HAS_C = BACKENDS[0].startswith("c-")


def raised():
    flags = libm.fetestexcept(ALL_FLAGS)
    return [name for name, bit in FLAGS.items() if flags & bit]


def state_of_this_thread():
    control = control_bits() if X86 else libm.fegetround()
    return control, signal.pthread_sigmask(signal.SIG_BLOCK, []), np.geterr(), ctypes.get_errno()


def check_all(backend, dtype):
    for shape in SHAPES.values():
        for name, call in calls(shape, dtype, backend).items():
            with np.errstate(all="raise"):
                call()  # what is only done once may take its time, and its flags
                ctypes.set_errno(77)
                before = state_of_this_thread()
                libm.feclearexcept(ALL_FLAGS)
                call()
                flags = raised()
                assert not flags, f"{name} {shape}: {flags}"
                assert state_of_this_thread() == before, f"{name} {shape}"


@ALL_BACKENDS
def test_every_call_leaves_its_thread_as_it_was(backend, dtype):
    """Control bits, rounding mode, exception flags, signal mask, NumPy's error state; here and in another thread."""
    with fsm.threads(2):
        check_all(backend, dtype)
        with ThreadPoolExecutor(1) as other:
            other.submit(check_all, backend, dtype).result()


@pytest.mark.skipif(not HAS_C, reason="the C part is missing: there is no errno to keep")
def test_c_sets_no_errno():
    """cffi keeps an errno of its own around each call: what C leaves there would be seen."""
    from fastsoftmax._backends._fastsoftmax_c import ffi

    for backend in (name for name in BACKENDS if name.startswith("c-")):
        for shape in SHAPES.values():
            for name, call in calls(shape, "f4", backend).items():
                ffi.errno = 77
                with fsm.threads(2):
                    call()
                assert ffi.errno == 77, f"{backend} {name} {shape}"


@ALL_BACKENDS
def test_no_warning_for_special_numbers(backend, dtype):
    """Nor a FloatingPointError where the caller has NumPy raise them."""
    top, tiny = np.finfo(dtype).max, np.finfo(dtype).tiny
    special = np.array([np.nan, np.inf, -np.inf, top, -top, tiny / 8, 0.0, -tiny], dtype)
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        for shape in SHAPES.values():
            with np.errstate(all="ignore"):
                every = calls(shape, dtype, backend, special)
            for name, call in every.items():
                try:
                    call()
                except (FloatingPointError, Warning) as error:
                    raise AssertionError(f"{name} {shape}: {error!r}") from error


def as_arrays(result):
    parts = result if isinstance(result, tuple) else (result,)
    return [np.atleast_1d(part).astype(np.clongdouble if np.iscomplexobj(part) else np.longdouble) for part in parts]


def assert_close(got, right, most, floor, what):
    """Probabilities relative to themselves, all else to the largest."""
    for a, b in zip(as_arrays(got), as_arrays(right), strict=True):
        finite = np.isfinite(b)
        assert (a[~finite] == b[~finite]).all(), what
        a, b = a[finite], b[finite]
        scale = np.abs(b) if what.startswith(("softmax", "softmin")) and "vjp" not in what else np.abs(b).max()
        worst = (np.abs(a - b) / (most * scale + floor)).max()
        assert worst <= 1, f"{what}: {worst} of what is allowed"


@pytest.mark.parametrize("mode", ROUNDING)
@ALL_BACKENDS
def test_every_function_under_other_rounding_modes(mode, backend, restored):  # noqa: F811
    """They cost digits, not sense."""
    for shape in (SHAPES["few"], SHAPES["rows"]):
        for name, call in calls(shape, "f4", backend).items():
            right = call()
            libm.fesetround(ROUNDING[mode])
            got = call()
            libm.fesetenv(ctypes.byref(restored))
            half = name == "softmax, half"
            most = 2e-3 if half else 2e-5  # of eleven bits the last may differ
            if name == "softmax, modified":
                most *= SOFTCAP  # capped logits are so many times a tanh, and probabilities go as their difference
            floor = np.finfo(np.float16 if half else np.float32).smallest_subnormal
            assert_close(got, right, most, 2 * floor, f"{name} {shape}")


SIGNALS = """
import re, threading, signal
def signals(path="/proc/self/status"):
    return dict(re.findall(r"(Sig(?:Blk|Ign|Cgt)):\\s*(\\w+)", open(path).read()))
import numpy as np, ctypes, os
before = signals()
import fastsoftmax as f
assert signals() == before, "import"
from all_calls import SHAPES, SOFTCAP, calls
f.set_num_threads(2)
for backend in (*f.backends(), None):
    for call in calls((64, 20_000), "f4", backend).values():
        call()
    assert signals() == before, backend
"""


def test_signal_handlers_and_masks_are_as_they_were(run_ok):
    run_ok(SIGNALS)


@pytest.mark.skipif(not HAS_C, reason="the C part is missing, and so are its threads")
def test_the_threads_of_c_take_no_signals_but_their_own_faults(run_ok):
    code = """
import os, re, signal, numpy as np, fastsoftmax as f
before = set(os.listdir("/proc/self/task"))
f.set_num_threads(2); f.softmax(np.ones((100, 100_000), "f4"), backend="c")
(worker,) = set(os.listdir("/proc/self/task")) - before
print(re.search(r"SigBlk:\\s*(\\w+)", open(f"/proc/self/task/{worker}/status").read()).group(1))
"""
    blocked = int(run_ok(code), 16)
    faults = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGKILL, signal.SIGSTOP}
    for one in range(1, 32):
        assert bool(blocked >> (one - 1) & 1) == (one not in faults), signal.Signals(one)


# ---- the extension as a file ----


@pytest.fixture(scope="module")
def elf():
    """{section of `readelf -dlW`: lines} of the extension, and its symbols."""
    import shutil
    import subprocess

    if not HAS_C:
        pytest.skip("the C part is missing: there is no file")
    if shutil.which("readelf") is None:
        pytest.skip("no readelf here: apt-get install binutils")
    from fastsoftmax._backends import _fastsoftmax_c

    def read(*options):
        command = ["readelf", *options, _fastsoftmax_c.__file__]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    return {"dynamic": read("-dW"), "segments": read("-lW"), "symbols": read("-sW")}


def test_the_stack_is_not_executable(elf):
    (stack,) = [line for line in elf["segments"].splitlines() if "GNU_STACK" in line]
    assert re.search(r"\bRW\b", stack)
    assert "RWE" not in elf["segments"]


def test_the_code_is_not_relocated(elf):
    assert "TEXTREL" not in elf["dynamic"]


def test_libraries_are_looked_for_in_no_odd_place(elf):
    assert set(re.findall(r"R(?:UN)?PATH.*\[(.*)\]", elf["dynamic"])) <= {"$ORIGIN"}
    assert set(re.findall(r"NEEDED.*\[(.*?)\.so", elf["dynamic"])) <= {"libc", "libm", "libpthread", "ld-linux-x86-64"}


def test_nothing_sets_flush_to_zero_on_loading(elf):
    """gcc 12 links crtfastmath.o, which does, where -ffast-math is given to the linker."""
    assert "set_fast_math" not in elf["symbols"]
