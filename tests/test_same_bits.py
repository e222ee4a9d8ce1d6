"""Equality, bit for bit: between every FMA instruction set and Numba, and within each backend between layouts,
axes, batches, places, thread counts, in place or not (NUMERICS.md §4)."""

import itertools

import numpy as np
import pytest
from conftest import FMA_BACKENDS
from layouts import LAYOUTS, assert_same_bits

import fastsoftmax as fsm

pytestmark = pytest.mark.usefixtures("split_early")


def positive_like(x):
    """Weights that depend on each element alone, so that they move with it."""
    return np.where(np.isfinite(x), x - np.floor(np.where(np.isfinite(x), x, 0)) + 0.5, 1).astype(x.dtype)


FUNCTIONS = {
    "softmax": fsm.softmax,
    "log_softmax": fsm.log_softmax,
    "softmin": fsm.softmin,
    "hardmax": fsm.hardmax,
    "logcumsumexp": fsm.logcumsumexp,
    "logsumexp": lambda x, axis=-1, **k: fsm.logsumexp(x, axis=axis, **k),
    "logmeanexp": lambda x, axis=-1, **k: fsm.logmeanexp(x, axis=axis, **k),
    "logsumexp with b": lambda x, axis=-1, **k: fsm.logsumexp(x, axis=axis, b=positive_like(x), **k),
    "sigmoid": lambda x, axis=-1, **k: fsm.sigmoid(x, **k),
    "softplus": lambda x, axis=-1, **k: fsm.softplus(x, **k),
    "softplus beta": lambda x, axis=-1, **k: fsm.softplus(x, beta=1.5, **k),
}
INTO_OUT = [name for name in FUNCTIONS if not name.startswith("log") or name in ("log_softmax", "logcumsumexp")]
LENGTHS = [1, 2, 3, 5, 8, 10, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 255, 256, 257, 1000, 1024]
LONG = [8191, 8192, 8193, 16383, 16384, 16385, 50_257, 131_072 + 77]


def values(kind, rows, n, dtype):
    """Ordinary logits, wide ones (most terms underflow), ones far from zero, ties, special values here and there."""
    rng = np.random.default_rng(n)
    with np.errstate(all="ignore"):
        x = {
            "ordinary": lambda: rng.normal(0, 3, (rows, n)),
            "wide": lambda: rng.uniform(-750 if dtype == "float64" else -104, 0, (rows, n)) + 0.3,
            "far": lambda: rng.normal(0, 3, (rows, n)) - 5000.3,
            "up": lambda: np.sort(rng.normal(0, 30, (rows, n))),
            "ties": lambda: rng.integers(-2, 3, (rows, n)) * 1.7,
            "special": lambda: np.where(
                rng.random((rows, n)) < 0.6 / n,
                rng.choice([np.nan, np.inf, -np.inf, 1e-310, 3e38, -3e38], (rows, n)),
                rng.normal(0, 1, (rows, n)),
            ),
        }[kind]()
        return x.astype(dtype)


@pytest.fixture(params=list(FUNCTIONS))
def name(request):
    return request.param


@pytest.mark.parametrize("kind", ["ordinary", "wide", "far", "up", "ties", "special"])
def test_between_backends(name, kind, dtype, fma_backend):
    f = FUNCTIONS[name]
    for n in LENGTHS + (LONG if kind in ("ordinary", "up") else [8193]):
        x = values(kind, 3 if n > 2000 else 7, n, dtype)
        want = f(x, backend=FMA_BACKENDS[0])
        assert_same_bits(f(x, backend=fma_backend), want, f"n={n}, {fma_backend} against {FMA_BACKENDS[0]}")


@pytest.mark.parametrize("n", [256, 1000, 8192, 100_000])
def test_a_maximum_that_was_guessed_wrong(n, dtype, backend):
    """Where the maximum is is not known beforehand to all kernels; in place it has to be."""
    random = np.random.default_rng(n)
    lonely = (0.0, 20.0, 22.0, 23.0, 90.0, 1e5, np.inf, np.nan)
    for base, lone in itertools.product((0.0, -40.0, -1e5, -np.inf), lonely):
        x = random.normal(base, 3 if np.isfinite(base) else 0, (3, n)).astype(dtype)
        x[1, 32 if n < 8192 else 1024] = lone
        want = x.copy()
        fsm.softmax(want, out=want, backend=backend)
        assert_same_bits(fsm.softmax(x, backend=backend), want, f"{lone} among {base}")


