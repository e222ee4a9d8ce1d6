"""Threads: settings, many callers at once, forks, interrupts; results never depend on any of it."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from layouts import assert_same_bits

import fastsoftmax as fsm

SHAPES = [(1, 10), (64, 10), (7, 1000), (3, 20_000), (1, 300_000), (2000, 33)]


def jobs(backend):
    """Mixed work of all sizes, as functions without arguments."""
    for i, shape in enumerate(SHAPES):
        for dtype in ("f4", "f8"):
            x = np.random.default_rng(i).normal(0, 3, shape).astype(dtype)
            yield lambda x=x: fsm.softmax(x, backend=backend)
            yield lambda x=x: fsm.log_softmax(x, axis=0, backend=backend)
            yield lambda x=x: np.asarray(fsm.logsumexp(x, axis=1, backend=backend))
            yield lambda x=x: np.asarray(fsm.logsumexp(x, backend=backend))


def test_setting_returns_the_old_one():
    before = fsm.get_num_threads()
    try:
        assert fsm.set_num_threads(3) == before
        assert fsm.get_num_threads() == 3
        assert fsm.set_num_threads(np.int64(1)) == 3
        assert fsm.get_num_threads() == 1
    finally:
        fsm.set_num_threads(before)


def test_the_context_restores():
    before = fsm.get_num_threads()
    with fsm.threads(1):
        assert fsm.get_num_threads() == 1
        with fsm.threads(2):
            assert fsm.get_num_threads() == 2
        assert fsm.get_num_threads() == 1
    assert fsm.get_num_threads() == before
    with pytest.raises(KeyError), fsm.threads(2):
        raise KeyError
    assert fsm.get_num_threads() == before


def test_same_bits_for_every_thread_count(backend, thread_count):
    assert fsm.get_num_threads() == thread_count
    got = [job() for job in jobs(backend)]
    with fsm.threads(1):
        want = [job() for job in jobs(backend)]
    for a, b in zip(got, want, strict=True):
        assert_same_bits(a, b)


def test_many_callers_at_once(backend):
    """8 threads x all jobs, each in its own order, give the serial bits."""
    work = list(jobs(backend))
    want = [job() for job in work]
    orders = [np.random.default_rng(i).permutation(len(work)) for i in range(8)]

    def run(order):
        return [(i, work[i]()) for i in order]

    with ThreadPoolExecutor(8) as pool:
        for results in pool.map(run, orders):
            for i, got in results:
                assert_same_bits(got, want[i], f"job {i}")


def test_changing_the_thread_count_while_others_compute(backend):
    x = np.random.default_rng(0).normal(size=(50, 20_000)).astype("f4")
    want = fsm.softmax(x, backend=backend)
    stop = threading.Event()

    def change():
        while not stop.is_set():
            for n in (1, 2, 4):
                with fsm.threads(n):
                    pass

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for _ in range(30):
            assert_same_bits(fsm.softmax(x, backend=backend), want)
    finally:
        stop.set()
        changer.join()


def test_the_first_call_raced_by_eight(run_ok, backend):
    run_ok(f"""
import threading, numpy as np
x = np.random.default_rng(0).normal(size=(200, 5000)).astype("f4")
import fastsoftmax as f
gate, results = threading.Barrier(8), [None] * 8
def go(i):
    gate.wait(); results[i] = f.softmax(x, backend={backend!r}).tobytes()
all_threads = [threading.Thread(target=go, args=(i,)) for i in range(8)]
[t.start() for t in all_threads]; [t.join() for t in all_threads]
assert len(set(results)) == 1 and results[0] is not None
""")


FORKS = {
    "os.fork": """
pid = os.fork()
if pid == 0:
    os._exit(0 if work() == want else 3)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert work() == want
""",
    "nested": """
pid = os.fork()
if pid == 0:
    inner = os.fork()
    if inner == 0:
        os._exit(0 if work() == want else 3)
    inner_code = os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1])
    os._exit(0 if work() == want and inner_code == 0 else 4)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
""",
    "pool": """
with multiprocessing.get_context("fork").Pool(3) as pool:
    assert pool.map(call, range(6)) == [want] * 6
assert work() == want
""",
    "while another thread is inside": """
stop = threading.Event()
def busy():
    while not stop.is_set():
        work()
other = threading.Thread(target=busy); other.start()
for _ in range(5):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if work() == want else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
stop.set(); other.join()
""",
}


@pytest.mark.parametrize("kind", FORKS)
def test_fork_after_use(python, backend, kind):
    code = f"""
import multiprocessing, os, sys, threading, warnings
import numpy as np, fastsoftmax as f
warnings.simplefilter("ignore", DeprecationWarning)  # Python's own about forks
x = np.random.default_rng(0).normal(size=(4, 300_000)).astype("f4")
f.set_num_threads(2)
def work():
    return f.softmax(x, backend={backend!r}).tobytes()[::997] + f.logsumexp(x, backend={backend!r}).tobytes()
def call(i):
    return work()
want = work()
{FORKS[kind]}
"""
    done = python(code, timeout=60)
    assert done.returncode == 0, done.stderr


def test_exit_while_daemon_threads_compute(python, backend):
    code = f"""
import threading, time, numpy as np, fastsoftmax as f
x = np.ones((100, 20_000), "f4"); f.softmax(x, backend={backend!r})
def forever():
    while True:
        f.softmax(x, backend={backend!r})
for _ in range(3):
    threading.Thread(target=forever, daemon=True).start()
time.sleep(0.3)
"""
    done = python(code, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_an_interrupt_is_survived(python, backend):
    code = f"""
import os, signal, threading, time, numpy as np, fastsoftmax as f
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with SIGINT ignored
x = np.random.default_rng(0).normal(size=(100, 20_000)).astype("f4")
want = f.softmax(x, backend={backend!r}).tobytes()
threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    while True:
        f.softmax(x, backend={backend!r})
except KeyboardInterrupt:
    pass
assert f.softmax(x, backend={backend!r}).tobytes() == want
"""
    done = python(code, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_caller_is_not_blocked_by_a_long_call(backend):
    """The GIL is released: another thread goes on counting."""
    x = np.zeros((1, 8_000_000), "f4")
    fsm.softmax(x, backend=backend)
    counts, stop = [0], threading.Event()

    def count():
        while not stop.is_set():
            counts[0] += 1
            stop.wait(0.0005)

    counter = threading.Thread(target=count)
    with fsm.threads(1):
        counter.start()
        for _ in range(5):
            fsm.softmax(x, backend=backend)
        stop.set()
        counter.join()
    assert counts[0] > 5
