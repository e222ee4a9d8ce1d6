"""Threads: settings, many callers at once, forks, interrupts; results never depend on any of it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from all_calls import SHAPES as ALL_SHAPES
from all_calls import bits, calls
from conftest import BACKENDS
from layouts import assert_same_bits

import fastsoftmax as fsm
from fastsoftmax import _config

pytestmark = pytest.mark.usefixtures("split_early")

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


@pytest.mark.parametrize("backend", [*BACKENDS, None])
def test_sixteen_callers_of_everything(backend):
    every = [call for shape in ALL_SHAPES.values() for call in calls(shape, "f4", backend).values()]
    want = [bits(call()) for call in every]
    gate = threading.Barrier(16)

    def run(seed):
        gate.wait()
        order = np.random.default_rng(seed).permutation(len(every))[:40]
        return [(i, bits(every[i]())) for i in order]

    with fsm.threads(2), ThreadPoolExecutor(16) as pool:
        for results in pool.map(run, range(16)):
            assert all(got == want[i] for i, got in results)


BESIDE = """
import importlib.util, threading, numpy as np, fastsoftmax as f
f.set_num_threads(2)
rng = np.random.default_rng(0)
x, a = rng.normal(size=(100, 5000)).astype("f4"), rng.normal(size=(200, 200))
def work():
    return [g(x, backend={backend!r}).tobytes() for g in (f.softmax, f.logsumexp, f.logcumsumexp)]
want, product, stop, wrong = work(), (a @ a).tobytes(), threading.Event(), []
def multiply():
    while not stop.is_set():
        (a @ a).tobytes() == product or wrong.append("numpy")
others = [multiply] * 4
if importlib.util.find_spec("torch"):
    import torch
    t = torch.from_numpy(x)
    def soften():
        while not stop.is_set():
            torch.softmax(t, 1)
    others.append(soften)
others = [threading.Thread(target=other) for other in others]
[other.start() for other in others]
try:
    assert all(work() == want for _ in range(10))
finally:
    stop.set()
[other.join() for other in others]
assert not wrong
"""


def test_beside_other_libraries_that_have_threads(python, backend):
    """More threads than CPUs, of several pools: the bits are the same, and nobody waits for ever."""
    done = python(BESIDE.format(backend=backend), timeout=120)
    assert done.returncode == 0, done.stderr


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
x = np.random.default_rng(0).normal(size=(400, 5000)).astype("f4")
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
x = np.random.default_rng(0).normal(size=(4, 600_000)).astype("f4")
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


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc/self/task: needs Linux")
@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "numpy"])
def test_a_fork_has_helpers_of_its_own(name, run_ok):
    run_ok(f"""if True:
        import os, numpy as np, fastsoftmax as f
        x = np.zeros((4, 600_000), "f4")
        f.set_num_threads(2)
        f.softmax(x, backend={name!r})
        pid = os.fork()
        if pid == 0:
            f.softmax(x, backend={name!r})
            os._exit(len(os.listdir("/proc/self/task")))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
    """)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_executors_of_processes(python, method):
    """After use, with every way to start a process that there is."""
    code = f"""
import multiprocessing, warnings, numpy as np, fastsoftmax as f
from concurrent.futures import ProcessPoolExecutor
from functools import partial
warnings.simplefilter("ignore", DeprecationWarning)  # Python's own about forks
f.set_num_threads(2)
x = np.random.default_rng(0).normal(size=(4, 300_000)).astype("f4")
backends = {{f.backends()[0], f.backends()[-2]}}  # C and Numba, where they are
for backend in backends:
    f.softmax(x, backend=backend)
with ProcessPoolExecutor(2, multiprocessing.get_context({method!r})) as pool:
    for backend in backends:
        want = f.softmax(x, backend=backend).tobytes()
        for got in pool.map(partial(f.softmax, backend=backend), [x] * 4):
            assert got.tobytes() == want, backend
"""
    done = python(code, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_fork_while_numba_compiles(python, tmp_path):
    """In the child its locks would be held for ever by a thread that is not there."""
    if "numba" not in BACKENDS:
        pytest.skip("numba is not installed: it is a dependence, but the package works without it")
    code = """
