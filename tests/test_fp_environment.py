"""The floating-point environment belongs to the caller: control bits, rounding mode and flags (TRUST.md G8)."""

import ctypes
import platform

import numpy as np
import pytest
import reference as ref

import fastsoftmax as fsm

pytestmark = pytest.mark.usefixtures("split_early")

X86 = platform.machine() == "x86_64"
libm = ctypes.CDLL("libm.so.6")
FLAGS = {"invalid": 0x01, "divide": 0x04, "overflow": 0x08} if X86 else {"invalid": 1, "divide": 2, "overflow": 4}
ROUNDING = (
    {"down": 0x400, "up": 0x800, "to zero": 0xC00} if X86 else {"up": 0x400000, "down": 0x800000, "to zero": 0xC00000}
)
ALL_FLAGS = sum(FLAGS.values())

CALLS = {
    "softmax": lambda x, b: fsm.softmax(x, backend=b),
    "log_softmax": lambda x, b: fsm.log_softmax(x, backend=b),
    "logsumexp": lambda x, b: fsm.logsumexp(x, axis=-1, backend=b),
    "logmeanexp": lambda x, b: fsm.logmeanexp(x, axis=-1, backend=b),
    "logcumsumexp": lambda x, b: fsm.logcumsumexp(x, backend=b),
    "sigmoid": lambda x, b: fsm.sigmoid(x, backend=b),
    "softplus": lambda x, b: fsm.softplus(x, backend=b),
}


def finite_rows(dtype):
    top, tiny = np.finfo(dtype).max, np.finfo(dtype).tiny
    rng = np.random.default_rng(0)
    yield rng.normal(0, 5, (3, 1000)).astype(dtype)
    yield rng.normal(0, 5, (5, 7)).astype(dtype)
    yield np.resize(np.array([top, -top, 0, tiny / 8, -tiny / 8], dtype), (2, 333))
    yield np.resize(np.array([0, -87.5, -103.9, -744, -800, -1e4], dtype), (2, 333))
    yield np.resize(np.array([1e4, 700, 88.8, 710], dtype), (2, 40))
    yield np.full((1, 20_000), -top, dtype)


@pytest.mark.parametrize("name", CALLS)
def test_no_flag_is_raised_for_finite_input(name, backend, dtype):
    with fsm.threads(1):
        for x in finite_rows(dtype):
            if name == "log_softmax" and x.max() == -x.min():
                continue  # the true value is beyond the largest number: overflow is what IEEE asks for
            CALLS[name](x, backend)
            libm.feclearexcept(ALL_FLAGS)
            CALLS[name](x, backend)
            raised = libm.fetestexcept(ALL_FLAGS)
            assert not [flag for flag, bit in FLAGS.items() if raised & bit], x[0, :5]


def test_a_signalling_nan_is_no_reason_to_warn(backend):
    x = np.array([[0x7FA00000, 0, 0x3F800000]], np.uint32).view(np.float32)
    with np.errstate(all="raise"):
        for call in CALLS.values():
            assert np.isnan(call(x, backend)).any()
        for weight in (None, [1.0, 2.0, 3.0]):
            assert np.isnan(fsm.cross_entropy(x, [0], weight=weight, backend=backend))
            assert np.isnan(fsm.nll_loss(x, [0], weight=weight))


class Environment(ctypes.Structure):
    """fenv_t of x86-64 glibc: 28 bytes of x87, then MXCSR."""

    _fields_ = (("x87", ctypes.c_uint8 * 28), ("mxcsr", ctypes.c_uint32))


def control_bits():
    env = Environment()
    libm.fegetenv(ctypes.byref(env))
    return bytes(env.x87[:2]), env.mxcsr & ~0x3F


@pytest.fixture
def restored():
    before = Environment()
    libm.fegetenv(ctypes.byref(before))
    yield before
    libm.fesetenv(ctypes.byref(before))


@pytest.mark.skipif(not X86, reason="reads MXCSR: needs an x86-64 machine")
@pytest.mark.parametrize("setting", [0, 0x8000, 0x0040, 0x8040, 0x2000, 0x6000])
def test_control_bits_are_the_callers_after_a_call(setting, backend, restored):
    """FTZ, DAZ and rounding as the caller set them stay as they are; with the default ones nothing is flushed."""
    x = np.random.default_rng(0).normal(0, 3, (300, 1500)).astype("f4")
    fsm.softmax(x, backend=backend)
    changed = Environment.from_buffer_copy(restored)
    changed.mxcsr |= setting
    libm.fesetenv(ctypes.byref(changed))
    before = control_bits()
    fsm.softmax(x, backend=backend)
    fsm.logsumexp(x, backend=backend)
    after = control_bits()
    libm.fesetenv(ctypes.byref(restored))
    assert after == before
    assert fsm.softmax(np.array([0, -87.5], "f4"), backend=backend)[1] == np.float32(np.exp(-87.5))


def test_subnormals_are_kept_on_every_thread(backend):
    x = np.zeros((64, 16_384), "f4")
    x[:, 1:] = -100
    with fsm.threads(2):
        p = fsm.softmax(x, backend=backend)
    assert (p[:, 1:] > 0).all()
    assert np.unique(p[:, 1:]).size == 1


@pytest.mark.skipif(not X86, reason="sets MXCSR: needs an x86-64 machine")
def test_helpers_compute_as_their_caller_does(fma_backend, run_ok):
    """Threads that a caller that flushes subnormals has started serve others, that do not, and the reverse."""
    code = f"""if True:
        import ctypes
        import numpy as np
        import fastsoftmax as fsm
        from test_fp_environment import Environment, libm
        x = np.zeros((64, 65_536), "f4")
        x[:, 1:] = -100
        flushed, kept = Environment(), Environment()
        libm.fegetenv(ctypes.byref(kept))
        libm.fegetenv(ctypes.byref(flushed))
        flushed.mxcsr |= 0x8000
        with fsm.threads(2):
            for environment, values in [(flushed, {{0.0, 1.0}}), (kept, {{float(np.float32(3.8e-44)), 1.0}})] * 3:
                libm.fesetenv(ctypes.byref(environment))
                p = fsm.softmax(x, backend={fma_backend!r})
                libm.fesetenv(ctypes.byref(kept))
                assert set(p.ravel().tolist()) == values
    """
    run_ok(code)


@pytest.mark.parametrize("mode", ROUNDING)
@pytest.mark.parametrize("name", CALLS)
def test_other_rounding_modes_cost_digits_not_sense(name, mode, backend, dtype, restored):
    x = np.random.default_rng(0).normal(0, 8, (20, 700)).astype(dtype)
    exact = getattr(ref, name)(x)
    floor = np.abs(x).max() if name.startswith("log") else 0
    CALLS[name](x, backend)
    with fsm.threads(1):
        libm.fesetround(ROUNDING[mode])
        got = CALLS[name](x, backend)
        libm.fesetenv(ctypes.byref(restored))
    assert (abs(got - exact) < 2e-5 * np.maximum(abs(exact), floor)).all()
