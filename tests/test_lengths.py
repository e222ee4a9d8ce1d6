"""Every length around the kernels' groups: against the reference, and each row against the same row alone."""

import numpy as np
import pytest
import reference as ref
from layouts import assert_same_bits

import fastsoftmax as fsm

BOUNDS = {"float32": (3.0, 2.0, 1.5, 2.0), "float64": (3.5, 2.5, 2.0, 2.66)}


def lanes(dtype):
    return 128 // np.dtype(dtype).itemsize


def around(*centres):
    return [n for c in centres for n in range(c - 3, c + 4)]


def short_lengths(dtype):
    return list(range(4 * lanes(dtype) + 2))


def longer_lengths(dtype):
    n = lanes(dtype)
    return sorted({*around(128, 256, 512, 8 * n, 16 * n, 1024, 2048, 4096, 8192, 8192 + 128, 16_384, 24_576, 65_536)})


def rows(count, n, dtype):
    x = np.random.default_rng(n).normal(0, 4, (count, n)).astype(dtype)
    if n:
        x[0, n - 1] = 20  # the maximum last, then first: the tail counts
        x[1, 0] = 20
    return x


def check(n, backend, dtype, count=5):
    x = rows(count, n, dtype)
    softmax, log_softmax, lse, running = BOUNDS[dtype]
    results = {
        "softmax": (fsm.softmax(x, backend=backend), ref.softmax(x), 0, softmax),
        "softmin": (fsm.softmin(x, backend=backend), ref.softmin(x), 0, softmax),
        "log_softmax": (fsm.log_softmax(x, backend=backend), ref.log_softmax(x), 0, log_softmax),
        "logsumexp": (fsm.logsumexp(x, axis=-1, backend=backend), ref.logsumexp(x), ref.excess(x), lse),
        "hardmax": (fsm.hardmax(x, backend=backend), ref.hardmax(x), 0, 0),
        "sigmoid": (fsm.sigmoid(x, backend=backend), ref.sigmoid(x), 0, 3),
        "softplus": (fsm.softplus(x, backend=backend), ref.softplus(x), 0, 3),
    }
    if n <= 600:
        exact = ref.logcumsumexp(x)
        results["logcumsumexp"] = (fsm.logcumsumexp(x, backend=backend), exact, ref.cumulative_parts(x)[1], running)
    for name, (got, exact, floor, bound) in results.items():
        assert got.shape == exact.shape
        worst = ref.ulp_error(got, exact, dtype, floor).max(initial=0)
        assert worst <= bound, f"{name}, n = {n}: {worst} ulp"
        f = getattr(fsm, name)
        for i in range(count):
            assert_same_bits(np.asarray(f(x[i], backend=backend)), np.asarray(got[i]), f"{name}, n={n}, row {i} alone")


def test_all_short_lengths(backend, dtype):
    for n in short_lengths(dtype):
        check(n, backend, dtype)


def test_longer_lengths(backend, dtype):
    for n in longer_lengths(dtype):
        check(n, backend, dtype, 2)


@pytest.mark.parametrize("n", [100_003, 1_000_000, 1_048_577])
def test_large(n, backend, dtype):
    check(n, backend, dtype, 2)


def test_every_element_of_a_row_counts(backend, dtype):
    """A lost block or lane: one large element, at every place, must take all of the probability."""
    for n in [*short_lengths(dtype)[1:], 129, 257, 300]:
        x = np.zeros((n, n), dtype)
        np.fill_diagonal(x, 30)
        want = ref.ulp_error(fsm.logsumexp(x, axis=-1, backend=backend), ref.logsumexp(x), at_least=ref.excess(x))
        assert want.max() <= 2
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
    for n in [*short_lengths(dtype)[1:], *longer_lengths(dtype), 1_000_003]:
        x = np.full(n, 1.5, dtype)
        got = fsm.log_softmax(x, backend=backend)
        assert ref.ulp_error(got, -np.log(ref.LD(n)), dtype).max() <= BOUNDS[dtype][1]
        assert np.unique(got).size == 1
        assert np.unique(fsm.softmax(x, backend=backend)).size == 1


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
