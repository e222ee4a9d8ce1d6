"""The accuracy promise: worst error in ulp over the sets of accuracy_sets.py, on every backend."""

import math

import measured
import numpy as np
import pytest
import reference as ref
import worst_ulp
from numpy.testing import assert_array_equal

import fastsoftmax as fsm

SINGLE_AND_DOUBLE = [
    (function, dtype, name)
    for function in measured.FUNCTIONS
    for dtype in ("float32", "float64")
    for name in measured.set_names(function, dtype)
]
HALF = [(function, name) for function in measured.FUNCTIONS for name in measured.set_names(function, np.float16)]


def check(function, dtype, name, backend):
    worst, _, where = worst_ulp.measure(function, dtype, name, backend)
    assert worst <= measured.bound(function, dtype, name), where


@pytest.mark.parametrize(("function", "kind", "name"), SINGLE_AND_DOUBLE)
def test_worst_ulp(function, kind, name, backend):
    check(function, kind, name, backend)


@pytest.mark.parametrize(("function", "name"), HALF)
def test_worst_ulp_float16(function, name, backend):
    check(function, np.float16, name, backend)


@pytest.mark.parametrize(("function", "name"), HALF)
def test_worst_ulp_bfloat16(function, name, backend, bfloat16):
    check(function, bfloat16, name, backend)


def rows_of_all_kinds(n, dtype):
    """Near and far, equal, rising, and one above all others."""
    rng, place = np.random.default_rng(n), np.arange(n)
    normal, wide = rng.normal(0, 2, (5, n)), rng.uniform(-80, 0, (2, n)) + 77.7
    above = np.where(place == n // 2, 3.3, -5.5)
    return np.vstack([normal, wide, np.full(n, 0.1), 0.003 * place, -0.003 * place, above]).astype(dtype)


@pytest.mark.parametrize("n", [1, 2, 7, 128, 1000, 8192, 8193, 30_000])
def test_softmax_sums_to_one(n, backend, dtype):
    for row in fsm.softmax(rows_of_all_kinds(n, dtype), backend=backend):
        assert abs(math.fsum(row.tolist()) - 1) <= 4 * np.finfo(dtype).eps


def test_softmax_of_a_long_row_sums_to_one(backend):
    n = 10_000_000
    p = fsm.softmax(np.random.default_rng(0).standard_normal(n, np.float32), backend=backend)
    assert abs(p.sum(dtype=np.float64) - 1) <= 4 * np.finfo(np.float32).eps


def test_nothing_drifts_in_a_row_of_ten_million(backend):
    """All equal, so that every rounding of a sum would go the same way."""
    n = 10_000_000
    x = np.full(n, 0.1, np.float32)
    length = np.log(ref.LD(n))
    assert ref.ulp_error(fsm.logsumexp(x, backend=backend), ref.exactly(x[0]) + length, at_least=length) <= 1.5
    assert ref.ulp_error(fsm.softmax(x, backend=backend)[:: n - 1], 1 / ref.LD(n)).max() <= 3
    assert ref.ulp_error(fsm.log_softmax(x, backend=backend)[:: n - 1], -length).max() <= 2


def test_log_probability_of_a_dominating_maximum_keeps_its_digits(backend, dtype):
    gaps = np.linspace(0.5, {"float32": 100, "float64": 740}[dtype], 400)
    x = np.stack([gaps, np.zeros_like(gaps)], axis=1).astype(dtype)
    exact = ref.log_softmax(x)[:, 0]
    got = fsm.log_softmax(x, backend=backend)[:, 0]
    normal = abs(exact) >= np.finfo(dtype).tiny
    assert (abs(got - exact) <= 8 * np.finfo(dtype).eps * abs(exact))[normal].all()
    assert (got < 0).all()


@pytest.mark.parametrize("seed", range(6))
def test_weighted_logsumexp(seed, backend, dtype):
    """Against the condition of the sum: the weights may cancel."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, [1, 3, 10][seed % 3], (40, 1 + 61 * seed)).astype(dtype)
    b = (rng.normal(size=x.shape) if seed % 2 else rng.random(x.shape)).astype(dtype)
    exact, sign = ref.signed_logsumexp(x, b)
    got, got_sign = fsm.logsumexp(x, axis=-1, b=b, return_sign=True, backend=backend)
    assert_array_equal(got_sign, sign)
    magnitude = ref.signed_logsumexp(x, abs(b))[0]
    condition = np.exp(magnitude - exact)
    spread = abs(exact) + abs(x).max(-1) + np.log(ref.LD(x.shape[-1])) + abs(np.log(abs(ref.exactly(b)).max(-1)))
    assert (abs(got - exact) <= np.finfo(dtype).eps * (2 * spread + 4 * condition)).all()


def test_unit_weights_change_nothing_beyond_the_bound(backend, dtype):
    x = np.random.default_rng(3).normal(0, 5, (50, 77)).astype(dtype)
    got = fsm.logsumexp(x, axis=-1, b=np.ones_like(x), backend=backend)
    assert ref.ulp_error(got, ref.logsumexp(x), at_least=ref.excess(x)).max() <= {"float32": 1.5, "float64": 2.0}[dtype]


def test_float16_never_counts_in_float16(backend):
    x = np.zeros(65_537, np.float16)
    assert fsm.log_softmax(x, backend=backend)[0] == np.float16(-math.log(65_537))
    assert fsm.logsumexp(x, backend=backend) == np.float16(math.log(65_537))


def test_peers_worst_case(backend):
    """Where x - max is rounded, e^(x - max) is off by tens of ulp: 0.3 against a maximum of 77.7 and below."""
    x = (np.linspace(-100, 0, 4001) + 0.3).astype(np.float32)
    assert ref.ulp_error(fsm.softmax(x, backend=backend), ref.softmax(x)).max() <= 3.0
