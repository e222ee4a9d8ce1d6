"""Worst error in ulp, per function, type and backend, with the set that gives it.

`python tests/worst_ulp.py [backend ...]` prints the table; test_accuracy.py asserts the bounds.
"""

import sys
from functools import lru_cache, partial
from typing import NamedTuple

import accuracy_sets as sets
import numpy as np
import reference as ref

import fastsoftmax


def _log_of_length(x):
    return np.log(ref.LD(x.shape[-1]))


class Measured(NamedTuple):
    """How one function is called, what it should have given, and in whose unit the error is counted."""

    call: object
    exact: object
    at_least: object  # the error is in ulp of max(|exact|, this)
    bounds: dict
    set_names: list


def _bounds(single, double):
    return {"float32": single, "float64": double, "float16": 0.51, "bfloat16": 0.51}


def _softplus(beta):
    return Measured(
        partial(fastsoftmax.softplus, beta=beta), partial(ref.softplus, beta=beta), None, _bounds(3.0, 3.0), ELEMENTS
    )


ROWS = list(sets.ROW_SETS)
ELEMENTS = list(sets.ELEMENT_SETS)

FUNCTIONS = {
    "softmax": Measured(fastsoftmax.softmax, ref.softmax, None, _bounds(3.0, 3.5), ROWS),
    "softmin": Measured(fastsoftmax.softmin, ref.softmin, None, _bounds(3.0, 3.5), ROWS),
    "log_softmax": Measured(fastsoftmax.log_softmax, ref.log_softmax, None, _bounds(2.0, 2.5), ROWS),
    "logsumexp": Measured(partial(fastsoftmax.logsumexp, axis=-1), ref.logsumexp, ref.excess, _bounds(1.5, 2.0), ROWS),
    # one more subtraction, and the same conditioning: log n is the largest that L can be
    "logmeanexp": Measured(
        partial(fastsoftmax.logmeanexp, axis=-1), ref.logmeanexp, _log_of_length, _bounds(2.0, 2.5), ROWS
    ),
    # like logsumexp, a third more for the running rescaling
    "logcumsumexp": Measured(
        fastsoftmax.logcumsumexp,
        ref.logcumsumexp,
        lambda x: ref.cumulative_parts(x)[1],
        _bounds(2.0, 2.66),
        sets.CUMULATIVE_SETS,
    ),
    "sigmoid": Measured(fastsoftmax.sigmoid, ref.sigmoid, None, _bounds(3.0, 3.0), ELEMENTS),
    "softplus": _softplus(1.0),
    "softplus(beta=0.5)": _softplus(0.5),
    "softplus(beta=3.25)": _softplus(3.25),
}


def set_names(function, dtype):
    return list(sets.HALF_SETS) if np.dtype(dtype).itemsize == 2 else FUNCTIONS[function].set_names


@lru_cache(maxsize=2)
def problem(function, dtype, set_name):
    """(input, exact result, unit floor), kept while the backends take their turns."""
    x = sets.load(set_name, dtype)
    if np.dtype(dtype).itemsize == 2 and "70000" in set_name and function == "logcumsumexp":
        x = x[:, :3000]
    with np.errstate(all="ignore"):
        exact = FUNCTIONS[function].exact(x)
        floor = FUNCTIONS[function].at_least(x) if FUNCTIONS[function].at_least else 0
    return x, exact, floor


def measure(function, dtype, set_name, backend):
    """(worst ulp, a line that says where)"""
    x, exact, floor = problem(function, dtype, set_name)
    got = FUNCTIONS[function].call(x, backend=backend)
    assert got.dtype == x.dtype and got.shape == exact.shape
    error = ref.ulp_error(got, exact, at_least=floor)
    at = np.unravel_index(np.argmax(error), error.shape)
    row = x[at[0]] if x.ndim > 1 else x[at]
    say = f"{function} {np.dtype(dtype).name} {backend} {set_name!r}: {float(error[at]):.3f} ulp at {at}"
    say += f", got {got[at]!r}, exact {exact[at]!r}"
    return float(error[at]), say + (f", row {row!r}" if np.size(row) <= 10 else f", row max {row.max()!r}")


def main(backends):
    dtypes = ["float32", "float64", np.float16]
    try:
        from ml_dtypes import bfloat16

        dtypes.append(bfloat16)
    except ImportError:
        print("no bfloat16: pip install ml_dtypes", file=sys.stderr)
    print("| function | dtype | " + " | ".join(backends) + " | worst set |\n|" + "---|" * (len(backends) + 3))
    for function in FUNCTIONS:
        for dtype in dtypes:
            worst = dict.fromkeys(backends, (-1.0, ""))
            for name in set_names(function, dtype):
                for backend in backends:
                    worst[backend] = max(worst[backend], (measure(function, dtype, name, backend)[0], name))
            cells = " | ".join(f"{worst[b][0]:.3f}" for b in backends)
            print(f"| {function} | {np.dtype(dtype).name} | {cells} | {max(worst.values())[1]} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or fastsoftmax.backends())
