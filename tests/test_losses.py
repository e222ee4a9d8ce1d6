"""cross_entropy and token_logprobs against formulas in long double, and what they allocate."""

import functools
import json
import tracemalloc

import numpy as np
import pytest
import reference as ref
from conftest import BACKENDS
from layouts import LAYOUTS, assert_same_bits
from loss_cases import (
    GRADIENT_BOUND,
    OPTIONS,
    PLAIN_BOUND,
    REDUCTIONS,
    Exact,
    at,
    inf,
    nan,
    random_rows,
    results,
    targets,
)
from numpy.testing import assert_allclose, assert_array_equal

import fastsoftmax as fsm

# ---- accuracy ----


@functools.cache
def accuracy_sets(dtype):
    """Name -> logits: every range, short and long rows, one class that has nearly all."""
    rng = np.random.default_rng(0)
    wide = {"float16": 10, "float32": 103, "float64": 744}[dtype]
    sets = {f"n = {n}": rng.normal(0, 1, (200, n)) for n in (1, 2, 3, 7, 8, 9, 17, 33, 70)}
    sets |= {"n = 1000": rng.normal(0, 10, (40, 1000)), "n = 50257": rng.normal(0, 1, (2, 50257))}
    sets |= {f"from {top}": rng.uniform(-wide, 0, (300, 10)) + top for top in (0.3, 77.7, -1000.3)}
    sets["one that dominates"] = np.where(np.arange(9) == 4, np.linspace(0.5, wide, 300)[:, np.newaxis], 0)
    sets["equal"] = np.full((7, 1000), 1.7)
    sets["large"] = rng.normal(0, 1, (50, 12)) * (float(np.finfo(dtype).max) / 40)
    return {name: x.astype(dtype) for name, x in sets.items()}


NAMES = list(accuracy_sets("float32"))


@functools.cache
def accuracy_case(dtype, name, kind):
    """Logits, target, options, exact losses."""
    x = accuracy_sets(dtype)[name]
    rng = np.random.default_rng(NAMES.index(name))
    _, y, q, w = random_rows(rng, x.shape, dtype)
    y = abs(y) % x.shape[1]
    y[: len(y) // 3] = x.argmax(axis=-1)[: len(y) // 3]
    if name == "one that dominates":
        y[::2] = 4
    if "probabilities" in kind:
        q[::3] = np.arange(x.shape[1]) == y[::3, np.newaxis]
    options = {}
    if "weight" in kind:
        options["weight"] = w
    if "smoothing" in kind:
        options["label_smoothing"] = 0.1
    target = q if "probabilities" in kind else y
    return x, target, options, Exact(x, target, **options)


@pytest.mark.parametrize("name", NAMES)
def test_accuracy(name, dtype, backend):
    x, y, _, exact = accuracy_case(dtype, name, "plain")
    got, lse, grad = fsm.cross_entropy(x, y, reduction="none", return_lse=True, return_grad=True, backend=backend)
    assert ref.ulp_error(got, exact.loss).max() <= PLAIN_BOUND[dtype]
    assert ref.ulp_error(lse, exact.lse, at_least=ref.excess(x)).max() <= {"float32": 1.5, "float64": 2.0}[dtype]
    assert ref.ulp_error(grad, exact.gradient("none")[0]).max() <= GRADIENT_BOUND


@pytest.mark.parametrize("kind", ["weight", "smoothing", "weight smoothing", "probabilities", "probabilities weight"])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "large"])  # whose sums overflow
def test_accuracy_of_weighted_terms(name, kind, dtype, backend):
    x, target, options, exact = accuracy_case(dtype, name, kind)
    got, grad = fsm.cross_entropy(x, target, reduction="none", return_grad=True, backend=backend, **options)
    assert ref.ulp_error(got, exact.loss).max() <= 4
    want, size = exact.gradient("none")
    assert (abs(grad - want) <= GRADIENT_BOUND * ref.ulp(size, dtype)).all()


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["plain", "weight", "smoothing", "probabilities weight smoothing"])
def test_half_types_are_rounded_once(kind, half, backend, bfloat16):
    dtype = np.dtype(bfloat16 if half == "bfloat16" else half)
    for name in ("n = 7", "n = 1000", "from 0.3", "one that dominates"):
        x, target, options, _ = accuracy_case("float16", name, kind)
        x = x.astype(dtype)
        target = target.astype(dtype) if target.dtype.kind == "f" else target
        exact = Exact(x.astype(np.float32), target, **options)
        for reduction in REDUCTIONS:
            got, lse, grad = fsm.cross_entropy(
                x, target, reduction=reduction, return_lse=True, return_grad=True, backend=backend, **options
            )
            assert (got.dtype, lse.dtype, grad.dtype) == (dtype, np.float32, dtype)
            assert ref.ulp_error(got, exact.reduced(reduction)).max() <= 0.51
            want, size = exact.gradient(reduction)
            slack = GRADIENT_BOUND * ref.ulp(size, np.float32)
            assert (abs(ref.exactly(grad) - want) <= 0.501 * ref.ulp(want, dtype) + slack).all()


