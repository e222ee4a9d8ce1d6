"""Hostile calls of the whole Python interface, made from seeds.

`python tests/fuzz_api.py [--cases N] [--seed S] [--first K] [--backend B] [--verbose]` runs a campaign on each backend,
or on one; "None" is the one that is chosen by default, called without backend=. It prints what was found, each with the
seed and the number of its case, with which it can be run alone (--first), and exits with 1 if there was anything. With
--verbose each call is printed before it is made, for crashes and hangs.

A call must either give what the numpy backend gives of plain copies, which itself agrees with tests/reference.py, or
raise an exception that says what is wrong; and write nothing but its result.
"""

import argparse
import ctypes
import faulthandler
import math
import re
import sys
import warnings

import fuzz_arrays as fa
import numpy as np
import reference as ref
from fuzz_arrays import often, pick
from fuzz_calls import ELEMENTWISE, GRADIENTS, LOSSES, MAPS, REDUCTIONS, make

import fastsoftmax as fsm

ARGUMENTS = "x a b g y n axis where temperature bias softcap sink empty dtype out backend beta logits target weight"
ARGUMENTS += " ignore_index label_smoothing reduction z_loss grad_out ids log_probs log_target mode op return_sign"
NAMED = re.compile(rf"\b({'|'.join(ARGUMENTS.split())}|data type)\b", re.IGNORECASE)
#: Worst errors in ulp, of float32, float64 and of half types, against the reference.
BOUNDS = {
    "softmax": (3, 3.5, 0.51),
    "softmin": (3, 3.5, 0.51),
    "log_softmax": (2, 2.5, 0.51),
    "logsumexp": (1.5, 2, 0.51),
    "sigmoid": (3, 3, 0.51),
    "hardmax": (0, 0, 0),
}
SKIP = math.inf  # so large a unit that anything agrees


# ---- what should come out ----


def clean(value):
    """A plain copy, in C order, of what is an array; all else as it is."""
    if value is None or isinstance(value, (fa.Giver, fa.Interface, fa.Sequence, fa.Number)):
        return value
    if isinstance(value, np.ma.MaskedArray):
        return value.copy()
    try:
        x = np.asarray(value)
    except Exception:
        return value
    if isinstance(value, (list, tuple)) and x.size == 0:
        return value  # of which float64 says nothing
    return np.array(x, x.dtype.newbyteorder("="), order="C", subok=False)


