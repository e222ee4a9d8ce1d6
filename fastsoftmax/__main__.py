"""python -m fastsoftmax info | check | tune"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from . import _backends, _config
from ._backends.numpy import NumpyBackend

LENGTHS = (1, 2, 7, 64, 129, 1000, 20_000)
#: Worst accepted difference of two backends, each within its own bound, in units of the last place.
ULPS = 8.0


def worst_ulps(name: str, op: str, dtype: type[np.floating], rng: np.random.Generator) -> float:
    """The largest distance between a backend and NumPy on random rows of every length, in units of the last place."""
    backend, reference, worst = _backends.load(name), NumpyBackend(), 0.0
    for n in LENGTHS:
        x = rng.normal(0, 10, (max(1, 4000 // n), n)).astype(dtype)
        shape = x.shape[:1] if op in _backends.ROW_REDUCTIONS else x.shape
        y, expected = np.empty(shape, dtype), np.empty(shape, dtype)
        backend.run(op, x, y, len(x), n, 1, _config.get_num_threads())
        reference.run(op, x, expected, len(x), n, 1, 1)
        # where a sum of logarithms passes through 0 its terms, of the size of 1, set the scale
        floor = 1.0 if op.startswith("log") and op != "log_softmax" else 0.0
        unit = np.spacing(np.maximum(np.abs(expected), dtype(floor)))
        worst = max(worst, float(np.max(np.abs(y - expected) / unit)))
    return worst


def check() -> int:
    """Every backend against NumPy; the number of operations that differ."""
    rng, failures = np.random.default_rng(0), 0
    for name in _config.backends():
        for dtype in (np.float32, np.float64):
            results = {op: worst_ulps(name, op, dtype, rng) for op in _backends.OPS}
            failed = [op for op, ulps in results.items() if not ulps <= ULPS]
            failures += len(failed)
            verdict = f"FAILED: {', '.join(failed)}" if failed else "ok"
            print(f"{name:10} {dtype.__name__:8} {verdict:6} worst {max(results.values()):.1f} ulp from numpy")
    return failures


def tune(output: Path | None, quick: bool) -> int:
    """Measure and print the crossovers of this machine."""
    from . import _tune

    if output is not None and not output.absolute().parent.is_dir():  # to be known before the minute is over
        print(f"--output: there is no folder {output.parent}", file=sys.stderr)
        return 2
    if output is not None and output.is_dir():
        print(f"--output: {output} is a folder", file=sys.stderr)
        return 2
    table = _tune.tune(_tune.QUICK if quick else _tune.SECONDS)
    print(_tune.text(table))
    if output is not None:
        try:
            _tune.write(table, output)
        except OSError as error:
            print(f"--output: {output}: {error.strerror}", file=sys.stderr)
            return 1
        print(f"\nTo use it: FASTSOFTMAX_CROSSOVERS={output.absolute()}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fastsoftmax", description="softmax and log-sum-exp for NumPy")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="what is installed and what runs here")
    commands.add_parser("check", help="every backend against NumPy on random rows")
    tuning = commands.add_parser("tune", help="measure, for a minute, from which sizes threads and Numba pay here")
    tuning.add_argument("--output", type=Path, metavar="FILE", help="write the table, for FASTSOFTMAX_CROSSOVERS")
    tuning.add_argument("--quick", action="store_true", help="a few seconds, roughly")
    arguments = parser.parse_args()
    if arguments.command == "tune":
        return tune(arguments.output, arguments.quick)
    if arguments.command == "check":
        return 1 if check() else 0
    _config.show_config()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