@functools.cache
def many_rows(dtype):
    rng = np.random.default_rng(5)
    x, y, _, w = random_rows(rng, (200_000, 10), dtype)
    return x, y, w, Exact(x, y), Exact(x, y, weight=w)


def test_sums_over_many_rows(dtype, backend):
    x, y, w, plain, weighted = many_rows(dtype)
    for reduction in ("mean", "sum"):
        for exact, options in ((plain, {}), (weighted, {"weight": w})):
            got = fsm.cross_entropy(x, y, reduction=reduction, backend=backend, **options)
            assert isinstance(got, np.generic)
            assert ref.ulp_error(got, exact.reduced(reduction)) <= 4
            y_float = plain.y.astype(dtype)
            got = fsm.nll_loss(y_float, y, reduction=reduction, **options)
            rows = np.where(y < 0, 0, -np.take_along_axis(ref.exactly(y_float), abs(y[:, None]) % 10, 1)[:, 0])
            want = ref.exact_sum(rows * exact.counts) / (exact.counts.sum() if reduction == "mean" else 1)
            assert ref.ulp_error(got, want) <= 4


def test_half_types_are_not_summed_in_half(backend, bfloat16):
    for dtype in (np.float16, bfloat16):
        x = np.zeros((70_000, 3), dtype)
        assert fsm.cross_entropy(x, np.zeros(70_000, int), backend=backend) == dtype(np.log(3))
        x = np.zeros((3, 70_000), dtype)
        assert fsm.cross_entropy(x, [1, 2, 3], label_smoothing=0.5, backend=backend) == dtype(np.log(70_000))


# ---- values ----