import os, threading, time, numpy as np, fastsoftmax as f
from fastsoftmax._backends import numba
x = np.zeros((2, 5), "f4")
f.sigmoid(x, backend="numba")  # loads Numba
def compile():
    f.softplus(x, backend="numba")
other = threading.Thread(target=compile)
other.start()
time.sleep(0.2)
pid = os.fork()
if pid == 0:
    os._exit(0 if f.sigmoid(x.astype(float), backend="numba")[0, 0] == 0.5 else 3)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
other.join()
"""
    done = python(code, timeout=100, NUMBA_CACHE_DIR=str(tmp_path), PYTHONWARNINGS="ignore::DeprecationWarning")
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


def test_many_interrupts_are_survived(python, backend):
    """At any place of any call: what comes after it is right, and no thread is stuck."""
    code = f"""
import random, signal, time
from all_calls import bits, calls
import fastsoftmax as f
signal.signal(signal.SIGINT, signal.default_int_handler)
f.set_num_threads(2)
work = [*calls((60, 3000), "f4", {backend!r}).values(), *calls((2, 60_000), "f4", {backend!r}).values()]
want, rng, caught = [bits(call()) for call in work], random.Random(0), 0
def strike(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, strike)
for _ in range(60):
    try:
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0005, 0.02))
        while True:
            rng.choice(work)()
    except KeyboardInterrupt:
        caught += 1
    i = rng.randrange(len(work))
    assert bits(work[i]()) == want[i], i
assert caught == 60
assert [bits(call()) for call in work] == want
"""
    done = python(code, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc/self/task: needs Linux")
@pytest.mark.parametrize("name", [name for name in BACKENDS if name.startswith("c-")])
def test_helpers_of_c_take_no_signals(name, run_ok):
    """But for faults of their own: a handler of the program's must run in a thread of the program's."""
    run_ok(f"""
import signal, threading, numpy as np, fastsoftmax as f
from pathlib import Path
def blocked():
    status = [(task / "status").read_text() for task in Path("/proc/self/task").iterdir()]
    return [int(text.split("SigBlk:")[1].split()[0], 16) for text in status]
before = len(blocked())
with f.threads(2):
    f.softmax(np.zeros((64, 65_536), "f4"), backend={name!r})
def holds(mask, number):
    return bool(mask >> (number - 1) & 1)
helpers = [mask for mask in blocked() if holds(mask, signal.SIGINT)]
assert len(helpers) == len(blocked()) - before == 1
assert holds(helpers[0], signal.SIGTERM) and not holds(helpers[0], signal.SIGSEGV)
""")


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


# What affinity and cgroups allow


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A system with 8 CPUs, these files under /sys/fs/cgroup, and this as /proc/self/cgroup (None: absent)."""

    def make(files, own=None, cpus=8):
        for name, text in files.items():
            (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "cgroup" / name).write_text(text)
        if own is not None:
            (tmp_path / "own").write_text(own)
        monkeypatch.setattr(_config, "CGROUP", tmp_path / "cgroup")
        monkeypatch.setattr(_config, "OWN_CGROUPS", tmp_path / "own")
        monkeypatch.setattr(_config.os, "sched_getaffinity", lambda pid: set(range(cpus)), raising=False)

    return make


SERVICE = "0::/system.slice/a.service\n"


