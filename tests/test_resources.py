"""Memory, threads and files: none are lost, running out of them is survived, and sizes beyond 32 bits are right."""

import mmap
import sys

import numpy as np
import pytest
from all_calls import SHAPES, calls, failing_calls
from conftest import BACKENDS
from layouts import assert_same_bits

import fastsoftmax as fsm

ALL_BACKENDS = pytest.mark.parametrize("backend", [*BACKENDS, None])  # None: direct calls

# ---- what calls keep ----


def expect(error, call):
    try:
        call()
    except error:
        return
    raise AssertionError(f"no {error.__name__}")


LEAKS = """
import gc, itertools, os
from all_calls import SHAPES, calls, failing_calls
from test_resources import expect
import fastsoftmax as f
f.set_num_threads(2)
def state():
    gc.collect()
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["VmRSS"].split()[0]), int(status["Threads"]), len(os.listdir("/proc/self/fd"))
good = [call for shape in (SHAPES["few"], SHAPES["rows"]) for call in calls(shape, "f4", {backend!r}).values()]
bad = [lambda call=call, error=error: expect(error, call) for call, error in failing_calls({backend!r}).values()]
work = itertools.cycle(good + bad)
for _ in range(3 * len(good + bad)):
    next(work)()
before = state()
for _ in range(1500):
    next(work)()
after = state()
print(*(b - a for a, b in zip(before, after)))
"""


@ALL_BACKENDS
def test_nothing_grows_in_1500_calls(backend, run_ok):
    """Failing ones among them."""
    kilobytes, threads, files = map(int, run_ok(LEAKS.format(backend=backend)).split())
    assert kilobytes < 4096
    assert (threads, files) == (0, 0)


def counts(objects):
    return [sys.getrefcount(one) for one in objects]


def arguments(call):
    """What a function of all_calls was made with."""
    found = [cell.cell_contents for cell in call.__closure__]
    return found + [value for one in found if isinstance(one, dict) for value in one.values()]


# Not the dtype of float64: np.empty(3) of NumPy 2.4 itself never gives its reference back.
SINGLETONS = [
    None,
    True,
    False,
    0,
    1,
    -1,
    (),
    "",
    np.dtype("f4"),
    np.dtype(bool),
    np.dtype(int),
    np.float32,
    np.float64,
]
TIMES = 20


def lost_references(call, given):
    """Of what it was given, one at least; of what everybody uses, so many as there were calls."""
    before, common = counts(given), counts(SINGLETONS)
    for _ in range(TIMES):
        call()
    return counts(given) != before or max(b - a for a, b in zip(common, counts(SINGLETONS), strict=True)) > TIMES / 2


@ALL_BACKENDS
def test_every_reference_is_given_back(backend):
    """On one thread: helpers of Numba let go a moment later."""
    shapes = SHAPES["few"], SHAPES["rows"]
    every = {f"{name} {shape}": call for shape in shapes for name, call in calls(shape, "f4", backend).items()}
    for name, (call, error) in failing_calls(backend).items():
        every[f"bad {name}"] = lambda call=call, error=error: expect(error, call)
    with fsm.threads(1):
        for name, call in every.items():
            given = arguments(call) if call.__closure__ else arguments(call.__defaults__[0])
            given = [one for one in given if not isinstance(one, (type(None), str, int, float))]
            call()
            # what is lost is lost each time; caches grow once
            assert not all(lost_references(call, given) for _ in range(3)), name


@ALL_BACKENDS
def test_a_result_belongs_to_the_caller_alone(backend):
    """With one thread: a helper of Numba's that came too late may hold its work for a moment."""
    for name, call in calls(SHAPES["rows"], "f4", backend).items():
        with fsm.threads(1):
            result = call()
        for part in result if isinstance(result, tuple) else (result,):
            base = part.base if isinstance(part, np.ndarray) else None
            assert base is None or sys.getrefcount(base) <= 3, name
        part = base = None
        assert sys.getrefcount(result) == 2, name


# ---- running out ----

