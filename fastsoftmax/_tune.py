"""Measure the crossovers of this machine: the table that _dispatch reads."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from . import _backends, _config, _dispatch

ROW = 512  # elements in a row, so that none is special: not short, not shared by threads
LOW, HIGH = 1 << 10, 1 << 22  # sizes that are tried
SECONDS, QUICK = 60.0, 4.0
MARGIN = 1.1  # by how much two threads must beat one
#: Seconds of work below which a helper that sleeps, or is called in vain, may cost more than a tenth. What two threads
#: take of the time of one, at the median, with the other CPU busy: C 0.98 to 1.06 at 20 us and more; Numba 1.35 at 140
#: us, 1.18 at 600, 1.09 at 1400. With the other CPU free, in C, the helper asleep: 1.07 at 43 us, 0.93 at 60, 0.76 at
#: 110; awake, 0.6.
FLOOR = {"c_threads": 40e-6, "numba_threads": 1.2e-3}
WORTH = 0.5 / 1000  # seconds that Numba must save a call: loading it takes half a second, which 1000 calls earn back
BURST = 4  # calls of a kind in a row: who calls once will soon call again, and finds the helpers awake
ROUNDS = range(4, 50)  # of such calls in a comparison, if it takes longer or less than its share of the time
COMPARISONS = 16  # that a search takes, about
PATIENCE = 3  # times its share of the time after which a search is given up
DISTURBED = 0.3  # CPUs busy with other work, above which threads cannot be judged

#: (section, op, dtype): what was searched for.
Key = tuple[str, str, str]


class OutOfTimeError(Exception):
    """A search took too long."""


class Stopwatch:
    """Times pairs of calls, taking turns, and shares a number of seconds among the searches still to come."""

    def __init__(self, seconds: float, searches: int, clock: Callable[[], float]) -> None:
        self.left, self.searches, self.clock = seconds, searches, clock
        self.share = self.spent = 0.0

    def begin(self) -> None:
        """The next search."""
        if self.left <= 0:
            raise OutOfTimeError
        self.share, self.spent = self.left / self.searches, 0.0
        self.searches -= 1

    def pair(self, first: Callable[[], object], second: Callable[[], object]) -> tuple[list[float], list[float]]:
        """Seconds of each call of one and of the other."""
        a: list[float] = []
        b: list[float] = []
        turns = [(first, a), (second, b)]
        start = self.clock()
        first(), second()  # what comes first finds cold caches
        for done in range(ROUNDS.stop):
            elapsed = self.clock() - start
            if done >= ROUNDS.start and elapsed > self.share / COMPARISONS:
                break
            if self.spent + elapsed > min(self.left, PATIENCE * self.share):
                self.left -= self.spent + elapsed
                raise OutOfTimeError
            for call, times in turns:
                for _ in range(BURST):
                    began = self.clock()
                    call()
                    times.append(self.clock() - began)
            turns.reverse()
        self.spent += self.clock() - start
        return a, b

    def end(self) -> None:
        """The search is over."""
        self.left -= self.spent


def crossover(wins: Callable[[int], bool], low: int = LOW, high: int = HIGH) -> int | None:
    """The least size, to a quarter, that wins and whose double wins as well; None if there is none up to `high`."""
    size = low
    while not (wins(size) and (size == high or wins(2 * size))):
        size *= 2
        if size > high:
            return None
    below = size // 2
    while size > low and size - below > size // 5:
        middle = (size + below) // 2
        if wins(middle):
            size = middle
        else:
            below = middle
    return size


def tune(
    seconds: float = SECONDS,
    *,
    names: tuple[str, ...] | None = None,
    threads: int | None = None,
    load: Callable[[str], _backends.Backend] = _backends.load,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Measure the table of crossovers.

    Parameters
    ----------
    seconds : float
        How long to measure at most; the compilation of Numba's kernels comes on top.
    names, threads, load, clock
        The backends, best first, how many threads there may be, how to get a backend, and the time: those of this
        machine.

    Returns
    -------
    dict
        What `_dispatch.read` takes: a dict for each section; also "machine", and "kept": the entries that could not be
        measured (one CPU, or a busy one, a backend that is not here, no time), which are those of the shipped table.
    """
    names = _config.backends() if names is None else names
    threads = _config.get_num_threads() if threads is None else threads
    shipped = _dispatch.read(_dispatch.SHIPPED, "the shipped table")
    c, numba = names[0].startswith("c-"), "numba" in names
    compared = {  # what is slower on small arrays, and what is faster
        "c_threads": (names[0], names[0]) if c and threads > 1 else None,
        "numba_threads": ("numba", "numba") if numba and threads > 1 else None,
        "numba": ("numpy", "numba") if numba else None,
    }
    keys = [(section, op, dtype) for section in compared for op in _backends.OPS for dtype in _dispatch.DTYPES]
    watch = Stopwatch(seconds, sum(compared[key[0]] is not None for key in keys), clock)
    random = np.resize(np.random.default_rng(0).normal(0, 4, 1 << 16), HIGH)
    data = {dtype: random.astype(dtype) for dtype in _dispatch.DTYPES}

    found: dict[Key, int | None] = {}
    start, others = time.perf_counter(), cpu_seconds_of_others()
    for key in keys:
        if pair := compared[key[0]]:
            with contextlib.suppress(OutOfTimeError):
                found[key] = _search(key, load(pair[0]), load(pair[1]), data[key[2]], watch)
    busy = max(0.0, cpu_seconds_of_others() - others) / (time.perf_counter() - start)
    if busy > DISTURBED:  # that two threads did not gain says nothing then
        found = {key: size for key, size in found.items() if size is not None}

    table: dict[str, Any] = {"machine": _machine(names, threads, busy)}
    for section, op, dtype in keys:
        size = found.get((section, op, dtype), shipped.of(section, op, dtype))
        table.setdefault(section, {}).setdefault(op, {})[dtype] = size
    return table | {"kept": [".".join(key) for key in keys if key not in found]}


