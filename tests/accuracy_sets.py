"""The input sets of the accuracy promise, sized so that all backends take minutes.

Each set is a (rows, n) array or, for the element-wise functions, one row. The sizes are the promise's up to 1e6;
only the number of rows is small. Longer rows are in LONG_SETS, for `python tests/worst_ulp.py --long`. The worst rows
that were ever found (found_rows.py) are sets, too.
"""

from functools import cache

import found_rows
import numpy as np

# Below -width e^x is under half the smallest subnormal number; lowest subnormal and largest finite follow.
WIDTH = {"float32": 103.0, "float64": 744.0}


def _rng(seed):
    return np.random.default_rng(seed)


def _uniform(offset, rows=24, n=1000):
    return lambda dtype: _rng(int(abs(offset) * 10)).uniform(-WIDTH[dtype], 0, (rows, n)) + offset


def _every_short_length(dtype):
    """N(0,1) at n = 2..70: the rows of all lengths in one array, shorter ones padded with -inf to no effect."""
    x = np.full((69 * 6, 70), -np.inf)
    for i in range(69 * 6):
        n = 2 + i // 6
        x[i, :n] = _rng(i).normal(size=n)
    return x


def _constants(dtype):
    top = float(np.finfo(dtype).max)
    least = float(np.finfo(dtype).smallest_subnormal)
    values = [0.0, 0.1, -0.1, 1.0, 77.7, -1000.3, 1e-3, 1e30, -1e30, top, -top, least]
    return np.repeat(np.array(values)[:, None], 777, axis=1)


def _gaps(dtype):
    k = np.concatenate([np.linspace(0, WIDTH[dtype] + 2, 6000), np.geomspace(1e-9, 1, 500)])
    return np.stack([np.zeros_like(k), -k], axis=1)


def _gaps_from_below(dtype):
    return _gaps(dtype)[:, ::-1] + 13.0


def _one_big(dtype):
    x = np.full((2, 1_000_000), -17.0)
    x[0, 123_456], x[1, -1] = 0.0, 0.5
    return x


def _ramp(kind, slope):
    def make(dtype):
        x = np.arange(20_000) * slope - 37.0
        return {"up": x, "down": x[::-1], "shuffled": _rng(4).permutation(x)}[kind][None]

    return make


def _subnormal(dtype):
    tiny = float(np.finfo(dtype).tiny)
    x = _rng(6).uniform(-tiny, tiny, (6, 500))
    x[:3, 0], x[1:3, 1] = -80.0, -50.0
    return x


def _near_the_top(dtype):
    top = float(np.finfo(dtype).max)
    x = _rng(7).uniform(0.5, 1, (6, 300)) * top * np.array([1, -1, 1, 1, -1, 1])[:, None]
    x[3:] = np.where(_rng(8).random((3, 300)) < 0.5, x[3:], -x[3:])
    x[0, :3], x[5, :2] = top, (top, -top)
    return x


def _subnormal_results(dtype):
    """Results within the last few subnormal binades, where an early rounding would show."""
    bits = {"float32": 24, "float64": 53}[dtype]
    low = -WIDTH[dtype]
    x = _rng(9).uniform(low - 1, low + bits, (16, 400))
    x[:, 0] = 0.0
    return x


def _dominated(dtype):
    """One element well above the others: nearly all of the sum's and the product's rounding shows."""
    x = _rng(18).normal(0, 4, (3000, 100))
    x[:, 0] = _rng(19).uniform(10, 30, 3000)
    return x


def _vanishing(dtype):
    """One zero and many numbers whose exponentials each are below the smallest subnormal, but not their sum."""
    x = np.full((6, 100_001), -np.inf)
    for row, below, many in zip(x, np.linspace(0.3, 8, 6), (10, 100, 1000, 10_000, 100_000, 100_000), strict=True):
        row[1 : many + 1] = -(745.2 if dtype == np.float64 else 104.0) - below
        row[0] = 0
    return x


def _around_the_shift(dtype):
    """Maxima on both sides of the threshold where a kernel may change how it takes the maximum out."""
    limit = 2 * (WIDTH[dtype] + 1)
    tops = np.concatenate([np.linspace(0.5, 1.2, 20) * limit, np.linspace(0.5, 1.2, 20) * -limit])
    return tops[:, None] - _rng(10).uniform(0, WIDTH[dtype], (40, 333))


def _maxima_nearly_equal(dtype):
    """All elements within a few ulp of one number, which is anywhere: the maximum is hardly one."""
    tops = np.array([1e-30, 0.01, 0.7, 1.0, 3.3, 20.0, 77.7, 250.0, 1e4, -1e-30, -0.3, -1.0, -50.1, -2e3, 1e30])
    x = np.repeat(tops[:, None], 130, axis=1).astype(dtype)
    return x + _rng(23).integers(-4, 5, x.shape) * np.spacing(abs(x))


