"""One library on two threads in a process of its own, all cells that are long enough; results as JSON.

    python bench/alone.py LIBRARY [--seconds 0.2] [--full]

Of us also the time on one thread, in the same process.
"""

import argparse
import json

from measure import DISTURBED, Contestant, Watch, enter, plan
from peers import OURS, PEERS, Peer, load
from workloads import Cell, cells_for_threads

THREADS = 2
ATTEMPTS = 3


def measured(cell: Cell, name: str, library: Peer, threads: int, seconds: float) -> dict[str, object] | None:
    """The least disturbed of a few attempts; None if the library cannot do it."""
    library.setup(threads)
    contestants, _ = enter(cell, {name: library}, threads)
    if not contestants:
        return None
    results = []
    while len(results) < ATTEMPTS and (not results or results[-1]["others"] > DISTURBED):
        contestants[0].times.clear()
        results.append(attempt(contestants, seconds))
    return min(results, key=lambda result: result["others"])


def attempt(contestants: list[Contestant], seconds: float) -> dict[str, object]:
    with Watch() as watch:
        for _ in range(plan(contestants, seconds)):
            contestants[0].round()
    return contestants[0].result() | {"others": watch.others}


def main() -> None:
    parser = argparse.ArgumentParser(description="One library on two threads, as JSON.")
    parser.add_argument("library", choices=(OURS, *PEERS))
    parser.add_argument("--seconds", type=float, default=0.2, help="per cell (0.2)")
    parser.add_argument("--full", action="store_true", help="all cells")
    arguments = parser.parse_args()
    name = arguments.library
    library = load(name, THREADS)
    if library is None:
        parser.error(f"{name} is not installed")
    results = {}
    for cell in cells_for_threads(arguments.full):
        result = measured(cell, name, library, THREADS, arguments.seconds)
        if result and name == OURS:
            result["one thread"] = measured(cell, name, library, 1, arguments.seconds)
        if result:
            results[cell.id] = result
    print(json.dumps(results))


if __name__ == "__main__":
    main()