@pytest.mark.parametrize(
    ("files", "own", "allowed"),
    [
        ({}, None, 8),
        ({"cpu.max": "max 100000\n"}, "0::/\n", 8),
        ({"cpu.max": "200000 100000\n"}, "0::/\n", 2),
        ({"cpu.max": "200000 100000\n"}, None, 2),
        ({"cpu.max": "150000 100000\n"}, "0::/\n", 2),  # rounded up
        ({"cpu.max": "10000 100000\n"}, "0::/\n", 1),  # at least one
        ({"cpu.max": "9900000 100000\n"}, "0::/\n", 8),  # no more than there are
        ({"cpu.max": "nonsense\n"}, "0::/\n", 8),
        ({"cpu.max": "200000 0\n"}, "0::/\n", 8),
        ({"cpu.max": ""}, "0::/\n", 8),
        # not at the root: the process's own cgroup and all above it count
        ({"system.slice/a.service/cpu.max": "300000 100000\n"}, SERVICE, 3),
        ({"system.slice/a.service/cpu.max": "max 100000\n", "system.slice/cpu.max": "200000 100000\n"}, SERVICE, 2),
        ({"system.slice/a.service/cpu.max": "100000 100000\n", "system.slice/cpu.max": "200000 100000\n"}, SERVICE, 1),
        ({"system.slice/b.service/cpu.max": "100000 100000\n"}, SERVICE, 8),  # another's
        # version 1
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "3:cpu,cpuacct:/\n", 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "3:cpu,cpuacct:/\n0::/\n", 3),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "3:cpu:/docker/ab\n", 3),
        ({"cpu/d/cpu.cfs_quota_us": "100000\n", "cpu/d/cpu.cfs_period_us": "50000\n"}, "1:cpuset:/x\n3:cpu:/d\n", 2),
        ({"cpu/cpu.cfs_quota_us": "300000\n"}, "3:cpu:/\n", 8),  # no period
        ({"cpu.max": "200000 100000\n"}, "garbage\n", 2),
    ],
)
def test_cgroups_limit_the_threads(system, files, own, allowed):
    system(files, own)
    assert _config._usable_cpus() == allowed


def test_the_least_of_affinity_and_cgroup_counts(system):
    system({"cpu.max": "300000 100000\n"}, "0::/\n", cpus=2)
    assert _config._usable_cpus() == 2
    system({}, cpus=5)
    assert _config._usable_cpus() == 3


# threadpoolctl


@pytest.fixture
def threadpoolctl():
    module = pytest.importorskip("threadpoolctl", reason="needs `pip install threadpoolctl`")
    if not BACKENDS[0].startswith("c-"):
        pytest.skip("the C part is missing: threadpoolctl finds libraries by their files")
    return module


def ours(threadpoolctl):
    return [entry for entry in threadpoolctl.threadpool_info() if entry["user_api"] == "fastsoftmax"]


def test_threadpoolctl_lists_and_limits(threadpoolctl):
    for _ in range(2):  # the second time changes nothing
        fsm.register_with_threadpoolctl()
        with fsm.threads(3):
            (entry,) = ours(threadpoolctl)
            assert entry["num_threads"] == 3
            assert entry["version"] == fsm.__version__
            assert "_fastsoftmax_c" in entry["filepath"]
            for limits in (2, {"fastsoftmax": 2}):
                with threadpoolctl.threadpool_limits(limits):
                    assert fsm.get_num_threads() == 2
                    assert ours(threadpoolctl)[0]["num_threads"] == 2
                    with threadpoolctl.threadpool_limits(1, user_api="fastsoftmax"):
                        assert fsm.explain(np.zeros((1000, 10_000))).threads == 1
                    assert fsm.get_num_threads() == 2
                assert fsm.get_num_threads() == 3
            with threadpoolctl.threadpool_limits(1, user_api="blas"):
                assert fsm.get_num_threads() == 3


def test_threadpoolctl_as_the_first_thing_done(threadpoolctl, run_ok):
    """The extension is loaded by registering, not only by the first call; threadpoolctl not before that."""
    run_ok("""
import sys, fastsoftmax as f
assert "threadpoolctl" not in sys.modules
f.register_with_threadpoolctl()
import threadpoolctl
with threadpoolctl.threadpool_limits(1):
    assert f.get_num_threads() == 1
assert f.get_num_threads() == 7
""", FASTSOFTMAX_NUM_THREADS="7")  # fmt: skip


def test_threadpoolctl_without_the_c_part(monkeypatch):
    monkeypatch.setattr(_config, "c_isas", lambda: ())
    with pytest.warns(UserWarning, match="without its C part"):
        fsm.register_with_threadpoolctl()