NO_MEMORY = """
import resource, sys, numpy as np, fastsoftmax as f
from layouts import bits
b, n = {backend!r}, 500_000
f.set_num_threads(2)
wide = np.arange(4 * n, dtype="f4").reshape(2, 2 * n) % 7
x, big, half, ids = wide[:, ::2], wide[:, :n].copy(), wide[:, :n].astype("f2"), np.zeros(2, int)
out, out_half = np.full((2, n), 7, "f4"), np.full((2, n), 7, "f2")
work = {{
    "result": lambda: f.softmax(big, backend=b),
    "strided": lambda: f.softmax(x, out=out, backend=b),
    "cumulated": lambda: f.logcumsumexp(half, out=out_half, backend=b),
    "half": lambda: f.log_softmax(half, out=out_half, backend=b),
    "modified": lambda: f.softmax(x, temperature=2.0, bias=x, out=out, backend=b),
    "number": lambda: f.logsumexp(x, axis=1, backend=b),
    "integers": lambda: f.logsumexp(np.broadcast_to(np.int8(1), (2, n)), backend=b),
    "loss": lambda: f.cross_entropy(big, ids, return_grad=True, backend=b),
    "gradient": lambda: f.cross_entropy(x, ids, grad_out=out, backend=b),
    "vjp": lambda: f.softmax_vjp(x, big, out=out, backend=b),
    "log_probs": lambda: f.token_logprobs(x, ids, backend=b),
    "elements": lambda: f.sigmoid(half[:, ::-1], out=out_half, backend=b),
}}
right = {{name: bits(call()[0] if name in ("loss", "gradient") else call()) for name, call in work.items()}}
given = [bits(a) for a in (wide, big, half, ids)]
hard, failed = resource.getrlimit(resource.RLIMIT_AS)[1], set()
def in_use():
    return 1024 * int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSize")))
for spare in (1 << 17, 3 << 19):
    for name, call in work.items():
        out[...], out_half[...] = 7, 7
        resource.setrlimit(resource.RLIMIT_AS, (in_use() + spare, hard))
        done = False
        try:
            call()
            done = True
        except MemoryError:
            failed.add(name)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        assert done or not {whole} or ((out == 7).all() and (out_half == 7).all()), name
    assert [bits(a) for a in (wide, big, half, ids)] == given
for name, call in work.items():
    assert bits(call()[0] if name in ("loss", "gradient") else call()) == right[name], name
print(*sorted(failed))
"""


@ALL_BACKENDS
def test_running_out_of_memory_is_a_memory_error(backend, run_ok):
    """Inputs stay as they were, in C results too, and all is right again with memory. (In Numba and NumPy memory may
    run out between two tiles.)"""
    if backend is None and not BACKENDS[0].startswith("c-"):
        pytest.skip("the C part is missing: there are no direct calls")
    whole = backend is None or backend.startswith("c-")
    failed = run_ok(NO_MEMORY.format(backend=backend, whole=whole), MALLOC_MMAP_THRESHOLD_="65536").split()
    assert {"result", "loss", "integers"} <= set(failed)
    if whole:
        assert {"strided", "modified", "vjp"} & set(failed)


NO_THREADS = """
import gc, os, resource, sys, threading, weakref, numpy as np, fastsoftmax as f
rng = np.random.default_rng(0)
x = rng.normal(size=(100, 5000)).astype("f4")
def work(threads):
    with f.threads(threads):
        return [g(x, backend={backend!r}).tobytes() for g in (f.softmax, f.logsumexp, f.logcumsumexp)]
want = work(1)
f.explain(x)  # reads the table of crossovers
if os.getuid() == 0:  # who is above limits
    os.setgid(65534); os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
try:
    threading.Thread(target=print).start()
    print("a thread was started all the same"); sys.exit()
except RuntimeError:
    pass
for _ in range(5):
    assert work(4) == want
y = x.copy()
gone = weakref.ref(y)
with f.threads(4):
    f.logcumsumexp(y, backend={backend!r})  # which has threads the earliest
del y
gc.collect()
print("right" if gone() is None else "kept")
"""


def test_without_a_thread_to_be_had(backend, run_ok):
    """The caller does it all; and what a thread was asked to do is not kept for one that never comes."""
    said = run_ok(NO_THREADS.format(backend=backend)).strip()
    if said.startswith("a thread"):
        pytest.skip("the system does not limit threads (RLIMIT_NPROC)")
    assert said == "right"


# ---- beyond 32 bits ----


