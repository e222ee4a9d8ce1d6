"""The clock: who takes part in a cell, with which variant, how often, and how long it took."""

import gc
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from statistics import median

import ml_dtypes
import numpy as np
from peers import OURS, Job, Peer, Task
from reference import BOUNDS, modified, reference, worst_ulp
from workloads import Cell

from fastsoftmax._tune import cpu_seconds_of_others

ROUND = 50e-6  # seconds that a round lasts at least; shorter calls are repeated within it
WARM = 1e-3  # calls shorter than this are made once before the clock starts: all find their caches as they left them
PROBE = 5e-3  # seconds of calls, from which the fastest variant and the number of rounds are found
MIN_ROUNDS, MAX_ROUNDS = 5, 300
FAR_BEHIND, FEW_ROUNDS = 4, 3  # whoever takes this many times as long as the fastest, gets fewer rounds
DISTURBED = 0.3  # CPUs busy with other work, above which times on all CPUs cannot be compared
WRONG = 0.01  # relative error of a softmax, absolute error of a logarithm, above which a result is wrong, not inexact


def repeated(call: Callable[[], object], calls: int) -> None:
    for _ in repeat(None, calls):
        call()


def timed(call: Callable[[], object], calls: int) -> float:
    """Seconds that a number of calls take."""
    start = time.perf_counter()
    repeated(call, calls)
    return time.perf_counter() - start


class Watch:
    """A context for timed rounds, without garbage collection. `others`: how many CPUs other processes kept busy."""

    others = 0.0

    def __enter__(self) -> "Watch":
        gc.collect()
        gc.disable()
        self.start = cpu_seconds_of_others(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        cpu, elapsed = cpu_seconds_of_others() - self.start[0], time.perf_counter() - self.start[1]
        self.others = round(max(0.0, cpu / elapsed), 2)
        gc.enable()


@dataclass
class Contestant:
    """A library in a cell: its fastest variant, and its times."""

    name: str
    task: Task  # kept, because some libraries only borrow its array
    job: Job
    seconds: float  # of a call, at a first look
    cpus: float  # CPU time by elapsed time: how many threads were busy
    ulp: float
    rounds: int = 0
    times: list[float] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """How many calls make a round."""
        return max(1, round(ROUND / self.seconds))

    def warm(self) -> None:
        if self.seconds < WARM:
            self.job.call()

    def round(self) -> None:
        self.warm()
        self.times.append(timed(self.job.call, self.calls) / self.calls)

    def result(self) -> dict[str, object]:
        return {
            "min": min(self.times),
            "median": median(self.times),
            "rounds": len(self.times),
            "calls": self.calls,
            "ulp": self.ulp,
            "cpus": round(self.cpus, 2),
            "variant": self.job.variant,
        }


def probe(job: Job) -> tuple[float, float]:
    """Seconds of a call, the least of a few, and how many CPUs they kept busy."""
    job.call()
    times, start, cpu = [], time.perf_counter(), time.process_time()
    while not times or time.perf_counter() - start < PROBE:
        times.append(timed(job.call, 1))
    return min(times), (time.process_time() - cpu) / (time.perf_counter() - start)


def usable(op: str, y: np.ndarray, exact: np.ndarray) -> bool:
    """Whether a result is what was asked for, however inexact."""
    finfo = ml_dtypes.finfo(y.dtype)
    if op == "cross_entropy_grad":  # of others a difference of p and 1
        rtol, atol = WRONG, float(finfo.eps)
    else:
        rtol, atol = (WRONG, float(finfo.tiny)) if op == "softmax" else (float(finfo.eps), WRONG)
    return bool(np.allclose(y.astype(exact.dtype), exact, rtol=rtol, atol=atol, equal_nan=True))


def check(cell: Cell, ulp: float) -> None:
    """Hold us to the promise."""
    bound = BOUNDS[cell.dtype][cell.op]
    if not ulp <= bound:
        raise AssertionError(f"{cell.id}: {ulp:.2f} ulp off, at most {bound} promised")


def enter(cell: Cell, libraries: Mapping[str, Peer], threads: int) -> tuple[list[Contestant], list[str]]:
    """Who takes part, results compared; and who gives results too wrong to be timed."""
    task = Task(cell.op, cell.logits(), cell.workload.axis, cell.workload.out, threads, cell.given())
    with np.errstate(all="ignore"):
        exact, size = reference(task.op, modified(task.x, **task.given), task.axis, task.given.get("target"))
    entered, wrong = [], []
    for name, library in libraries.items():
        if cell.dtype not in library.DTYPES or not set(task.given) <= set(library.GIVEN):
            continue
        variants = []
        for job in library.jobs(task):
            seconds, cpus = probe(job)
            y = job.result().reshape(exact.shape)
            if usable(task.op, y, exact):
                variants.append(Contestant(name, task, job, seconds, cpus, worst_ulp(y, exact, size)))
            else:
                wrong.append(f"{name} {job.variant}".strip())
        if variants:
            entered.append(min(variants, key=lambda v: v.seconds))
        if name == OURS:
            check(cell, entered[-1].ulp)
    return entered, wrong


def plan(contestants: list[Contestant], budget: float) -> int:
    """Give everyone an equal share of the time, in rounds of whole calls; the most rounds that anyone has."""
    share = budget / len(contestants)
    fastest = min(c.seconds for c in contestants)
    for c in contestants:
        least = FEW_ROUNDS if c.seconds > FAR_BEHIND * fastest else MIN_ROUNDS
        c.rounds = min(MAX_ROUNDS, max(least, int(share / (c.seconds * c.calls))))
    return max(c.rounds for c in contestants)


class Rounds:
    """The peers' part of each round: all whose turn it is, in random order; few rounds are spread over the time."""

    def __init__(self, peers: list[Contestant], total: int) -> None:
        self.peers, self.total, self.done, self.order = peers, total, 0, random.Random(0)

    def due(self, peer: Contestant) -> bool:
        return (self.done + 1) * peer.rounds // self.total > self.done * peer.rounds // self.total

    def __call__(self) -> None:
        turn = [peer for peer in self.peers if self.due(peer)]
        for peer in self.order.sample(turn, len(turn)):
            peer.round()
        self.done += 1