@pytest.mark.parametrize("seed", range(40))
def test_random_cases(seed, dtype, backend):
    """Any axis, layout and options against the formulas."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 7, rng.integers(1, 5)))
    shape = (*shape[:-1], int(rng.choice([1, 2, 5, 9, 40, 300])))
    x, y, q, w = random_rows(rng, shape, dtype)
    axis = int(rng.integers(len(shape)))
    target, options = (y, {}) if rng.random() < 0.6 else (q, {})
    if rng.random() < 0.5:
        options["weight"] = w
    if rng.random() < 0.5:
        options["label_smoothing"] = float(rng.choice([0.05, 0.5, 1]))
    if rng.random() < 0.5:
        options["z_loss"] = 0.25
    if target is y and rng.random() < 0.5:
        options["ignore_index"] = int(rng.integers(shape[-1]))
        target = np.where(y == -100, options["ignore_index"], y)
    if rng.random() < 0.5:
        options["temperature"] = rng.uniform(0.3, 4, (*shape[:-1], 1)).astype(dtype)
    exact = Exact(x, target, **options)
    if "temperature" in options:
        options["temperature"] = np.moveaxis(options["temperature"], -1, axis)
    change = LAYOUTS[rng.choice([name for name in LAYOUTS if name != "bytes"])]
    moved = change(np.moveaxis(x, -1, axis))
    target = change(np.moveaxis(target, -1, axis)) if target.dtype.kind == "f" else target
    eps = np.finfo(dtype).eps
    for reduction in REDUCTIONS:
        loss, grad = fsm.cross_entropy(
            moved, target, axis, reduction=reduction, return_grad=True, backend=backend, **options
        )
        assert_allclose(loss, exact.reduced(reduction).astype(dtype), rtol=8 * eps, atol=0)
        want, size = exact.gradient(reduction)
        assert (abs(np.moveaxis(grad, axis, -1) - want) <= 16 * np.spacing(size.astype(dtype))).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
def test_gradient_by_finite_differences(kind, reduction, backend):
    rng = np.random.default_rng(6)
    x, y, q, w = random_rows(rng, (4, 5), np.float64, scale=1)
    t = rng.uniform(0.5, 2, (4, 1))
    given = {"weight": w, "label_smoothing": 0.2, "z_loss": 0.1, "temperature": t, "reduction": reduction}
    target = y if kind == "indices" else q

    def loss(x):
        return fsm.cross_entropy(x, target, backend=backend, **given).sum()

    grad, h, steps = fsm.cross_entropy(x, target, return_grad=True, **given)[1], 1e-5, np.eye(20).reshape(20, 4, 5)
    want = [(loss(x + h * step) - loss(x - h * step)) / (2 * h) for step in steps]
    assert_allclose(grad.ravel(), want, atol=2e-9)


def test_gradient_next_to_certainty(dtype, backend):
    """-(1 - p), which is nothing if p is rounded first."""
    gaps = np.linspace(0, {"float32": 100, "float64": 740}[dtype], 500)
    for n in (2, 9, 40, 9000):
        x = np.zeros((500 if n < 9000 else 20, n), dtype)
        x[:, n // 2] = gaps[:: 500 // len(x)]
        y = np.full(len(x), n // 2)
        for reduction in ("none", "sum", "mean"):
            grad = fsm.cross_entropy(x, y, reduction=reduction, return_grad=True, backend=backend)[1]
            want = Exact(x, y).gradient(reduction)[0]
            assert ref.ulp_error(grad, want).max() <= GRADIENT_BOUND
            assert (grad[:, n // 2] < 0).all() or reduction == "mean"  # which may be too small


def test_temperature(dtype, backend):
    """Divided first, one number for all or one a row: the bits of logits that were divided by hand."""
    rng = np.random.default_rng(7)
    for shape, axis in (((30, 40), -1), ((5, 6, 7), 1), ((2, 9000), -1)):
        x, y = rng.normal(0, 3, shape).astype(dtype), targets(rng, shape, axis)
        kept = [1 if i == axis % len(shape) else n for i, n in enumerate(shape)]
        for t in (0.7, np.float32(3), 2, rng.uniform(0.2, 5, kept).astype(dtype)):
            z = x / np.asarray(t, dtype)
            options = {"reduction": "none", "return_lse": True, "backend": backend}
            got = fsm.cross_entropy(x, y, axis, temperature=t, **options)
            for a, b in zip(got, fsm.cross_entropy(z, y, axis, **options), strict=True):
                assert_same_bits(a, b)
            got = fsm.token_logprobs(x, y, axis, temperature=t, backend=backend)
            assert_same_bits(got, at(fsm.log_softmax(z, axis, backend=backend), y, axis))
            for reduction in REDUCTIONS:
                given = {"reduction": reduction, "return_grad": True, "backend": backend}
                grad = fsm.cross_entropy(x, y, axis, temperature=t, **given)[1]
                want = fsm.cross_entropy(z, y, axis, **given)[1] / np.asarray(t, dtype)
                assert_allclose(grad, want, rtol=4 * np.finfo(dtype).eps)


def test_z_loss(dtype, backend):
    """lse ** 2 of every row that counts, whatever its weight; ignored rows add nothing."""
    rng = np.random.default_rng(8)
    x, y, q, w = random_rows(rng, (50, 12), dtype)
    y[:3], w[5] = -100, 0
    lse, counted = fsm.logsumexp(x, 1).astype(np.float64), y >= 0
    close = {"rtol": 1e-5 if dtype == "float32" else 1e-13}
    for target, count in ((y, counted), (q, np.ones(50, bool))):
        options = {"weight": w, "backend": backend}
        extra = 0.3 * lse**2 * count
        for reduction, want in (("none", extra), ("sum", extra.sum()), ("mean", extra.sum() / count.sum())):
            with_it = fsm.cross_entropy(x, target, reduction=reduction, z_loss=0.3, **options)
            without = fsm.cross_entropy(x, target, reduction=reduction, **options)
            assert_allclose(with_it, without + want, **close)
    loss, grad = fsm.cross_entropy(x, y, z_loss=0.3, weight=w, reduction="none", return_grad=True, backend=backend)
    assert_array_equal(loss[~counted], 0)
    assert_array_equal(grad[~counted], 0)
    plain = fsm.cross_entropy(x, y, weight=w, reduction="none", return_grad=True, backend=backend)[1]
    assert_allclose(
        grad, plain + (0.6 * lse * counted)[:, np.newaxis] * fsm.softmax(x), **close | {"atol": close["rtol"]}
    )
    assert_same_bits(
        fsm.cross_entropy(x, y, z_loss=0, reduction="none", backend=backend),
        fsm.cross_entropy(x, y, reduction="none", backend=backend),
    )


def test_what_is_returned(backend):
    """loss, or the tuple (loss[, lse][, grad]); arrays of rows, scalars of reductions."""
    for dtype, of_loss, of_lse in (
        ("float16", "float16", "float32"),
        ("float32", "float32", "float32"),
        ("float64", "float64", "float64"),
        ("int8", "float64", "float64"),
        ("uint64", "float64", "float64"),
        ("bool", "float64", "float64"),
    ):
        x = (np.arange(24).reshape(2, 4, 3) % 5).astype(dtype)
        y = np.array([[0, 3, 1], [-100, 2, 3]])
        for reduction, shape in (("none", (2, 3)), ("mean", ()), ("sum", ())):
            call = functools.partial(fsm.cross_entropy, x, y, 1, reduction=reduction, backend=backend)
            loss = call()
            assert loss.shape == shape
            assert loss.dtype == of_loss
            assert isinstance(loss, np.ndarray if shape else np.generic)
            loss1, lse = call(return_lse=True)
            loss2, grad = call(return_grad=True)
            loss3, lse3, grad3 = call(return_lse=True, return_grad=True)
            given = np.empty(x.shape, of_loss)
            loss4, grad4 = call(grad_out=given)
            assert grad4 is given
            for other in (loss1, loss2, loss3, loss4):
                assert_same_bits(np.asarray(other), np.asarray(loss))
            assert (lse.dtype, lse.shape, grad.dtype, grad.shape) == (of_lse, (2, 3), of_loss, x.shape)
            assert_same_bits(lse3, lse)
            assert_array_equal(lse, fsm.logsumexp(x.astype(of_lse), 1, backend=backend))
            for other in (grad3, grad4):
                assert_same_bits(other, grad)
            want = fsm.cross_entropy(x.astype(of_loss), y, 1, reduction=reduction, return_grad=True, backend=backend)
            assert_same_bits(np.asarray(want[0]), np.asarray(loss))
            assert_same_bits(want[1], grad)


def test_one_row(backend):
    """Logits of one dimension, a target of none."""
    x = [1.0, 2.0, 4.0]
    want = np.log(np.exp(x).sum()) - 2
    for y in (1, np.int8(1), np.array(1, np.uint64)):
        for reduction in REDUCTIONS:
            loss, lse, grad = fsm.cross_entropy(
                x, y, reduction=reduction, return_lse=True, return_grad=True, backend=backend
            )
            assert np.shape(loss) == np.shape(lse) == ()
            assert loss == pytest.approx(want, rel=1e-14)
            assert_allclose(grad, fsm.softmax(x) - [0, 1, 0], rtol=1e-14)
    assert np.shape(fsm.token_logprobs(x, 1, backend=backend)) == ()
    assert np.shape(fsm.nll_loss(fsm.log_softmax(x), 1, reduction="none")) == ()


def test_lists(backend):
    x = [[1.0, 2.0, 4.0], [0.0, 0.0, 1.0]]
    want = fsm.cross_entropy(np.array(x), np.array([1, 2]), weight=np.array([1.0, 2.0, 3.0]), backend=backend)
    assert fsm.cross_entropy(x, [1, 2], weight=[1, 2, 3], backend=backend) == want
    assert fsm.cross_entropy(x, [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], backend=backend) == pytest.approx(
        fsm.cross_entropy(x, [1, 2], backend=backend), rel=1e-14
    )
    assert_same_bits(fsm.token_logprobs(x, [1, 2], backend=backend), fsm.token_logprobs(x, np.array([1, 2])))


def test_weights_of_other_types(dtype, backend):
    x, y, q, _ = random_rows(np.random.default_rng(9), (20, 6), dtype)
    for target in (y, q):
        want = fsm.cross_entropy(x, target, weight=np.array([1, 2, 3, 4, 5, 6], dtype), backend=backend)
        for kind in ("int8", "uint16", "float16", "float32", "float64"):
            got = fsm.cross_entropy(x, target, weight=np.array([1, 2, 3, 4, 5, 6], kind), backend=backend)
            assert_same_bits(got, want)
    want = fsm.cross_entropy(x, q, backend=backend)
    other = "float64" if dtype == "float32" else "float16"
    small = q if dtype == "float32" else np.round(q * 64) / 64
    want = fsm.cross_entropy(x, small, backend=backend)
    assert_allclose(fsm.cross_entropy(x, small.astype(other), backend=backend), want, rtol=4 * np.finfo(dtype).eps)


def test_big_integers_keep_their_differences(backend):
    x = np.array([[2**63 - 1, 2**63 - 2]])
    want = fsm.log_softmax(x, backend=backend)[:, 0]
    assert fsm.token_logprobs(x, [0], backend=backend) == want
    loss, lse = fsm.cross_entropy(x, [0], reduction="none", return_lse=True, backend=backend)
    assert loss == -want and lse == fsm.logsumexp(x, -1, backend=backend)


def test_gradient_of_lse_alone_does_not_cancel(backend, dtype):
    x = np.array([[0, -12, 0.5], [3, 1, -30]], dtype)
    options = {"weight": [1, 0, 0], "z_loss": 0.1, "reduction": "sum", "return_grad": True, "backend": backend}
    _, gradient = fsm.cross_entropy(x, [1, 2], **options)
    p, lse = fsm.softmax(x.astype(float)), fsm.logsumexp(x.astype(float), -1, keepdims=True)
    assert_allclose(gradient, 0.2 * lse * p, rtol=40 * np.finfo(dtype).eps)  # e^log p: off by |log p| ulp


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_direct_sums_of_half_types_are_rounded_as_others(half, bfloat16):
    random, kind = np.random.default_rng(5), np.dtype(bfloat16 if half == "bfloat16" else half)
    for _ in range(300):
        size = 10.0 ** random.uniform(-4, 4 if half == "float16" else 20)
        x = (random.normal(size=(random.integers(1, 6), 3)) * size).astype(kind)
        y = random.integers(0, 3, len(x))
        for reduction in ("none", "sum", "mean"):
            got, want = (fsm.cross_entropy(x, y, reduction=reduction, backend=b) for b in (None, "numba"))
            np.testing.assert_array_equal(np.asarray(got, float), np.asarray(want, float))


# ---- special values ----


@pytest.mark.parametrize(("rows", "n"), [(1, 3), (40, 3), (3, 20), (40, 20), (2, 9000)])
def test_truth_table(rows, n, dtype, backend):
    def loss(first, y, **given):
        x = np.zeros((rows, n), dtype)
        x[:, : len(first)] = first
        got = fsm.cross_entropy(x, np.full(rows, y), reduction="none", backend=backend, **given)
        assert len(set(got.tolist())) == 1 or np.isnan(got).all()
        mean = fsm.cross_entropy(x, np.full(rows, y), backend=backend, **given)
        assert_allclose(mean, got[0], rtol=1e-5)
        return got[0]

    for first in ([nan], [0, nan, inf], [inf], [inf, inf], [inf, nan, -inf], [-inf] * n):
        for y in (0, 1, 2):
            for given in ({}, {"label_smoothing": 0.1}, {"z_loss": 0.1}, {"weight": np.ones(n)}):
                assert np.isnan(loss(first, y, **given)), (first, y, given)
    assert loss([-inf], 0) == inf
    assert loss([-inf, 5], 1) < n
    assert loss([-inf], 1, label_smoothing=0.1) == inf
    assert loss([-inf], 1, label_smoothing=0.1, weight=np.arange(n)) < inf  # not where its weight is 0
    assert loss([-inf], 1, label_smoothing=0.1, weight=np.ones(n)) == inf
    assert loss([-inf], 1, weight=np.ones(n)) < inf
    q = np.zeros((rows, n), dtype)
    q[:, 1] = 1
    x = np.zeros((rows, n), dtype)
    x[:, 0] = -inf
    got, grad = fsm.cross_entropy(x, q, reduction="none", return_grad=True, backend=backend)
    assert_allclose(got, np.log(n - 1), rtol=1e-6)
    assert_array_equal(grad[:, 0], 0)
    q[:, 0] = 0.5
    assert (fsm.cross_entropy(x, q, reduction="none", backend=backend) == inf).all()
    big = np.finfo(dtype).max
    assert loss([big, -big], 0) == 0
    assert loss([big, -big], 1) == inf  # the true value overflows


def test_small_losses_keep_their_digits(dtype, backend):
    x = np.array([[20, 0]], dtype)
    assert fsm.cross_entropy(x, [0], backend=backend) == pytest.approx(2.0611536224385578e-9, rel=1e-6)


@pytest.mark.parametrize("kind", ["indices", "probabilities"])
def test_nothing_to_average(kind, dtype, backend):
    for shape in ((0, 4), (0, 3, 4), (2, 0, 4)):
        x = np.empty(shape, dtype)
        y = np.empty(shape[:-1], int) if kind == "indices" else np.empty(shape, dtype)
        for reduction in REDUCTIONS:
            loss, lse, grad = fsm.cross_entropy(
                x, y, reduction=reduction, return_lse=True, return_grad=True, backend=backend
            )
            assert loss.dtype == dtype
            assert_array_equal(loss, {"none": np.empty(shape[:-1]), "mean": nan, "sum": 0}[reduction])
            assert (lse.shape, grad.shape) == (shape[:-1], shape)
        if kind == "indices":
            assert np.isnan(fsm.nll_loss(x, y))
            assert fsm.nll_loss(x, y, reduction="sum") == 0
            assert fsm.nll_loss(x, y, reduction="none").shape == shape[:-1]
            assert fsm.token_logprobs(x, y, backend=backend).shape == shape[:-1]


@pytest.mark.parametrize("backend", [*BACKENDS, None])
def test_all_ignored(dtype, backend):
    x, y = np.full((3, 4), nan, dtype), np.full(3, -100)
    for options in ({}, {"weight": [1, 2, 3, 4]}, {"label_smoothing": 0.1}, {"z_loss": 0.1}):
        for reduction, want in (("none", [0, 0, 0]), ("mean", nan), ("sum", 0)):
            loss, grad = fsm.cross_entropy(x, y, reduction=reduction, return_grad=True, backend=backend, **options)
            assert_array_equal(loss, want)
            assert_array_equal(grad, 0)
    assert np.isnan(fsm.nll_loss(x, y))
    assert fsm.nll_loss(x, y, reduction="sum") == 0
    assert_array_equal(fsm.nll_loss(x, y, reduction="none"), [0, 0, 0])


def test_no_floating_point_error(dtype, backend):
    """Not where results overflow or underflow, however strict the caller is."""
    big, x = np.finfo(dtype).max, np.zeros((5, 40), dtype)
    x[0, 0], x[0, 1], x[1, 0], x[2, ::2], x[3], x[4, 0] = big, -big, inf, -inf, nan, 1000
    q = np.full((5, 40), 0.025, dtype)
    half = np.clip(x, -60_000, 60_000).astype(np.float16)
    with np.errstate(all="raise"):
        for target in (np.array([1, 0, 0, 3, 5]), np.array([1, 0, 0, -100, 5]), np.full(5, -100), q, q * 0):
            for options in OPTIONS.values():
                list(results(x, target, q[0], options, backend=backend))
        fsm.token_logprobs(x, np.ones(5, int), temperature=0.01, backend=backend)
        fsm.token_logprobs(half, np.ones(5, int), temperature=0.01, backend=backend)
        list(results(half, np.ones(5, int), q[0], OPTIONS["all"], backend=backend))
        fsm.nll_loss(x, np.ones(5, int), weight=q[0])
        for log_target in (False, True):
            fsm.kl_div(x, q * x, log_target=log_target)
            fsm.kl_div(q, x, log_target=log_target, reduction="sum")


# ---- memory ----


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_what_numpy_allocates_in_a_forward_pass(dtype, backend):
    """Of the arrays of this size: nothing in C, tiles in the others."""
    x, y = np.zeros((64, 50_000), dtype), np.zeros(64, np.int64)
    call = functools.partial(fsm.cross_entropy, backend=backend)
    call(x[:2], y[:2])
    tracemalloc.start()
    try:
        call(x, y)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    most = 1 << 20 if backend.startswith("c-") else (16 << 20) + (x.size * 4 if dtype == "float16" else 0)
    assert peak < most, f"{peak / 2**20:.1f} MiB"


def test_nothing_of_the_size_of_the_logits_is_allocated(backend, run_ok):
    """The most that is in use at once beside the arrays, as the system sees it."""
    code = f"""