@pytest.fixture(params=["float16", "bfloat16"])
def half(request):
    return request.getfixturevalue("bfloat16") if request.param == "bfloat16" else np.float16


def rounded_once(y, half):
    with np.errstate(all="ignore"):
        return np.asarray(y).astype(half)


def settled(y):
    """With one NaN for all: the sign of NumPy's is any."""
    return np.where(np.isnan(y), np.array(np.nan, y.dtype), y)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in ("logsumexp with b", "softplus beta")])
@pytest.mark.parametrize("kind", ["ordinary", "wide", "special"])
def test_halves_are_float32_rounded_once(name, kind, half, backend, thread_count, split_early):
    """Whatever layer converts: from and to every length and layout of rows. Two functions are computed wider yet."""
    f = FUNCTIONS[name]
    for rows, n in [*((7, n) for n in LENGTHS), (300, 40), (3, 8192), (2, 8193), (1, 40_000), (5, 20_001)]:
        x = rounded_once(values(kind, rows, n, "float32"), half)
        want = settled(rounded_once(f(x.astype("f4"), backend=backend), half))
        assert_same_bits(settled(f(x, backend=backend)), want, f"{rows} x {n}")
        if rows * n < 50_000:
            assert_same_bits(settled(f(x.T.copy(), axis=0, backend=backend)), want.T, f"{rows} x {n} down the columns")
            apart = np.repeat(x, 2, axis=1)[::-1, ::2]
            assert_same_bits(settled(f(apart, backend=backend)), want[::-1], f"{rows} x {n} apart")


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_halves_whose_terms_are_kept_or_not(name, half, backend):
    """There is scratch memory for rows up to 2^19."""
    f = FUNCTIONS[name]
    for n in (1 << 19, (1 << 19) + 1):
        x = rounded_once(values("ordinary", 1, n, "float32"), half)
        assert_same_bits(f(x, backend=backend), rounded_once(f(x.astype("f4"), backend=backend), half), f"n={n}")


def test_every_half_is_read_and_written(half, backend):
    """All 65536 of them, but for what NaN carry: softplus takes each alone, and gives most."""
    x = np.arange(1 << 16, dtype=np.uint16).view(half)
    with np.errstate(all="ignore"):  # some are signalling
        x[x != x] = np.nan
    want = rounded_once(fsm.softplus(x.astype("f4"), backend=backend), half)
    assert_same_bits(fsm.softplus(x, backend=backend), want)


def test_columns_between_backends(name, dtype, fma_backend):
    """The inner axis is kept: a kernel may take many columns at once."""
    f = FUNCTIONS[name]
    for shape in ((3, 1), (10, 7), (129, 33), (8193, 3), (5, 300)):
        x = values("ordinary", *shape, dtype)
        assert_same_bits(f(x, axis=0, backend=fma_backend), f(x, axis=0, backend=FMA_BACKENDS[0]), f"{shape}")


def test_any_axis(name, backend, dtype):
    f = FUNCTIONS[name]
    for n in (1, 3, 16, 33, 128, 1000, 8193, 16_384):
        x = values("ordinary", 6, n, dtype)
        want = f(x, axis=1, backend=backend)
        columns = np.ascontiguousarray(x.T)
        assert_same_bits(np.asarray(f(columns, axis=0, backend=backend)).T, want, f"n={n} down the columns")
        cube = np.ascontiguousarray(x.reshape(2, 3, n).transpose(0, 2, 1))
        got = f(cube, axis=1, backend=backend)
        got = got.transpose(0, 2, 1).reshape(6, n) if got.ndim == 3 else got.reshape(6)
        assert_same_bits(got, want, f"n={n} in the middle")


