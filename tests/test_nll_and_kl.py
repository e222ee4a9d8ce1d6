"""nll_loss and kl_div."""

import itertools

import numpy as np
import pytest
import reference as ref
from layouts import LAYOUTS, assert_same_bits
from loss_cases import LD, REDUCTIONS, Q, X, at, inf, nan, product, random_rows
from numpy.testing import assert_array_equal

import fastsoftmax as fsm


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64"])
def test_nll_loss(kind, bfloat16):
    dtype = np.dtype(bfloat16 if kind == "bfloat16" else kind)
    rng = np.random.default_rng(16)
    x, y, _, w = random_rows(rng, (4, 50, 9), np.float32)
    x, ignored = -abs(x).astype(dtype), y == -100
    rows = np.where(ignored, 0, -at(ref.exactly(x), np.where(ignored, 0, y), 2))
    for weight, counts in ((None, ~ignored * LD(1)), (w, np.where(ignored, 0, ref.exactly(w)[np.maximum(y, 0)]))):
        want = {"none": rows * counts, "sum": (rows * counts).sum(), "mean": (rows * counts).sum() / counts.sum()}
        for reduction, axis in itertools.product(REDUCTIONS, (0, 1, 2)):
            got = fsm.nll_loss(np.moveaxis(x, 2, axis), y, axis, weight=weight, reduction=reduction)
            assert got.dtype == dtype
            assert isinstance(got, np.ndarray if reduction == "none" else np.generic)
            assert ref.ulp_error(got, want[reduction]).max() <= (0.51 if dtype.itemsize == 2 else 4)
    assert_array_equal(fsm.nll_loss(x, y, reduction="none"), rows)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("log_target", [False, True])
def test_kl_div(log_target, kind, bfloat16):
    dtype = np.dtype(bfloat16 if kind == "bfloat16" else kind)
    rng = np.random.default_rng(17)
    q, p = (fsm.log_softmax(rng.normal(0, 2, (6, 5, 8))).astype(dtype) for _ in range(2))
    p = p if log_target else np.exp(p.astype(np.float64)).astype(dtype)
    if not log_target:
        p[rng.random(p.shape) < 0.2] = 0
    wide_q, wide_p = ref.exactly(q), ref.exactly(p)
    with np.errstate(all="ignore"):
        parts = np.exp(wide_p) if log_target else wide_p, wide_p if log_target else np.log(wide_p)
        want = product(parts[0], parts[1] - wide_q)
    size = product(parts[0], abs(parts[1]) + abs(wide_q))
    results = {"none": (want, size), "sum": (want.sum(), size.sum())}
    results |= {"mean": (want.mean(), size.mean()), "batchmean": (want.sum() / 6, size.sum() / 6)}
    for layout in ("C", "F", "reversed", "unaligned by 1", "swapped bytes", "read-only"):
        change = LAYOUTS[layout]
        for reduction, (value, about) in results.items():
            got = fsm.kl_div(change(q), change(p), reduction=reduction, log_target=log_target)
            assert got.dtype == dtype
            assert isinstance(got, np.ndarray if reduction == "none" else np.generic)
            slack = 4 * ref.ulp(about, np.float32 if dtype.itemsize == 2 else dtype)
            assert (abs(ref.exactly(got) - value) <= 0.5 * ref.ulp(value, dtype) + slack).all()
    got = fsm.kl_div(q, p[0, :1], reduction="none", log_target=log_target)  # any broadcasting
    full = np.broadcast_to(p[0, :1], q.shape)
    assert_same_bits(got, fsm.kl_div(q, full, reduction="none", log_target=log_target))
    assert fsm.kl_div(q, p[0, :1], log_target=log_target) == fsm.kl_div(q, full, log_target=log_target)
    got = fsm.kl_div(q[0, 0], p, reduction="none", log_target=log_target)
    assert got.shape == p.shape


def test_special_values_of_kl_div(dtype):
    q = np.array([-inf, -inf, -1, -1, nan, -1, nan], dtype)
    p = np.array([0, 0.5, 0, nan, 0.5, -1, 0], dtype)
    with np.errstate(all="raise"):
        got = fsm.kl_div(q, p, reduction="none")
        log_got = fsm.kl_div(q[:5], np.array([-inf, -1, -inf, nan, -1], dtype), reduction="none", log_target=True)
    assert_array_equal(got[:6], [0, inf, 0, nan, nan, nan])
    assert_array_equal(log_got, [0, inf, 0, nan, nan])
    empty = np.empty((0, 3), dtype)
    assert np.isnan(fsm.kl_div(empty, empty))
    assert fsm.kl_div(empty, empty, reduction="sum") == 0
    assert fsm.kl_div(empty, empty, reduction="none").shape == (0, 3)


@pytest.mark.parametrize("reduction", ["none", "batchmean"])
def test_kl_div_in_more_dimensions_than_numpy_broadcasts(reduction):
    dims = (1,) * ((64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32) - 2)
    got = fsm.kl_div(X.reshape(*X.shape, *dims), Q[:1].reshape(1, -1, *dims), reduction=reduction)
    assert_array_equal(got.reshape(X.shape if reduction == "none" else ()), fsm.kl_div(X, Q[:1], reduction=reduction))


def test_errors_of_kl_div():
    for reduction in ("avg", "", None):
        with pytest.raises((ValueError, TypeError), match="reduction"):
            fsm.kl_div(X, Q, reduction=reduction)
    with pytest.raises(ValueError, match=r"\(3, ?4\)"):
        fsm.kl_div(X, np.zeros(3))
    with pytest.raises(TypeError):
        fsm.kl_div(X, Q, axis=-1)


def test_sums_beyond_the_largest_number():
    logs, y = np.full((327_680, 1), -6e302), np.zeros(327_680, int)
    assert fsm.nll_loss(logs, y, reduction="sum") == np.inf