import json, numpy as np, fastsoftmax as fsm
def peak():
    return 1024 * int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
def measure(call):
    open("/proc/self/clear_refs", "w").write("5")  # the peak is what is in use now
    before = peak()
    call()
    return peak() - before
fsm.set_num_threads(1)
found = {{}}
for rows, n in ((640, 50_000), (1_000_000, 32)):
    x, y = np.zeros((rows, n), "f4"), np.zeros(rows, np.int64)
    x[...] = np.arange(n) % 7
    w = np.ones(n, "f4")
    fsm.cross_entropy(x[:2], y[:2], return_grad=True, backend={backend!r})
    fsm.token_logprobs(x[:2], y[:2], backend={backend!r})
    found[f"forward, {{n}}"] = measure(lambda: fsm.cross_entropy(x, y, backend={backend!r}))
    found[f"token_logprobs, {{n}}"] = measure(lambda: fsm.token_logprobs(x, y, backend={backend!r}))
    found[f"in place, {{n}}"] = measure(lambda: fsm.cross_entropy(x, y, grad_out=x, backend={backend!r}))
print(json.dumps(found))
"""
    for name, extra in json.loads(run_ok(code)).items():
        rows = 24 << 20 if name.endswith(" 32") else 0  # some numbers a row
        assert extra < (4 << 20 if backend.startswith("c-") else 24 << 20) + rows, f"{name}: {extra >> 20} MiB"