def test_any_axis_where_few_rows_have_a_peak(name, backend, dtype):
    """Columns are worked on some at once; those without one beside those that have one, before or after them."""
    f = FUNCTIONS[name]
    for first in (0, 16, 48):
        x = values("ties", 64, 50, dtype)
        x[first : first + 16, 7] = np.linspace(9, 40, 16)
        want = f(x, axis=1, backend=backend)
        assert_same_bits(np.asarray(f(x.T.copy(), axis=0, backend=backend)).T, want, f"rows {first}..")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(name, layout, backend, dtype):
    f = FUNCTIONS[name]
    for n in (1, 2, 31, 33, 129, 1000, 8193, 16_500):
        x = values("ordinary", 4, n, dtype)
        assert_same_bits(f(LAYOUTS[layout](x), backend=backend), f(x, backend=backend), f"n={n}")


def test_alone_or_in_any_batch(name, backend, dtype):
    f = FUNCTIONS[name]
    for n in (1, 2, 3, 7, 10, 16, 31, 33, 64, 100, 129, 1000, 8193):
        x = values("ordinary", 37, n, dtype)
        whole = f(x, backend=backend)
        for i in (0, 1, 17, 35, 36):
            assert_same_bits(np.asarray(f(x[i], backend=backend)), np.asarray(whole[i]), f"n={n}, row {i} alone")
        for start, stop in ((1, 37), (3, 20), (30, 37)):
            assert_same_bits(f(x[start:stop], backend=backend), whole[start:stop], f"n={n}, rows {start}..{stop}")


def test_a_row_split_over_threads(name, backend, dtype):
    f = FUNCTIONS[name]
    for n in (8193, 100_003, 400_003):
        x = values("up" if n == 100_003 else "ordinary", 1, n, dtype)[0]
        with fsm.threads(1):
            want = np.asarray(f(x, backend=backend))
        for count in (2, 3, 4):
            with fsm.threads(count):
                assert_same_bits(np.asarray(f(x, backend=backend)), want, f"n={n}, {count} threads")


def test_rows_split_over_threads(name, backend, dtype):
    f = FUNCTIONS[name]
    for shape in ((5000, 10), (3001, 129), (37, 8193), (2, 100_003)):
        x = values("ordinary", *shape, dtype)
        for axis in (0, 1):
            with fsm.threads(1):
                want = f(x, axis=axis, backend=backend)
            with fsm.threads(2):
                assert_same_bits(f(x, axis=axis, backend=backend), want, f"{shape}, axis {axis}")


@pytest.mark.parametrize("into_out", INTO_OUT)
def test_in_place_or_not(into_out, backend, dtype):
    f = FUNCTIONS[into_out]
    for shape in ((3, 1), (3, 33), (3, 1000), (2, 16_500), (1, 300_000)):
        x = values("ordinary", *shape, dtype)
        for axis in (0, 1):
            want = f(x, axis=axis, backend=backend)
            work = x.copy()
            assert_same_bits(f(work, axis=axis, out=work, backend=backend), want, f"{shape} in place")
            apart = np.empty_like(x)
            assert_same_bits(f(x, axis=axis, out=apart, backend=backend), want, f"{shape} into another")


def test_again_and_again(name, backend, dtype):
    f = FUNCTIONS[name]
    x = values("ordinary", 8, 20_001, dtype)
    first = f(x, backend=backend)
    for _ in range(10):
        assert_same_bits(f(x, backend=backend), first)


def test_what_is_chosen_has_the_same_bits(name, dtype):
    """backend=None may choose by size; the numbers do not show which it was."""
    if len(FMA_BACKENDS) < 2:
        pytest.skip("the choice includes numpy where the C part is missing: build it with a C compiler")
    f = FUNCTIONS[name]
    for n in (1, 10, 1000, 300_000):
        x = values("ordinary", 2, n, dtype)
        assert_same_bits(f(x), f(x, backend=FMA_BACKENDS[0]), f"n={n}")


def test_c_means_the_best_of_c(dtype):
    if not FMA_BACKENDS[0].startswith("c-"):
        pytest.skip("the C part is missing: build it with a C compiler")
    x = values("ordinary", 4, 1000, dtype)
    assert_same_bits(fsm.softmax(x, backend="c"), fsm.softmax(x, backend=FMA_BACKENDS[0]))
