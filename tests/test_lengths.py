"""Every length around the kernels' groups: against the reference, and each row against the same row alone."""

from functools import lru_cache, partial

import numpy as np
import pytest
import reference as ref
from conftest import BACKENDS
from layouts import assert_same_bits

import fastsoftmax as fsm

BOUNDS = {"float32": (3.0, 2.0, 1.5, 2.0), "float64": (3.5, 2.5, 2.0, 2.66)}
REDUCTIONS = ("logsumexp", "logmeanexp")


def lanes(dtype):
    return 128 // np.dtype(dtype).itemsize


def around(*centres):
    return [n for c in centres for n in range(c - 3, c + 4)]


def short_lengths(dtype):
    return list(range(4 * lanes(dtype) + 2))


LONGER = sorted({*around(128, 256, 512, 1024, 2048, 4096, 8192, 8192 + 128, 16_384, 24_576), 65_535, 65_536, 65_537})


def rows(count, n, dtype):
    x = np.random.default_rng(n).normal(0, 4, (count, n)).astype(dtype)
    if n:
        x[0, n - 1] = 20  # the maximum last, then first: the tail counts
        x[1, 0] = 20
    return x


@lru_cache(maxsize=600)
def problem(n, dtype, count):
    """(input, {function: (exact, unit floor, bound)}), kept while the backends take their turns."""
    x = rows(count, n, dtype)
    softmax, log_softmax, lse, running = BOUNDS[dtype]
    exact = {
        "softmax": (ref.softmax(x), 0, softmax),
        "softmin": (ref.softmin(x), 0, softmax),
        "log_softmax": (ref.log_softmax(x), 0, log_softmax),
        "logsumexp": (ref.logsumexp(x), ref.excess(x), lse),
        "logmeanexp": (ref.logmeanexp(x), np.log(ref.LD(max(n, 1))), log_softmax),
        "hardmax": (ref.hardmax(x), 0, 0),
        "sigmoid": (ref.sigmoid(x), 0, 3),
        "softplus": (ref.softplus(x), 0, 3),
    }
    if n <= 300:
        maxima, excesses = ref.cumulative_parts(x)
        exact["logcumsumexp"] = (maxima + excesses, excesses, running)
    return x, exact


def check(n, backend, dtype, count):
    x, exact = problem(n, dtype, count)
    for name, (want, floor, bound) in exact.items():
        f = partial(getattr(fsm, name), backend=backend)
        got = f(x, axis=-1) if name in REDUCTIONS else f(x)
        assert got.shape == want.shape
        error = ref.ulp_error(got, want, dtype, floor)
        assert error.max(initial=0) <= bound, f"{name}, n = {n}: {error.max()} ulp at {np.argmax(error)}"
        for i in range(count):
            assert_same_bits(np.asarray(f(x[i])), np.asarray(got[i]), f"{name}, n={n}, row {i} alone")


@pytest.mark.parametrize("part", range(8))
def test_all_short_lengths(part, backend, dtype):
    for n in short_lengths(dtype)[part::8]:
        check(n, backend, dtype, 5)


@pytest.mark.parametrize("n", [n for n in LONGER if n < 10_000])
def test_longer_lengths(n, backend, dtype):
    check(n, backend, dtype, 2)


@pytest.mark.parametrize("n", [n for n in LONGER if n > 10_000] + [100_003, 1_048_577])
def test_large(n, backend, dtype):
    if backend == BACKENDS[0]:
        problem.cache_clear()  # these are large
    check(n, backend, dtype, 2)


def test_every_element_of_a_row_counts(backend, dtype):
    """A lost block or lane: one large element, at every place, must take all of the probability."""
    for n, large in [*((n, 30) for n in [*short_lengths(dtype)[1:], 129, 257, 300]), (70, 2000), (300, 2000)]:
        x = np.zeros((n, n), dtype)
        np.fill_diagonal(x, large)
        lse = fsm.logsumexp(x, axis=-1, backend=backend)
        assert ref.ulp_error(lse, ref.logsumexp(x[0])).max() <= 2
        assert (fsm.softmax(x, backend=backend).argmax(axis=-1) == np.arange(n)).all()
        assert (fsm.hardmax(x, backend=backend) == np.eye(n)).all()
    for n in (8191, 8192, 8193, 20_000):
        places = [*range(5), *around(128, 4096, 8192, 16_384), *range(n - 5, n)]
        for place in sorted({p for p in places if p < n}):
            x = np.zeros(n, dtype)
            x[place] = 30
            assert fsm.softmax(x, backend=backend).argmax() == place
            assert fsm.logsumexp(x, backend=backend) == pytest.approx(30 + n * np.exp(-30), rel=1e-6)


def test_each_element_adds_its_share(backend, dtype):
    """Equal elements: log n exactly counts them."""
    for n in [*short_lengths(dtype)[1:], *LONGER[::3], 1_000_003]:
        x = np.full(n, 1.5, dtype)
        got = fsm.log_softmax(x, backend=backend)
        assert ref.ulp_error(got, -np.log(ref.LD(n)), dtype).max() <= BOUNDS[dtype][1]
        assert np.unique(got).size == 1
        assert np.unique(fsm.softmax(x, backend=backend)).size == 1
        counted = np.log(np.arange(1, min(n, 300) + 1, dtype=ref.LD))
        running = fsm.logcumsumexp(x[:300], backend=backend)
        assert ref.ulp_error(running, ref.exactly(x[:300]) + counted, dtype, counted).max() <= BOUNDS[dtype][3]


def test_many_short_rows(backend, dtype):
    """Short rows may be taken many at once: every count of rows around a vector's width."""
    for n in (1, 2, 3, 4, 5, 7, 8, 10, 16, 17):
        x = rows(140, n, dtype)
        whole = fsm.softmax(x, backend=backend)
        logs = fsm.logsumexp(x, axis=-1, backend=backend)
        assert ref.ulp_error(whole, ref.softmax(x)).max() <= BOUNDS[dtype][0]
        for count in range(70):
            assert_same_bits(fsm.softmax(x[:count], backend=backend), whole[:count], f"{count} rows of {n}")
            assert_same_bits(fsm.logsumexp(x[:count], axis=-1, backend=backend), logs[:count], f"{count} rows of {n}")


def test_many_columns(backend, dtype):
    """The same down the columns."""
    for n in (1, 2, 3, 10, 33, 130):
        x = np.ascontiguousarray(rows(140, n, dtype).T)
        whole = fsm.softmax(x, axis=0, backend=backend)
        assert ref.ulp_error(whole, ref.over(ref.softmax, x, 0)).max() <= BOUNDS[dtype][0]
        for count in range(70):
            part = np.ascontiguousarray(x[:, :count])
            assert_same_bits(fsm.softmax(part, axis=0, backend=backend), whole[:, :count], f"{count} columns of {n}")


@pytest.mark.parametrize("f", [fsm.softmax, fsm.log_softmax])
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name.startswith("c-")] or BACKENDS[:1])
def test_past_the_cache(f, backend):
    """C writes results so large past it, wherever they begin; with return_lse it does not."""
    n = (1 << 24) + 77 if f is fsm.softmax else (1 << 22) + 77
    x = np.resize(rows(2, 50_021, "float32"), n)
    want, _ = f(x, return_lse=True, backend=backend)
    out = np.empty(n + 1, "float32")[1:]
    assert_same_bits(f(x, out=out, backend=backend), want)
