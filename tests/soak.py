"""Calls of everything, for minutes: in several threads, children and backends at once, with failing ones among them.

python tests/soak.py [--minutes M] [--threads N]

Checks the bits of every result, and that memory, threads and files do not grow; then arrays of more than 2^31 elements
(8 GiB of memory at most). Prints a line a minute and a closing line; exit status 1 on any finding.
"""

import argparse
import gc
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from all_calls import SHAPES, bits, calls, failing_calls  # noqa: E402

import fastsoftmax as fsm  # noqa: E402
from fastsoftmax import _dispatch  # noqa: E402

MIB = 1 << 20
GROWTH = 24 * MIB  # of memory in use, in all: threads keep arenas of their own
MOST_THREADS = 4  # of a call
PAUSE = 2.0  # seconds between forks
PATIENCE = 300.0  # seconds that a child may take


class Soak:
    """What is called, what it should give, and what was found."""

    def __init__(self):
        self.counts = {"calls": 0, "errors": 0, "children": 0, "interrupts": 0, "findings": 0}
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.work = []
        for backend in (*fsm.backends(), None):
            for dtype in ("f4", "f8", "f2"):
                for kind, shape in SHAPES.items():
                    for name, call in calls(shape, dtype, backend).items():
                        self.work.append((f"{name}, {kind} {dtype} {backend}", call, bits(call())))
        self.bad = [
            (f"{name} {backend}", call, error)
            for backend in (*fsm.backends(), None)
            for name, (call, error) in failing_calls(backend).items()
        ]

    def found(self, what):
        print(f"FOUND: {what}", flush=True)
        self.count("findings")

    def count(self, what, n=1):
        with self.lock:
            self.counts[what] += n

    def one_call(self, rng):
        if rng.random() < 0.05:
            name, call, error = rng.choice(self.bad)
            try:
                call()
                self.found(f"{name}: no {error.__name__}")
            except error:
                self.count("errors")
            return
        name, call, right = rng.choice(self.work)
        if bits(call()) != right:
            self.found(f"{name}: other bits")
        self.count("calls")

    def compute(self, seed):
        """A thread's work, until told to stop."""
        rng = random.Random(seed)
        while not self.stop.is_set():
            try:
                self.one_call(rng)
            except Exception as error:
                self.found(repr(error))

    def resize(self):
        while not self.stop.wait(0.05):
            for n in (1, MOST_THREADS, 2):
                fsm.set_num_threads(n)

    def fork(self, seed):
        """A child, from among threads that compute, does some of the work, and forks itself."""
        pid = os.fork()
        if pid == 0:
            rng, before = random.Random(seed), self.counts["findings"]
            inner = os.fork() if seed % 4 == 0 else None
            for _ in range(20):
                self.one_call(rng)
            failed = inner and os.waitpid(inner, 0)[1]
            os._exit(1 if failed or self.counts["findings"] > before else 0)
        end = time.monotonic() + PATIENCE
        while not (done := os.waitpid(pid, os.WNOHANG))[0]:
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                self.found(f"a child hung (seed {seed})")
                return
            time.sleep(0.02)
        if done[1]:
            self.found(f"a child failed with status {done[1]} (seed {seed})")
        self.count("children")

    def interrupted(self, rng):
        """Calls of the main thread, cut short by SIGINT, and then one that must be right."""
        timer = threading.Timer(rng.random() / 10, signal.raise_signal, [signal.SIGINT])
        try:
            timer.start()
            while True:
                rng.choice(self.work)[1]()
        except KeyboardInterrupt:
            self.count("interrupts")
        timer.join()
        self.one_call(rng)