def _search(
    key: Key, slow: _backends.Backend, fast: _backends.Backend, data: _backends.Array, watch: Stopwatch
) -> int | None:
    section, op, _ = key
    floor = FLOOR.get(section)

    def calls(size: int) -> tuple[Callable[[], None], Callable[[], None]]:
        rows = max(1, size // ROW)
        n = size // rows
        x = data[: rows * n].reshape(rows, n)
        y = np.zeros(rows if op in _backends.ROW_REDUCTIONS else (rows, n), x.dtype)
        return (
            lambda: slow.run(op, x, y, rows, n, 1, 1),
            lambda: fast.run(op, x, y, rows, n, 1, 2 if floor else 1),
        )

    def wins(size: int) -> bool:
        one, other = watch.pair(*calls(size))
        if floor:  # medians: a second CPU that is now and then taken should count
            return median(one) >= max(floor, MARGIN * median(other))
        return min(one) - min(other) >= WORTH

    watch.begin()
    for call in calls(LOW):
        call()  # Numba compiles, off the clock
    found = crossover(wins)
    watch.end()
    return found


def cpu_seconds_of_others() -> float:
    """CPU seconds that all other processes have had; where the system does not tell, 0."""
    try:
        ticks = [int(n) for n in Path("/proc/stat").read_text().split(maxsplit=9)[1:9]]
    except (OSError, ValueError):
        return 0.0
    return (sum(ticks) - sum(ticks[3:5])) / os.sysconf("SC_CLK_TCK") - time.process_time()


def _machine(names: tuple[str, ...], threads: int, busy: float) -> dict[str, Any]:
    report = _config.show_config("dicts")
    return {
        "cpu": _cpu(),
        "cpus": report["machine"]["cpus"],
        "threads": threads,
        "backends": list(names),
        "cpus busy with other work": round(busy, 2),
        "fastsoftmax": report["fastsoftmax"]["version"],
        **{"python" if name == "version" else name: version for name, version in report["python"].items()},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


TITLES = {
    "c_threads": "C: two threads beat one",
    "numba_threads": "Numba: two threads beat one",
    "numba": "without C: Numba beats NumPy",
}


def text(table: dict[str, Any]) -> str:
    """A table for the reader."""
    machine, kept = table["machine"], table["kept"]
    lines = [f"{machine['cpu']}, {machine['cpus']} CPUs, {', '.join(machine['backends'])}; elements from which"]
    for section, title in TITLES.items():
        lines += ["", f"{title:30}" + "".join(f"{dtype:>9} " for dtype in _dispatch.DTYPES)]
        for op, entries in table[section].items():
            cells = [
                f"{'never' if size is None else size:>9}{'*' if f'{section}.{op}.{dtype}' in kept else ' '}"
                for dtype, size in entries.items()
            ]
            lines.append(f"  {op:28}{''.join(cells)}".rstrip())
    if kept:
        lines += ["", "* not measured, as shipped"]
    if (busy := machine["cpus busy with other work"]) > DISTURBED:
        lines += ["", f"Other programs kept {busy} CPUs busy: thresholds for threads are too high, if found at all."]
    return "\n".join(lines)


def write(table: dict[str, Any], path: Path) -> None:
    """A table for FASTSOFTMAX_CROSSOVERS."""
    path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
