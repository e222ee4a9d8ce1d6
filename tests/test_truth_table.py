"""Every row of the truth table (TRUST.md), on every backend and at lengths on both sides of the kernels' blocks."""

import math

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastsoftmax as fsm

INF, NAN = np.inf, np.nan
LENGTHS = [1, 2, 3, 15, 16, 17, 31, 32, 33, 127, 128, 129, 300, 8191, 8192, 8193, 20_000]


def row_with(n, dtype, **at):
    """A row of ordinary numbers with special values at the given places: first=, middle=, last=."""
    x = np.random.default_rng(n).normal(0, 3, n).astype(dtype)
    for place, value in at.items():
        x[{"first": 0, "middle": n // 2, "last": n - 1}[place]] = value
    return x


def assert_positive_zero(x):
    assert_array_equal(x, 0)
    assert not np.signbit(x).any()


@pytest.fixture(params=LENGTHS)
def n(request):
    return request.param


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_nan_shows_throughout(n, place, backend, dtype):
    x = row_with(n, dtype, **{place: NAN})
    for f in (fsm.softmax, fsm.log_softmax, fsm.softmin, fsm.hardmax):
        assert np.isnan(f(x, backend=backend)).all()
    assert np.isnan(fsm.logsumexp(x, backend=backend))
    assert np.isnan(fsm.logmeanexp(x, backend=backend))
    assert_array_equal(np.isnan(fsm.logcumsumexp(x, backend=backend)), np.logical_or.accumulate(np.isnan(x)))


@pytest.mark.parametrize(("infinity", "nan"), [("first", "last"), ("last", "first"), ("middle", "last")])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_nan_shows_beside_an_infinity(n, infinity, nan, sign, backend, dtype):
    if n < 3:
        n += 3
    x = row_with(n, dtype, **{infinity: sign * INF, nan: NAN})
    assert np.isnan(fsm.softmax(x, backend=backend)).all()
    assert np.isnan(fsm.log_softmax(x, backend=backend)).all()
    assert np.isnan(fsm.logsumexp(x, backend=backend))
    assert np.isnan(fsm.logmeanexp(x, backend=backend))
    assert np.isnan(fsm.logcumsumexp(x, backend=backend)[-1])


def test_nan_of_any_payload_and_sign(backend):
    bits = np.array([0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF, 0x7FFFFFFF], np.uint32)
    for nan in bits.view(np.float32):
        x = np.zeros(200, np.float32)
        x[77] = nan
        assert np.isnan(fsm.softmax(x, backend=backend)).all()
        assert np.isnan(fsm.logsumexp(x, backend=backend))


def test_one_nan_row_leaves_the_others_alone(backend, dtype):
    x = np.random.default_rng(0).normal(size=(9, 100)).astype(dtype)
    clean = fsm.softmax(x, backend=backend)
    x[4, 50] = NAN
    got = fsm.softmax(x, backend=backend)
    assert np.isnan(got[4]).all()
    assert_array_equal(np.delete(got, 4, 0), np.delete(clean, 4, 0))


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_minus_infinity_is_exactly_nothing(n, place, backend, dtype):
    if n < 3:
        n += 3
    x = row_with(n, dtype, **{place: -INF})
    gone = x == -INF
    p, logp = fsm.softmax(x, backend=backend), fsm.log_softmax(x, backend=backend)
    assert_positive_zero(p[gone])
    assert_array_equal(logp[gone], -INF)
    assert (p[~gone] > 0).all()
    assert np.isfinite(logp[~gone]).all()
    assert np.isfinite(fsm.logsumexp(x, backend=backend))


def test_all_minus_infinity(n, backend, dtype):
    x = np.full(n, -INF, dtype)
    assert np.isnan(fsm.softmax(x, backend=backend)).all()
    assert np.isnan(fsm.log_softmax(x, backend=backend)).all()
    assert np.isnan(fsm.hardmax(x, backend=backend)).all()
    assert fsm.logsumexp(x, backend=backend) == -INF
    assert fsm.logmeanexp(x, backend=backend) == -INF
    assert_array_equal(fsm.logcumsumexp(x, backend=backend), x)
    assert np.isnan(fsm.softmin(-x, backend=backend)).all()


def test_only_one_finite(n, backend, dtype):
    x = np.full(n, -INF, dtype)
    x[n // 2] = 3.5
    p = fsm.softmax(x, backend=backend)
    assert_positive_zero(np.delete(p, n // 2))
    assert 1 - 3 * np.finfo(dtype).epsneg <= p[n // 2] <= 1
    logp = fsm.log_softmax(x, backend=backend)
    assert logp[n // 2] == 0
    assert (np.delete(logp, n // 2) == -INF).all()
    assert fsm.logsumexp(x, backend=backend) == 3.5


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_plus_infinity_is_never_a_mixture(n, place, backend, dtype):
    x = row_with(n, dtype, **{place: INF})
    assert np.isnan(fsm.softmax(x, backend=backend)).all()
    assert np.isnan(fsm.log_softmax(x, backend=backend)).all()
    assert fsm.logsumexp(x, backend=backend) == INF
    assert fsm.logmeanexp(x, backend=backend) == INF
    assert_array_equal(fsm.logcumsumexp(x, backend=backend) == INF, np.logical_or.accumulate(x == INF))
    assert np.isnan(fsm.softmin(-x, backend=backend)).all()


def test_both_infinities(n, backend, dtype):
    if n < 3:
        n += 3
    x = row_with(n, dtype, first=-INF, last=INF)
    assert np.isnan(fsm.softmax(x, backend=backend)).all()
    assert np.isnan(fsm.log_softmax(x, backend=backend)).all()
    assert fsm.logsumexp(x, backend=backend) == INF


def test_hardmax_takes_the_first_maximum(n, backend, dtype):
    x = np.zeros(n, dtype)
    x[n // 2 :] = 7
    assert_array_equal(np.flatnonzero(fsm.hardmax(x, backend=backend)), [n // 2])
    x[n // 2] = INF
    assert_array_equal(fsm.hardmax(x, backend=backend), (np.arange(n) == n // 2).astype(dtype))


def test_hardmax_holds_zeros_of_both_signs_equal(backend, dtype):
    assert_array_equal(fsm.hardmax(np.array([-0.0, 0.0], dtype), backend=backend), [1, 0])
    assert_array_equal(fsm.hardmax(np.array([-1, 0.0, -0.0], dtype), backend=backend), [0, 1, 0])


def test_largest_against_its_negative(backend, dtype):
    top = np.finfo(dtype).max
    x = np.array([top, -top], dtype)
    assert_array_equal(fsm.log_softmax(x, backend=backend), [0, -INF])
    assert_array_equal(fsm.softmax(x, backend=backend), [1, 0])
    assert fsm.logsumexp(x, backend=backend) == top
    assert_array_equal(fsm.softmax(np.array([top, top], dtype), backend=backend), [0.5, 0.5])
    assert_array_equal(fsm.softmax(np.array([-top, -top], dtype), backend=backend), [0.5, 0.5])


def test_subnormal_results_are_kept(backend):
    x = np.array([0, -87.5], np.float32)
    assert fsm.softmax(x, backend=backend)[1] == np.float32(math.exp(-87.5))
    assert 0 < fsm.softmax(np.array([0, -103.0], np.float32), backend=backend)[1] < 1e-44
    assert 0 < fsm.softmax(np.array([0, -744.0]), backend=backend)[1] < 1e-322
    for low, dtype in ((-90.0, "float32"), (-720.0, "float64")):  # a whole block of them
        x = np.full(9000, low, dtype)
        x[-1] = 0
        assert_array_equal(fsm.softmax(x, backend=backend)[:-1], np.full(8999, math.exp(low), dtype))


def test_tiny_excess_survives(backend):
    assert fsm.logsumexp(np.array([0, -20], np.float32), backend=backend) == np.float32(2.0611537e-09)
    assert fsm.log_softmax(np.array([20, 0], np.float32), backend=backend)[0] == np.float32(-2.0611537e-09)
    assert fsm.log_softmax(np.array([0.0, -40.0]), backend=backend)[0] == pytest.approx(-math.exp(-40), rel=1e-15)


def test_far_larger_numbers_leave_nothing_of_a_running_sum(backend, dtype):
    x = 300 * np.arange(-9, 10, dtype=dtype) + 100
    assert_array_equal(fsm.logcumsumexp(x, backend=backend), x)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3), (2, 0, 4)])
def test_empty(shape, backend, dtype):
    x = np.empty(shape, dtype)
    for f in (fsm.softmax, fsm.log_softmax, fsm.softmin, fsm.hardmax, fsm.logcumsumexp):
        for axis in range(-x.ndim, x.ndim):
            got = f(x, axis=axis, backend=backend)
            assert got.shape == shape
            assert got.dtype == dtype
    for axis in [*range(x.ndim), None]:
        kept = x.sum(axis=axis)
        value = fsm.logsumexp(x, axis=axis, backend=backend)
        assert_array_equal(value, np.full_like(kept, -INF))
        assert value.dtype == dtype
        n = x.size if axis is None else x.shape[axis]
        if n == 0:
            mean = fsm.logmeanexp(x, axis=axis, backend=backend)
            assert_array_equal(mean, np.full_like(kept, NAN))
            assert mean.dtype == dtype
    assert fsm.sigmoid(x, backend=backend).shape == fsm.softplus(x, backend=backend).shape == shape


def test_one_element_is_certain(backend, dtype):
    x = np.random.default_rng(0).normal(0, 100, (500, 1)).astype(dtype)
    assert_array_equal(fsm.softmax(x, backend=backend), np.ones_like(x))
    assert_array_equal(fsm.log_softmax(x, backend=backend), np.zeros_like(x))
    assert_array_equal(fsm.logsumexp(x, axis=1, backend=backend), x[:, 0])


@pytest.mark.parametrize("axis", [0, -1, None, ()])
def test_zero_dimensions(axis, backend, dtype):
    x = np.array(3.0, dtype)
    if axis != ():
        assert fsm.softmax(x, axis=axis, backend=backend) == 1
        assert fsm.log_softmax(x, axis=axis, backend=backend) == 0
    assert fsm.logsumexp(x, axis=axis, backend=backend) == 3
    assert fsm.logmeanexp(x, axis=axis, backend=backend) == 3


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_zero_weight_drops_its_term(bad, n, backend, dtype):
    x = np.append(row_with(n, dtype), np.array(bad, dtype))
    b = np.append(np.ones(n, dtype), np.zeros(1, dtype))
    got = fsm.logsumexp(x, b=b, backend=backend)
    assert got == pytest.approx(fsm.logsumexp(x[:-1], backend=backend), rel=float(4 * np.finfo(dtype).eps), abs=1e-7)
    assert fsm.logsumexp(x[-1:], b=b[-1:], backend=backend) == -INF
    assert fsm.logsumexp(x[-1:], b=-b[-1:], return_sign=True, backend=backend) == (-INF, 0)


def test_a_nan_weight_counts(backend, dtype):
    assert np.isnan(fsm.logsumexp(np.array([0, 1], dtype), b=np.array([NAN, 1], dtype), backend=backend))


def test_signs(backend, dtype):
    x = np.array([1, 1, 1], dtype)
    assert np.isnan(fsm.logsumexp(x, b=np.array([1, -1, -1], dtype), backend=backend))
    value, sign = fsm.logsumexp(x, b=np.array([1, -1, -1], dtype), return_sign=True, backend=backend)
    assert (value, sign) == (1, -1)
    value, sign = fsm.logsumexp(x[:2], b=np.array([1, -1], dtype), return_sign=True, backend=backend)
    assert (value, sign) == (-INF, 0)
    assert fsm.logsumexp(x[:2], b=np.array([1, -1], dtype), backend=backend) == -INF
    value, sign = fsm.logsumexp(x, return_sign=True, backend=backend)
    assert sign == 1
    assert value == fsm.logsumexp(x, backend=backend)
    assert fsm.logsumexp(np.array([INF], dtype), b=np.array([-1], dtype), return_sign=True, backend=backend) == (
        INF,
        -1,
    )
    assert fsm.logsumexp(np.array([INF], dtype), return_sign=True, backend=backend) == (INF, 1)
    assert fsm.logsumexp(np.array([], dtype), return_sign=True, backend=backend) == (-INF, 0)
    assert fsm.logsumexp(np.array([-INF], dtype), return_sign=True, backend=backend) == (-INF, 0)


def test_sigmoid_and_softplus(n, backend, dtype):
    top = np.finfo(dtype).max
    special = np.array([INF, -INF, NAN, 0, -0.0, top, -top], dtype)
    for start in range(0, 7):
        x = np.resize(np.roll(special, start), n)
        with np.errstate(all="ignore"):
            assert_array_equal(
                fsm.sigmoid(x, backend=backend), np.where(x == 0, 0.5, np.heaviside(x, 0.5)).astype(dtype)
            )
            zero = np.array(math.log(2), dtype)
            assert_array_equal(fsm.softplus(x, backend=backend), np.where(x == 0, zero, np.maximum(x, 0)))


def test_no_floating_point_error_ever(n, backend, dtype):
    """errstate(all="raise") turns any flag that NumPy sees into an exception."""
    top = np.finfo(dtype).max
    rows = [row_with(n, dtype), np.full(n, -INF, dtype), row_with(n, dtype, first=NAN), row_with(n, dtype, last=INF)]
    rows += [np.resize(np.array(v, dtype), n) for v in ([top, -top], [-top], [0, -95.0], [1e-40, -1e-40], [700, -700])]
    with np.errstate(all="ignore"):
        rows += [x.astype(np.float16) for x in rows]
    with np.errstate(all="raise"):
        for x in rows:
            for f in (fsm.softmax, fsm.log_softmax, fsm.softmin, fsm.hardmax, fsm.logcumsumexp):
                f(x, backend=backend)
            fsm.logsumexp(x, backend=backend)
            fsm.logsumexp(x, b=np.resize(np.array([1, -1, 0], dtype), n), return_sign=True, backend=backend)
            fsm.logmeanexp(x, backend=backend)
            fsm.sigmoid(x, backend=backend)
            fsm.softplus(x, beta=2.0, backend=backend)
    assert fsm.logsumexp(np.empty(0, dtype), backend=backend) == -INF
