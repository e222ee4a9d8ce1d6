"""Print the results of the benchmark: the cells, losing ones first, and a summary.

python bench/report.py RESULTS.json
"""

import argparse
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from measure import DISTURBED
from peers import HALVES, OURS
from workloads import LOSSES, OPS, Cell, cells

GROUPS = {"softmax, log_softmax": OPS[:2], "logsumexp": OPS[2:], "cross-entropy": LOSSES}
FLOORS = {  # the best peer's time by ours, in float32 on one thread: for each group
    "rows": (1.6, 3, 3.5),
    "short rows": (2.5, 4, 4),
    "other axes": (3, 2.5, 1),
    "one huge row": (2, 5, 5),
    "modified": (1.6, 3, 1),
}
TINY_FLOORS = {"torch": (1.7, 12, 4), "scipy": (12, 80, 1)}
FLOAT64_FLOOR = 3
HALVES_FLOOR = 2  # over torch
SPEEDUP_FLOOR = 1.7  # of two threads over one
Times = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Row:
    """A cell on a number of threads: every library's times, ours apart."""

    cell: Cell
    threads: int
    ours: dict[str, float]
    peers: Times
    others: float  # CPUs that other processes kept busy, at most

    @property
    def ranking(self) -> list[str]:
        """The peers, fastest first."""
        return sorted(self.peers, key=lambda name: self.peers[name]["min"])

    def ratio(self, peer: str, statistic: str = "min") -> float:
        return self.peers[peer][statistic] / self.ours[statistic]

    @property
    def best(self) -> float:
        """How many times as long the best peer takes."""
        return self.ratio(self.ranking[0])

    @property
    def disturbed(self) -> bool:
        """Libraries that take turns suffer alike; those on all CPUs, one after the other, do not."""
        return self.threads > 1 and self.others > DISTURBED

    @property
    def single(self) -> bool:
        return self.threads == 1 and self.cell.dtype == "float32"


def rows(data: dict) -> list[Row]:
    """What was measured, as rows; on two threads only cells that a peer was measured in too."""
    known = {cell.id: cell for cell in cells(full=True)}
    infos = [benchmark["extra_info"] for benchmark in data["benchmarks"]]
    found = [(info["cell"], 1, info["results"], info["others"]) for info in infos]
    alone = data["two_threads"]
    for cell in alone.get(OURS, {}):
        results = {name: times[cell] for name, times in alone.items() if cell in times}
        found.append((cell, 2, results, max(times["others"] for times in results.values())))
    made = []
    for cell, threads, results, others in found:
        peers = {name: times for name, times in results.items() if name != OURS}
        if peers:
            made.append(Row(known[cell], threads, results[OURS], peers, others))
    return made


def microseconds(seconds: float) -> str:
    """Three digits, or all before the point."""
    value = seconds * 1e6
    return f"{value:.{max(0, 2 - int(math.log10(max(value, 1))))}f}"


def facts(data: dict) -> Iterator[str]:
    machine = data["machine_info"]
    cpu = machine["cpu"]
    yield f"{cpu['model']}, {cpu['count']} CPUs, load {', '.join(f'{x:.1f}' for x in machine['load'])}"
    yield ", ".join(f"{name} {size}" for name, size in cpu["caches"].items())
    yield " ".join(cpu["flags"])
    yield f"Python {machine['python_version']}, " + ", ".join(
        f"{name} {version or 'absent'}" for name, version in machine["versions"].items()
    )
    yield f"our backend: {machine['fastsoftmax']['backends']['selected']}"


def line(row: Row) -> str:
    """A cell: our time, the two best peers' and their ratio to ours, by the least times and by the medians."""
    first, *others = row.ranking
    text = f"{row.cell.id:38} {row.threads} {microseconds(row.ours['min']):>9}   {first:11} "
    text += f"{microseconds(row.peers[first]['min']):>9} {row.best:6.2f} {row.ratio(first, 'median'):6.2f}"
    if others:
        text += f"   {others[0]:11} {row.ratio(others[0]):6.2f}"
    return text + "   LOST" * (row.best < 1) + "   DISTURBED" * row.disturbed


def table(measured: list[Row]) -> Iterator[str]:
    yield f"{'cell':38} t {'ours, µs':>9}   {'best peer':11} {'µs':>9}  ratio median   {'second':11}  ratio"
    for row in sorted(measured, key=lambda row: row.best):
        yield line(row)


def mean(values: list[float]) -> float:
    """The geometric one."""
    return math.exp(sum(map(math.log, values)) / len(values))


def verdict(what: str, values: Iterable[float], floor: float) -> Iterator[str]:
    """One line of the summary; none without values."""
    values = list(values)
    if values:
        least = min(values)
        short = "" if least >= floor else "   SHORT"
        yield f"{what:48} wanted {floor:5.1f}   least {least:6.2f}   mean {mean(values):6.2f}{short}"


def of_kind(measured: list[Row], kind: str, ops: tuple[str, ...]) -> list[Row]:
    """Rows in float32 on one thread."""
    return [row for row in measured if row.single and row.cell.workload.kind == kind and row.cell.op in ops]


def summary(measured: list[Row]) -> Iterator[str]:
    for i, (group, ops) in enumerate(GROUPS.items()):
        for kind, floors in FLOORS.items():
            yield from verdict(f"{kind}: {group}", (r.best for r in of_kind(measured, kind, ops)), floors[i])
        for peer, floors in TINY_FLOORS.items():
            tiny = (r.ratio(peer) for r in of_kind(measured, "tiny calls", ops) if peer in r.peers)
            yield from verdict(f"tiny calls over {peer}: {group}", tiny, floors[i])
    double = [r for r in measured if r.threads == 1 and r.cell.dtype == "float64"]
    long = (r.best for r in double if r.cell.workload.kind != "tiny calls")
    yield from verdict("float64, but for tiny calls", long, FLOAT64_FLOOR)
    for dtype in HALVES:
        halves = (r for r in measured if r.threads == 1 and r.cell.dtype == dtype and "torch" in r.peers)
        yield from verdict(f"{dtype} over torch", (r.ratio("torch") for r in halves), HALVES_FLOOR)
    if any(row.disturbed for row in measured):
        yield f"DISTURBED: more than {DISTURBED} CPUs were busy with other work; these times cannot be compared"
        measured = [row for row in measured if not row.disturbed]
    for threads in (1, 2):
        yield from verdict(f"every cell, threads: {threads}", (r.best for r in measured if r.threads == threads), 1)
    speedups = (r.ours["one thread"]["min"] / r.ours["min"] for r in measured if r.threads == 2)
    yield from verdict("two threads over one", speedups, SPEEDUP_FLOOR)


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the results of the benchmark.")
    parser.add_argument("results", type=Path, help="what pytest --benchmark-json wrote")
    data = json.loads(parser.parse_args().results.read_text())
    measured = rows(data)
    for part in (facts(data), table(measured), summary(measured)):
        print(*part, sep="\n", end="\n\n")


if __name__ == "__main__":
    main()