def _sums_near_powers_of_two(dtype):
    """2^k - 1 zeros and one number below: the sum is just above or below a power of two, or halfway between numbers."""
    bits = {"float32": 24, "float64": 53}[dtype]
    below = np.concatenate([-np.geomspace(2.0**-bits, 2, 30), -np.arange(1, bits + 5) * np.log(2)])
    x = np.full((7 * len(below), 128), -np.inf)
    for i in range(len(x)):
        count = 1 << i % 7
        x[i, :count] = 0
        x[i, count - 1 if i % 2 and count > 1 else count] = below[i // 7]
    return x


def _eight_apart(dtype):
    """Two terms beside the maximum that are added to each other before anything else, and little but them."""
    x = np.full((20_000, 10), -np.inf)
    x[:, 1] = _rng(27).choice([0.0, 0.0013, 5.7, -3.3], 20_000)
    x[:, [0, 8]] = x[:, 1:2] - _rng(28).uniform(0.5, 9, (20_000, 2))
    return x


def _logsumexp_near_zero(dtype):
    """The sum is 1 but for rounding: the maximum and the logarithm cancel."""
    x = _rng(24).normal(0, np.geomspace(0.01, 30, 60)[:, None], (60, 333))
    x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
    return x


def _all_magnitudes(dtype):
    """Huge and tiny numbers of both signs in one row."""
    info = np.finfo(dtype)
    low, high = np.log2(float(info.smallest_subnormal)), np.log2(float(info.max))
    x = np.exp2(_rng(25).uniform(low, high, (200, 40))) * _rng(26).choice([-1, 1], (200, 40))
    x[::2] = np.clip(x[::2], -WIDTH[dtype], 9)  # where more than one of them counts
    return x


ROW_SETS = {
    "N(0,1) n=2..70": _every_short_length,
    "N(0,1) n=1000": lambda dtype: _rng(11).normal(size=(24, 1000)),
    "N(0,1) n=50257": lambda dtype: _rng(12).normal(size=(2, 50257)),
    "N(0,1) n=1e6": lambda dtype: _rng(13).normal(size=(1, 1_000_000)),
    "N(0,3) n=128256": lambda dtype: _rng(14).normal(0, 3, (1, 128256)),
    "N(0,8) n=1e6": lambda dtype: _rng(15).normal(0, 8, (1, 1_000_000)),
    "N(0,10) n=10": lambda dtype: _rng(16).normal(0, 10, (2000, 10)),
    "N(0,10) n=1000": lambda dtype: _rng(17).normal(0, 10, (24, 1000)),
    "U(-W,0)": _uniform(0.0),
    "U(-W,0)+0.3": _uniform(0.3),
    "U(-W,0)+77.7": _uniform(77.7),
    "U(-W,0)-1000.3": _uniform(-1000.3),
    "U(-W,0)+0.3 n=10": _uniform(0.3, 2000, 10),
    "constants": _constants,
    "[0,-k]": _gaps,
    "[13-k,13]": _gaps_from_below,
    "one big, 1e6 tiny": _one_big,
    "ramp up": _ramp("up", 0.01),
    "ramp down": _ramp("down", 0.01),
    "ramp shuffled": _ramp("shuffled", 0.01),
    "ramp slow": _ramp("up", 1e-4),
    "subnormal inputs": _subnormal,
    "near the largest": _near_the_top,
    "subnormal results": _subnormal_results,
    "dominated": _dominated,
    "vanishing 1e5": _vanishing,
    "around the shift": _around_the_shift,
    "maxima nearly equal": _maxima_nearly_equal,
    "sums near powers of two": _sums_near_powers_of_two,
    "two terms eight apart": _eight_apart,
    "logsumexp near 0": _logsumexp_near_zero,
    "all magnitudes": _all_magnitudes,
}


def _found(texts):
    return lambda dtype: np.stack([found_rows.row_of(text, dtype) for text in texts])


FOUND = found_rows.by_length()
FOUND_SMALL = {f"found below 1e4 n={n}": _found(texts) for n, texts in found_rows.by_length(1e4).items() if n > 1}
ROW_SETS |= {f"found n={n}": _found(texts) for n, texts in FOUND.items() if n > 1}

# Sets of bounded length, for references that are Python loops, and for functions that share their rows with others.
SHORT_SETS = [
    name for name in ROW_SETS if not any(long in name for long in ("1e6", "1e5", "50257", "128256", "slow", "shuffled"))
]
CUMULATIVE_SETS = [name for name in SHORT_SETS if name not in {f"found n={n}" for n in FOUND if n > 300}]

# Of finite numbers below 1e4, more than one a row: for sums of them, and gradients.
ORDINARY_SETS = [
    *("N(0,1) n=1000", "N(0,1) n=50257", "N(0,10) n=10", "U(-W,0)+0.3", "U(-W,0)+77.7", "[0,-k]", "[13-k,13]"),
    *("ramp up", "subnormal inputs", "subnormal results", "dominated", "logsumexp near 0"),
    *FOUND_SMALL,
]


# On demand: a row of 10^7 takes the reference seconds.
def _long(make):
    return lambda dtype: make(10_000_000)[None]


LONG_SETS = {
    "N(0,1) n=1e7": _long(lambda n: _rng(41).normal(size=n)),
    "N(0,10) n=1e7": _long(lambda n: _rng(42).normal(0, 10, n)),
    "U(-100,0) n=1e7": _long(lambda n: _rng(43).uniform(-100, 0, n)),
    "constant n=1e7": _long(lambda n: np.full(n, 0.1)),
    "one big, 1e7 tiny": _long(lambda n: np.where(np.arange(n) == n // 3, 0.7, -19.3)),
    "ramp up n=1e7": _long(lambda n: np.arange(n) * 1e-5),
    "ramp down n=1e7": _long(lambda n: -np.arange(n) * 1e-5),
}


def _all_halves(column):
    """[x, c] for every finite float16 x, or every finite bfloat16 x as the dtype says."""

    def make(dtype):
        x = np.arange(2**16, dtype=np.uint16).view(dtype)
        x = x[np.isfinite(x.astype(np.float32))]
        return np.stack([x, np.full_like(x, column)], axis=1)

    return make


def _half_rows(dtype):
    return _rng(21).normal(0, 4, (64, 1000))


def _half_long(dtype):
    """More equal values than float16 can count."""
    return np.concatenate([np.zeros((1, 70_000)), _rng(22).normal(size=(1, 70_000))])


HALF_SETS = {
    "every x in [x,0]": _all_halves(0.0),
    "every x in [x,5.5]": _all_halves(5.5),
    "every x in [x,-3]": _all_halves(-3.0),
    "N(0,4) n=1000": _half_rows,
    "equal and N(0,1) n=70000": _half_long,
}


def _bit_patterns(count):
    """Finite floats evenly spread over the bit patterns: every exponent, both signs, subnormals too."""

    def make(dtype):
        unsigned = {"float32": np.uint32, "float64": np.uint64}[dtype]
        spacing = 2 ** (8 * np.dtype(unsigned).itemsize) // count | 1
        x = (np.arange(count, dtype=np.uint64) * np.uint64(spacing)).astype(unsigned).view(dtype)
        return x[np.isfinite(x)]

    return make


def _pairs_with_zero(dtype):
    """[x, 0] for every 997th float32 (as many float64); where nothing happens, every 16th of those."""
    x = _bit_patterns(2**32 // 997)(dtype)
    bits = np.finfo(dtype).nmant + 11
    busy = (abs(x) > 2.0**-bits) & (abs(x) < 8 * WIDTH[dtype])
    x = x[busy | (np.arange(x.size) % 16 == 0)]
    return np.stack([x, np.zeros_like(x)], axis=1)


ROW_SETS["[x,0], all exponents"] = _pairs_with_zero

ELEMENT_SETS = {
    "N(0,1)": lambda dtype: _rng(31).normal(size=50_000),
    "U(-W-2,W+2)": lambda dtype: _rng(32).uniform(-WIDTH[dtype] - 2, WIDTH[dtype] + 2, 100_000),
    "U(-40,40)": lambda dtype: _rng(33).uniform(-40, 40, 100_000),
    "near zero": lambda dtype: np.concatenate([np.geomspace(1e-300, 1, 5000), -np.geomspace(1e-300, 1, 5000)]),
    "all exponents": _bit_patterns(200_000),
    "found": lambda dtype: np.array([float.fromhex(text) for text in FOUND.get(1, ["0x0p+0"])]),
}


#: Rows that a search for bad ones has found, and such as were made after them.
SEARCHED = {"two terms eight apart", "found", *FOUND_SMALL, *(name for name in ROW_SETS if name.startswith("found"))}


@cache
def _sets():
    return ROW_SETS | FOUND_SMALL | HALF_SETS | ELEMENT_SETS | LONG_SETS


def load(name, dtype):
    """The set in its type: what a kernel gets and what the reference takes exactly."""
    made = _sets()[name](dtype if isinstance(dtype, str) else np.dtype(dtype))
    with np.errstate(all="ignore"):
        x = np.asarray(made).astype(dtype)
        assert not np.isnan(x.astype(np.float32)).any()
    return np.ascontiguousarray(x)
