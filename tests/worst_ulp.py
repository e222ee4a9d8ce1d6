"""Worst error in ulp, per function and type, with the set that gives it; test_accuracy.py asserts the bounds.

python tests/worst_ulp.py [--long] [--write] [backend ...]

prints a table of the backends (by default the best, and those that may give other bits), and the rows that are worst.
--long takes rows of 10^7 instead, which are too long for the suite. --write puts the table into tests/README.md.
"""

import argparse
import sys
from functools import lru_cache
from pathlib import Path

import accuracy_sets as sets
import measured
import numpy as np

import fastsoftmax

README = Path(__file__).with_name("README.md")
BEGIN, BEGIN_LONG = "<!-- table: tests/worst_ulp.py -->", "<!-- table: tests/worst_ulp.py --long -->"
END = "<!-- end of table -->"
LONG_FUNCTIONS = ("softmax", "log_softmax", "logsumexp", "cross_entropy")


@lru_cache(maxsize=2)
def problem(function, dtype, set_name):
    """(set, (inputs, exact result, unit floor)), kept while the backends take their turns."""
    x = sets.load(set_name, dtype)
    if np.dtype(dtype).itemsize == 2 and "70000" in set_name and function == "logcumsumexp":
        x = x[:, :3000]
    return x, measured.exactly_what(function, x)


def measure(function, dtype, set_name, backend):
    """(worst ulp, where in the set, what to say of it)"""
    x, exact = problem(function, dtype, set_name)
    error, got = measured.errors(function, exact, backend)
    at = np.unravel_index(np.argmax(error), error.shape)
    row = x[at[0]] if x.ndim > 1 else x[at]
    say = f"{function} {np.dtype(dtype).name} {backend} {set_name!r}: {float(error[at]):.3f} ulp at {at}"
    say += f", got {got[at]!r}, exact {exact[1][at]!r}, {input_text(set_name, at, row)}"
    return float(error[at]), at, say


def input_text(set_name, at, row):
    """Short rows as they are, and of long ones which it is."""
    if np.size(row) <= 20:
        return "[" + " ".join(float(v).hex() for v in np.atleast_1d(row)) + "]"
    return f"{set_name}, row {at[0]}"


def dtypes():
    yield from ("float32", "float64", np.float16)
    try:
        from ml_dtypes import bfloat16

        yield bfloat16
    except ImportError:
        print("no bfloat16: pip install ml_dtypes", file=sys.stderr)


def worst_of(function, dtype, set_names, backends):
    """{backend: (worst ulp, set, where)}"""
    worst = dict.fromkeys(backends, (-1.0, "", ()))
    for name in set_names:
        for backend in backends:
            error, at, _ = measure(function, dtype, name, backend)
            worst[backend] = max(worst[backend], (error, name, at))
    return worst


def lines_of(function, dtype, set_names, backends):
    """A line of the table, and one that says what the worst input of the first backend is."""
    worst = worst_of(function, dtype, set_names, backends)
    kind, promised = np.dtype(dtype).name, measured.FUNCTIONS[function].bounds[np.dtype(dtype).name]
    first, name, at = worst[backends[0]]
    x = problem(function, dtype, name)[0]
    place = tuple(int(i) for i in at)
    where = input_text(name, at, x[at[0]] if x.ndim > 1 else x[at])
    cells = " | ".join(f"{error:.4f}" if error <= promised else f"**{error:.4f}**" for error, _, _ in worst.values())
    return (
        f"| `{function}` | {kind} | {promised} | {cells} | {name} |",
        f"{function} {kind} {first:.4f} at {place}: {where}",
    )


def table(backends, long=False):
    """Lines of Markdown."""
    lines = [f"| function | type | promised | {' | '.join(backends)} | worst set |"]
    lines.append("|---|---|" + "---:|" * (len(backends) + 1) + "---|")
    inputs = []
    for function in LONG_FUNCTIONS if long else measured.FUNCTIONS:
        for dtype in ("float32", "float64") if long else dtypes():
            names = list(sets.LONG_SETS) if long else measured.set_names(function, dtype)
            if names:
                line, worst = lines_of(function, dtype, names, backends)
                lines.append(line)
                inputs.append(worst)
                print(line, worst, sep="\n", file=sys.stderr)
    return [*lines, "", "```", *inputs, "```"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--long", action="store_true", help="rows of 10^7")
    parser.add_argument("--write", action="store_true", help="into tests/README.md")
    there = fastsoftmax.backends()
    others = [name for name in there[1:] if name in ("c-scalar", "numpy")]  # those that may give other bits
    parser.add_argument("backends", nargs="*", default=[there[0], *others], metavar="backend")
    given = parser.parse_args()
    lines = "\n".join(table(given.backends, given.long))
    if not given.write:
        print(lines)
        return
    begin = BEGIN_LONG if given.long else BEGIN
    before, rest = README.read_text().split(begin)
    README.write_text(f"{before}{begin}\n{lines}\n{END}{rest.split(END, 1)[1]}")


if __name__ == "__main__":
    main()