@pytest.fixture(scope="module")
def space():
    """17 GiB of addresses; memory only where it is written."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    try:
        return np.frombuffer(mmap.mmap(-1, 17 << 30, flags=flags), np.uint8)
    except OSError as error:
        pytest.skip(f"17 GiB of addresses cannot be had: {error}")


FAR = {  # shape, strides in bytes, axis
    "rows apart": ((4, 300), ((1 << 32) + 64, 4), 1),
    "backwards": ((4, 300), (-(1 << 32) - 64, 4), 1),
    "elements apart": ((7, 3), ((1 << 31) + 4, 4), 0),
    "elements apart, backwards": ((7, 20), (-(1 << 31) - 4, 4), 0),
    "both": ((2, 5, 3), (1 << 33, (1 << 30) + 4, 4), 1),
}


@pytest.mark.parametrize("case", FAR)
@ALL_BACKENDS
def test_strides_of_more_than_31_bits(case, backend, space):
    shape, strides, axis = FAR[case]
    start = sum(-s * (n - 1) for s, n in zip(strides, shape, strict=True) if s < 0)
    x, near = np.ndarray(shape, "f4", space, start, strides), np.random.default_rng(0).normal(0, 3, shape).astype("f4")
    x[...] = near
    ids = np.zeros(shape[:axis] + shape[axis + 1 :], int)
    every = {
        "softmax": lambda x: fsm.softmax(x, axis, backend=backend),
        "log_softmax, modified": lambda x: fsm.log_softmax(x, axis, bias=x, where=near > -2, backend=backend),
        "logsumexp": lambda x: fsm.logsumexp(x, axis=axis, backend=backend),
        "logcumsumexp": lambda x: fsm.logcumsumexp(x, axis, backend=backend),
        "sigmoid": lambda x: fsm.sigmoid(x, backend=backend),
        "cross_entropy": lambda x: fsm.cross_entropy(x, ids, axis, return_grad=True, backend=backend)[1],
        "token_logprobs": lambda x: fsm.token_logprobs(x, ids, axis, backend=backend),
        "softmax_vjp": lambda x: fsm.softmax_vjp(x, x, axis, backend=backend),
    }
    for name, call in every.items():
        assert_same_bits(np.ascontiguousarray(call(x)), np.ascontiguousarray(call(near)), name)
    fsm.softmax(x, axis, out=x, backend=backend)
    assert_same_bits(x, fsm.softmax(near, axis, backend=backend), "in place")


HUGE = np.broadcast_to(np.float32(0), (1 << 30, 1 << 28))
TOO_LARGE = {
    "a result": (lambda b: fsm.softmax(HUGE, backend=b), MemoryError),
    "a result of wider numbers": (
        lambda b: fsm.softmax(np.broadcast_to(np.int8(1), (1 << 62,)), backend=b),
        ValueError,
    ),
    "weights": (
        lambda b: fsm.logsumexp(np.broadcast_to(0.0, (1 << 40, 1)), b=np.broadcast_to(1.0, (1 << 40,))),
        ValueError,
    ),
    "a divergence": (
        lambda b: fsm.kl_div(np.broadcast_to(0.0, (1 << 40, 1)), np.broadcast_to(1.0, (1 << 40,))),
        ValueError,
    ),
    "a mask": (
        lambda b: fsm.softmax(np.zeros((1, 3)), where=np.broadcast_to(True, (1 << 62, 3)), backend=b),
        ValueError,
    ),
    "a bias": (lambda b: fsm.softmax(np.zeros(3), bias=np.broadcast_to(0.0, (1 << 59, 3)), backend=b), ValueError),
    "a gradient": (
        lambda b: fsm.softmax_vjp(np.broadcast_to(0.0, (1 << 59, 3)), np.ones(3) / 3, backend=b),
        ValueError,
    ),
    "targets": (lambda b: fsm.cross_entropy(np.zeros((2, 3)), np.broadcast_to(0, (1 << 59,)), backend=b), ValueError),
}


@pytest.mark.parametrize("case", TOO_LARGE)
def test_sizes_that_do_not_fit_are_refused(case, backend):
    call, error = TOO_LARGE[case]
    with pytest.raises((error, MemoryError)) as caught:
        call(backend)
    assert str(caught.value)
