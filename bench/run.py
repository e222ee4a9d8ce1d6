"""The main job: softmax, log_softmax and logsumexp of real logits on every backend, checked and timed.

Each result is compared with NumPy's in float64 (worst error in units in the last place of float32), the backends that
promise the same bits with each other, and the time with NumPy's and SciPy's. Exits with 1 if a check fails.

    python bench/run.py [--json FILE]
"""

import argparse
import json
import platform
import random
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import scipy.special
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
from logits.load import load
from reference import BOUNDS, reference, worst_ulp

import fastsoftmax

Array = NDArray[np.floating]

OPS = ("softmax", "log_softmax", "logsumexp")
BOUNDS = BOUNDS["float32"]
SCIPY = {name: getattr(scipy.special, name) for name in OPS}
OTHER_BITS = ("c-scalar", "numpy")  # no fused multiply-add; the reference
SIZES = ((1, 10), (64, 10), (128, 1000), (32, 6625), (16, 50257), (1, 4_000_000))
ROUNDS = 40


def numpy_way(name: str, x: Array) -> Array:
    """What people write."""
    top = x.max(axis=-1, keepdims=True)
    e = np.exp(x - top)
    total = e.sum(axis=-1, keepdims=True)
    if name == "softmax":
        return e / total
    return (x - top) - np.log(total) if name == "log_softmax" else (top + np.log(total))[..., 0]


def fastest(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The least time of each call in seconds; the calls take turns, each round in another order."""
    best, order = dict.fromkeys(calls, np.inf), random.Random(0)
    for _ in range(ROUNDS):
        for name in order.sample(list(calls), len(calls)):
            start = time.perf_counter()
            calls[name]()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def check(name: str, x: Array) -> Iterator[tuple[str, float, str]]:
    """Backend, worst ulp and verdict of each backend."""
    (exact, size), bits = reference(name, x), None
    for backend in fastsoftmax.backends():
        y = function(name, backend)(x)
        ulp, verdict = worst_ulp(y, exact, size), "ok"
        if not ulp <= BOUNDS[name]:
            verdict = f"FAILED: more than {BOUNDS[name]} ulp"
        elif backend not in OTHER_BITS:
            bits = y.tobytes() if bits is None else bits
            verdict = "ok, same bits" if y.tobytes() == bits else "FAILED: other bits"
        yield backend, ulp, verdict


def function(name: str, backend: str | None = None) -> Callable[[Array], Array]:
    f = getattr(fastsoftmax, name)
    return lambda x: f(x, axis=-1, backend=backend)


def job(name: str, label: str, x: Array) -> list[dict[str, object]]:
    """Check and time one function on one array: a record of each way to compute it."""
    checks = {backend: (ulp, verdict) for backend, ulp, verdict in check(name, x)}
    checks["NumPy"] = worst_ulp(numpy_way(name, x), *reference(name, x)), "-"
    checks["SciPy"] = worst_ulp(SCIPY[name](x, axis=-1), *reference(name, x)), "-"
    calls = {backend: partial(function(name, backend), x) for backend in fastsoftmax.backends()}
    calls |= {"NumPy": partial(numpy_way, name, x), "SciPy": partial(SCIPY[name], x, axis=-1)}
    times = fastest(calls)
    print(f"\n{name} of {label} {x.shape} {x.dtype}")
    print(f"  {'':12} {'time':>12} {'NumPy / it':>11} {'SciPy / it':>11} {'worst error':>14}")
    records = []
    for who, seconds in times.items():
        ulp, verdict = checks[who]
        ratios = f"{times['NumPy'] / seconds:10.1f}x {times['SciPy'] / seconds:10.1f}x"
        print(f"  {who:12} {seconds * 1e6:9.1f} us {ratios} {ulp:10.2f} ulp  {verdict}")
        record = {"op": name, "array": label, "shape": x.shape, "who": who, "seconds": seconds, "ulp": ulp}
        records.append(record | {"verdict": verdict})
    return records


def dispatch_table() -> None:
    print("\nWhat the dispatcher chooses (softmax and logsumexp, float32)")
    for shape in SIZES:
        for op in ("softmax", "logsumexp"):
            print(f"  {fastsoftmax.explain(np.zeros(shape, np.float32), op=op)}")


def main() -> int:
    parser = argparse.ArgumentParser(description="The main job: real logits on every backend, checked and timed.")
    parser.add_argument("--json", type=Path, help="write all results there")
    target = parser.parse_args().json
    fastsoftmax.show_config()
    with np.errstate(all="ignore"):  # NumPy's way warns on rows of -inf
        records = [r for name in OPS for label, x in load().items() for r in job(name, label, x)]
    dispatch_table()
    if target:
        machine = {"processor": platform.processor() or platform.machine(), "config": fastsoftmax.show_config("dicts")}
        target.write_text(json.dumps({"machine": machine, "results": records}, indent=1))
    failed = sum(str(record["verdict"]).startswith("FAILED") for record in records)
    print(f"\n{len(records)} results, {failed} failed their cross-check")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