def in_use():
    """Bytes of memory, threads, and open files."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) << 10, int(status["Threads"]), len(os.listdir("/proc/self/fd"))


def soak(minutes, threads):
    """Run it all for so long; the counts."""
    warnings.simplefilter("ignore", DeprecationWarning)  # Python's own about forks
    signal.signal(signal.SIGINT, signal.default_int_handler)
    s, rng = Soak(), random.Random(0)
    workers = [threading.Thread(target=s.compute, args=(i,), daemon=True) for i in range(threads)]
    workers.append(threading.Thread(target=s.resize, daemon=True))
    for worker in workers:
        worker.start()
    begin, first, minute = time.monotonic(), None, 0
    while (elapsed := time.monotonic() - begin) < 60 * minutes:
        s.fork(rng.randrange(1 << 30))
        s.interrupted(rng)
        time.sleep(PAUSE)
        if elapsed >= min(60, 20 * minutes) and first is None:
            first = in_use()  # all have warmed up
        if elapsed // 60 > minute:
            minute = int(elapsed // 60)
            memory, alive, files = in_use()
            print(f"minute {minute}: {said(s.counts)}; {memory // MIB} MiB, {alive} threads, {files} files", flush=True)
    s.stop.set()
    for worker in workers:
        worker.join()
    check_growth(s, first)
    return s.counts


def check_growth(s, first):
    last = in_use()
    first = first or last
    print(f"memory: {first[0] // MIB} MiB, at the end {last[0] // MIB}; threads {first[1]}, {last[1]}", flush=True)
    if last[0] - first[0] > GROWTH:
        s.found(f"memory grew by {(last[0] - first[0]) // MIB} MiB")
    if last[1] > 1 + MOST_THREADS - 1 + os.cpu_count():  # this one, the pool of C, and Numba's helpers
        s.found(f"{last[1]} threads are left")
    if last[2] > first[2]:
        s.found(f"open files grew from {first[2]} to {last[2]}")


def split_early():
    """Threads from sizes that are fast: 2^14 elements."""
    table = json.loads(_dispatch.SHIPPED.read_text())
    for section in ("c_threads", "numba_threads"):
        for sizes in table[section].values():
            sizes.update(dict.fromkeys(sizes, 1 << 14))
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(table, file)
        file.flush()
        os.environ[_dispatch.VARIABLE] = file.name
        assert _dispatch.crossovers().origin != "the shipped table"


def said(counts):
    return ", ".join(f"{n} {what}" for what, n in counts.items())


# ---- large arrays ----

BEYOND = (1 << 31) + 1000


def available():
    """Bytes of memory that can be had, as the system sees it and as its cgroup allows."""
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    found = int(meminfo["MemAvailable"].split()[0]) << 10
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            left = int(Path("/sys/fs/cgroup", limit).read_text()) - int(Path("/sys/fs/cgroup", usage).read_text())
            found = min(found, left)
        except (OSError, ValueError):
            continue
    return found


def few_values(n, dtype):
    """Sixteen-bit numbers and what is known of them: of every value so many."""
    x = np.zeros(n, dtype)
    x[-1] = x[n // 2] = 8
    return x


def softmax_in_place(backend):
    x = few_values(BEYOND, "f2")
    fsm.softmax(x, out=x, backend=backend)
    part = np.exp(8.0) / (2 * np.exp(8.0) + (BEYOND - 2))
    assert x[-1] == x[BEYOND // 2] == np.float16(part), x[-1]
    assert x[0] == x[BEYOND // 2 + 1] == x[-2] == np.float16(part / np.exp(8.0))


def many_rows(backend):
    x = np.zeros((BEYOND // 2, 2), "f2")
    x[-1] = 0, 8
    fsm.log_softmax(x, out=x, backend=backend)
    assert (x[-1] == np.float16([-8.000335, -0.00033540637])).all(), x[-1]
    assert (x[:: 1 << 20] == np.float16(-np.log(2))).all()
    assert (x[-1000:-1] == np.float16(-np.log(2))).all()


def one_sum(backend):
    x = np.zeros(BEYOND, "f4")  # pages that are only read take no memory
    right = np.log(BEYOND)
    assert abs(fsm.logsumexp(x, backend=backend) - right) < 4e-6
    assert abs(fsm.token_logprobs(x, BEYOND - 1, backend=backend) + right) < 4e-6
    x[-1] = 30
    assert fsm.logsumexp(x, backend=backend) == np.float32(np.log(np.exp(30) + BEYOND - 1))


def elements(backend):
    x = few_values(BEYOND, "f2")
    fsm.sigmoid(x, out=x, backend=backend)
    assert x[-1] == x[BEYOND // 2] == np.float16(1 / (1 + np.exp(-8)))
    assert x[0] == x[-2] == x[BEYOND // 2 - 1] == 0.5


def rows_over_and_over(backend):
    row = np.random.default_rng(0).normal(0, 3, 65_537).astype("f4")
    x = np.broadcast_to(row, (BEYOND // row.size + 1, row.size))
    sums = fsm.logsumexp(x, axis=1, backend=backend)
    assert (sums == fsm.logsumexp(row, backend=backend)).all()


def bytes_to_halves(backend):
    x = np.zeros(BEYOND, np.uint8)
    x[-1] = 8
    p = fsm.softmax(x, dtype=np.float16, backend=backend)
    assert p[-1] == np.float16(np.exp(8.0) / (np.exp(8.0) + BEYOND - 1))


LARGE = {  # what is computed, GiB, and whether it takes so much in C alone
    softmax_in_place: (5, True),
    many_rows: (5, True),
    elements: (5, True),
    bytes_to_halves: (7, True),
    one_sum: (1, False),
    rows_over_and_over: (1, False),
}


def large_arrays():
    """The number of findings."""
    findings = 0
    for backend in fsm.backends():
        for check, (gib, c_alone) in LARGE.items():
            if c_alone and not backend.startswith("c-"):
                continue  # they compute half types from copies in float32, of twice the size
            if backend == "numpy":
                continue  # a row of this length takes minutes there
            if available() < (gib + 1) << 30:
                print(f"large: {check.__name__} skipped: needs {gib + 1} GiB, {available() >> 20} MiB can be had")
                continue
            begin = time.monotonic()
            try:
                check(backend)
                print(f"large: {check.__name__}, {backend}: right, {time.monotonic() - begin:.0f} s", flush=True)
            except (AssertionError, MemoryError) as error:
                findings += 1
                print(f"FOUND: {check.__name__}, {backend}: {error!r}", flush=True)
    return findings


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--no-large", action="store_true", help="without the arrays of more than 2^31 elements")
    parser.add_argument("--large-only", action="store_true")
    arguments = parser.parse_args()
    split_early()
    counts = {"findings": 0} if arguments.large_only else soak(arguments.minutes, arguments.threads)
    counts["findings"] += 0 if arguments.no_large else large_arrays()
    print(f"soak: {said(counts)}")
    return 1 if counts["findings"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