def attempt(function, *arguments):
    """The result, or the exception; a warning is one, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return function(*arguments)
        except Exception as error:
            return error


def units_of(call, given, arrays):
    """What a difference is measured in beside a result: per result a number, SKIP where nothing can be said."""
    others = call.others
    if others.get("softcap") is not None:
        return [SKIP] * 2
    if call.name in GRADIENTS:
        return [SKIP] if call.name == "logsumexp_vjp" else [size_of_gradient(call.name, *given)]
    if call.name == "cross_entropy":
        plain = not arrays and not others.get("z_loss") and not others.get("label_smoothing")
        simple = plain and np.asarray(given[1]).dtype.kind in "iu"
        return [0.0 if simple else SKIP, *[1.0 if simple else SKIP] * 2]
    if call.name in ("logsumexp", "logmeanexp", "logcumsumexp"):
        return [math.log(np.size(given[0]) + 3)] * 2
    return [0.0, math.log(np.size(given[0]) + 3)]  # with return_lse


def size_of_gradient(name, g, y):
    with np.errstate(all="ignore"):
        g, y = (float(np.max(np.abs(np.asarray(a, np.float64)), initial=0)) for a in (g, y))
        size = g * y * (1 + np.size(y) * y) if name == "softmax_vjp" else g + np.exp(np.float64(y)) * g * 1e4
    return size if 1e-30 < size < 1e30 or size == 0 else SKIP  # where y is no softmax, subnormal sums count


def disagreement(got, want, unit):
    """What is wrong with a result, or None."""
    if type(got) is not type(want) and not (
        isinstance(got, (np.ndarray, np.generic)) and np.shape(got) == np.shape(want)
    ):
        return f"{type(got).__name__} of shape {np.shape(got)}, not {type(want).__name__} of {np.shape(want)}"
    if not isinstance(want, (np.ndarray, np.generic)):
        return None
    if got.dtype != want.dtype or not got.dtype.isnative:
        return f"{got.dtype}, not {want.dtype}"
    if unit == SKIP or not want.size:
        return None
    if want.dtype.name not in ref.FORMATS:
        return None if np.array_equal(got, want, equal_nan=True) else f"{got!r}, not {want!r}"
    worst = ref.ulp_error(np.ravel(got), np.ravel(want), at_least=unit).max()
    return None if worst <= 12 else f"{float(worst):.3g} ulp from the numpy backend: {got!r}, not {want!r}"


def off_reference(call, x, got):
    """What is wrong with a plain result by the reference, or None."""
    name, x = call.name, np.asarray(x)
    keywords = set(call.others) - {"axis", "dtype", "keepdims", "backend"}
    if name not in BOUNDS or keywords or call.arrays or not isinstance(got, (np.ndarray, np.generic)):
        return None
    if got.dtype.name not in ref.FORMATS or x.dtype.kind == "c" or not 0 < x.size < 2000:
        return None
    if x.dtype.kind == "f" or x.dtype == fa.BFLOAT16 or got.dtype != np.float64:
        with np.errstate(all="ignore"):
            x = x.astype(got.dtype)
    if name in ("sigmoid",):
        exact = getattr(ref, name)(x)
    else:
        axis = call.others.get("axis", None if name == "logsumexp" else -1)
        axis = axis if axis is None or isinstance(axis, tuple) else int(axis)
        exact = ref.over(getattr(ref, name), x, axis, name == "logsumexp").reshape(got.shape)
    at_least = ref.over(ref.excess, x, axis, True).reshape(got.shape) if name == "logsumexp" else 0
    worst = ref.ulp_error(np.ravel(got), np.ravel(exact), at_least=np.ravel(at_least)).max()
    bound = BOUNDS[name][{"float32": 0, "float64": 1}.get(got.dtype.name, 2)]
    return None if worst <= bound else f"{float(worst):.3g} ulp from the reference: {got!r}, not {exact!r}"


# ---- memory ----


def bounds_of(a):
    """The first byte of an array, and how many there are to its last."""
    reaches = [(n - 1) * step for n, step in zip(a.shape, a.strides, strict=True)] if a.size else []
    low = sum(min(0, reach) for reach in reaches)
    return a.ctypes.data + low, sum(abs(reach) for reach in reaches) + a.itemsize if a.size else 0


class Memory:
    """All memory that the arrays of a call lie in, as it is before the call."""

    def __init__(self, arrays):
        self.blocks = {}
        for root in arrays:
            while isinstance(root, np.ndarray) and isinstance(root.base, np.ndarray):
                root = root.base
            if isinstance(root, np.ndarray) and not root.dtype.hasobject:
                low, count = bounds_of(root)
                now = np.frombuffer((ctypes.c_uint8 * count).from_address(low), np.uint8)
                self.blocks[low] = (root, now, now.copy())

    def is_changed(self, result=None):
        """Whether any byte is another, but for those of the result."""
        for low, (_, now, before) in self.blocks.items():
            if result is not None and result.size and low <= bounds_of(result)[0] < low + now.size:
                view = np.ndarray(result.shape, result.dtype, before, result.ctypes.data - low, result.strides)
                view[...] = result.view(np.ndarray)
            if not np.array_equal(now, before):
                return True
        return False


# ---- out ----


def place(rng, call, want):
    """An array for the result, and whether it is a wrong one."""
    if call.name == "cross_entropy" and isinstance(want, tuple):
        want = want[-1]
    elif isinstance(want, tuple):
        want = want[0]
    if not isinstance(want, (np.ndarray, np.generic)):
        return np.zeros((2, 3)), False
    shape, dtype = np.shape(want), want.dtype
    sign = bool(call.name == "logsumexp" and call.others.get("return_sign"))
    if often(rng, 0.2):
        return pick(rng, WRONG_OUTS)(shape, dtype), True
    if often(rng, 0.4) and call.name not in REDUCTIONS:
        at = pick(rng, range(2 if call.name in GRADIENTS else 1))
        x = call.given[at]
        if type(x) is np.ndarray and x.shape == shape and x.dtype == dtype:
            call.given[at], out = overlapping(rng, x)
            return out, sign
    out = fa.laid_out(rng, np.zeros(shape, dtype), repeated=False)
    good = out.flags.writeable and out.dtype.isnative
    return (out if good else np.zeros(shape, dtype)), sign


def overlapping(rng, x):
    """x and an array over the same memory: in place, shifted, or reversed."""
    memory = np.zeros(2 * x.size + 8, x.dtype)
    moved = memory[: x.size].reshape(x.shape)
    moved[...] = x
    shift = pick(rng, [0, 0, 1, x.size // 2])
    out = memory[shift : shift + x.size].reshape(x.shape)
    return moved, out[::-1] if out.ndim and often(rng, 0.2) else out


def frozen(a):
    a.flags.writeable = False
    return a


WRONG_OUTS = (
    lambda shape, dtype: np.zeros((*shape, 2), dtype),
    lambda shape, dtype: np.zeros((2, *shape), dtype)[0].reshape(-1)[:0].reshape(0, 3, 5),
    lambda shape, dtype: np.zeros(shape, "i4"),
    lambda shape, dtype: np.zeros(shape, "f8" if dtype == "f4" else "f4"),
    lambda shape, dtype: frozen(np.zeros(shape, dtype)),
    lambda shape, dtype: np.ma.zeros(shape, "f8"),
    lambda shape, dtype: np.zeros(shape, object),
    lambda shape, dtype: [0.0],
    lambda shape, dtype: "out",
    lambda shape, dtype: 5,
    lambda shape, dtype: (np.zeros(shape, dtype),),
    lambda shape, dtype: memoryview(bytearray(64)),
    lambda shape, dtype: np.broadcast_to(np.zeros((), dtype), (*shape, 3)),
    lambda shape, dtype: fa.Giver(lambda: np.zeros(shape, dtype)),
)


# ---- a case ----

REFUSALS = (ValueError, TypeError, IndexError, MemoryError, fa.LieError)


def judge_refusal(error, want, call, memory):
    text = f"{type(error).__name__}: {error}"
    if not isinstance(error, REFUSALS):
        return text
    if not isinstance(error, (fa.LieError, MemoryError)) and not NAMED.search(str(error)):
        return f"names nothing: {text}"
    if not isinstance(want, Exception) and not call.wrong_out:
        return f"refused, though plain copies are not: {text}"
    return f"bytes were written in spite of {text}" if memory.is_changed() else None


def judge_result(got, want, call, memory, units, x):
    if isinstance(want, Exception):
        return f"accepted, though plain copies are refused: {want!r}"
    if call.wrong_out:
        return "took a wrong out"
    if memory.is_changed(call.out):
        return "bytes were written that are none of the result's"
    got, want = (a if isinstance(a, tuple) else (a,) for a in (got, want))
    if len(got) != len(want):
        return f"{len(got)} results, not {len(want)}"
    if call.out is not None and got[-1 if call.name == "cross_entropy" else 0] is not call.out:
        return "does not return out"
    pairs = zip(got, want, [*units, *[units[-1]] * len(got)], strict=False)
    return next(filter(None, (disagreement(*pair) for pair in pairs)), None) or off_reference(call, x, got[0])


def run_case(seed, number, backend, verbose=False):
    """What is wrong with a case, or None."""
    rng = np.random.default_rng([seed, number])
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        call = make(rng)
        with_out = often(rng, 0.3) and call.name in (*MAPS, *REDUCTIONS, *ELEMENTWISE, *GRADIENTS, *LOSSES[:2])
        if with_out and call.name == "cross_entropy":
            call.others["return_grad"] = True
        given, arrays = [clean(a) for a in call.given], {name: clean(a) for name, a in call.arrays.items()}
        want = attempt(call.run, given, arrays, "numpy")
        if with_out:
            call.out, call.wrong_out = place(rng, call, want)
        units = [SKIP] if isinstance(want, Exception) else units_of(call, given, arrays)
        memory = Memory([*call.given, *call.arrays.values(), call.out])
        text = str(call)
    if verbose:
        print(f"{number}: {text}", flush=True)
    with np.errstate(all="raise" if often(rng, 0.3) else "warn"):
        got = attempt(call.run, call.given, call.arrays, backend, call.out)
    with np.errstate(all="ignore"):
        if isinstance(got, Exception):
            problem = judge_refusal(got, want, call, memory)
        else:
            problem = judge_result(got, want, call, memory, units, given[0])
    return problem and f"{problem}\n    {text}"


def campaign(cases, seed, backend, first=0, verbose=False, report=print, most=math.inf):
    """How many findings there are, up to so many; each is reported."""
    found = 0
    for number in range(first, first + cases):
        faulthandler.dump_traceback_later(120, exit=True)
        problem = run_case(seed, number, backend, verbose)
        if problem:
            found += 1
            report(f"backend {backend}, seed {seed}, case {number}: {problem}")
            if found >= most:
                break
    faulthandler.cancel_dump_traceback_later()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--backend")
    parser.add_argument("--verbose", action="store_true")
    asked = parser.parse_args()
    faulthandler.enable()
    every = (*fsm.backends(), None)
    backends = every if asked.backend is None else [None if asked.backend == "None" else asked.backend]
    found = 0
    for backend in backends:
        findings = campaign(asked.cases, asked.seed, backend, asked.first, asked.verbose)
        print(f"{backend}: {asked.cases} cases, {findings} findings", flush=True)
        found += findings
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
