"""cross_entropy, nll_loss, kl_div and token_logprobs against formulas in long double, and what they promise."""

import functools
import itertools
import json
import tracemalloc

import numpy as np
import pytest
import reference as ref
from conftest import BACKENDS
from layouts import LAYOUTS, assert_same_bits, bits, unaligned
from numpy.exceptions import AxisError
from numpy.testing import assert_allclose, assert_array_equal

import fastsoftmax as fsm

LD = np.longdouble
REDUCTIONS = ["none", "mean", "sum"]
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
PLAIN_BOUND = {"float32": 2.5, "float64": 3.0}
GRADIENT_BOUND = 8
inf, nan = np.inf, np.nan


# ---- the reference ----


def product(a, b):
    """a * b, where nothing times anything is nothing."""
    with np.errstate(all="ignore"):
        return np.where((a == 0) | (b == 0), 0, a * b)


def times_weight(t, y):
    """The same for t alone: NaN where y is NaN, 0 where y is infinite and t is not there."""
    with np.errstate(all="ignore"):
        return np.where(t == 0, 0, t * y)


class Exact:
    """Losses and gradients of rows on the last axis, in long double, from log-probabilities `y`."""

    def __init__(self, z, target, weight=None, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, temperature=1.0):
        z, target, eps = np.asarray(z), np.asarray(target), LD(label_smoothing)
        if np.ndim(temperature) or temperature != 1:
            z = z / np.asarray(temperature, z.dtype)  # rounded once
        classes = z.shape[-1]
        w = np.ones(classes, LD) if weight is None else ref.exactly(weight)
        self.y, lse = ref.log_softmax(z), ref.logsumexp(z)
        self.indices = target.dtype.kind in "iu"
        if self.indices:
            self.ignored = target == ignore_index
            one_hot = np.arange(classes) == target[..., np.newaxis]
            t = w * (one_hot * (1 - eps) + eps / classes)
            if eps == 0:
                t = np.where(one_hot, w, 0)
            else:
                t = (1 - eps) * np.where(one_hot, w, 0).sum(-1, keepdims=True) * one_hot + eps / classes * w
            t[self.ignored] = 0
            self.counts = np.where(self.ignored, 0, w[np.where(self.ignored, 0, target)])
        else:
            self.ignored = np.zeros(z.shape[:-1], bool)
            t = w * (ref.exactly(target) * (1 - eps) + eps / classes)
            self.counts = np.ones(z.shape[:-1], LD)
        self.terms = t
        self.loss = ref.exact_sum(times_weight(t, -self.y))
        self.z_loss = np.where(self.ignored, 0, product(LD(z_loss), lse * lse))
        self.lse, self.z, self.temperature = lse, z_loss, LD(1) * temperature

    def reduced(self, reduction):
        if reduction == "none":
            return self.loss + self.z_loss
        loss, z_loss = self.loss.ravel(), self.z_loss.ravel()
        if reduction == "sum":
            return ref.exact_sum(loss) + ref.exact_sum(z_loss)
        with np.errstate(all="ignore"):
            mean = ref.exact_sum(loss) / ref.exact_sum(self.counts.ravel())
            return mean + ref.exact_sum(z_loss) / (~self.ignored).sum() if self.z else mean

    def gradient(self, reduction):
        """p * (sum of t) - t, and how large its parts are, whose difference it is."""
        p, total = np.exp(self.y), self.terms.sum(-1, keepdims=True)
        alone = self.indices & (self.terms == total) & (total != 0)  # one class has it all: p - 1 without cancellation
        grad = np.where(alone, total * np.expm1(self.y), total * p - self.terms)
        size = np.where(alone, abs(grad), total * p + abs(self.terms))
        factor = np.where(self.ignored, 0, 2 * LD(self.z) * self.lse)[..., np.newaxis]
        parts = [(grad, size), (factor * p, abs(factor) * p)]
        if reduction == "mean":
            by = (self.counts.sum() or 1, (~self.ignored).sum() or 1)
            parts = [(g / n, s / n) for (g, s), n in zip(parts, by, strict=True)]
        return tuple(sum(pair) / self.temperature for pair in zip(*parts, strict=True))


def random_rows(rng, shape, dtype, scale=3):
    """Logits, class indices of which some are -100, probabilities of which some are 0, weights."""
    x = rng.normal(0, scale, shape).astype(dtype)
    y = rng.integers(0, shape[-1], shape[:-1])
    y = np.where(rng.random(shape[:-1]) < 0.2, -100, y)
    q = rng.exponential(1, shape) * (rng.random(shape) < 0.7)
    q = (q / np.maximum(q.sum(axis=-1, keepdims=True), 1e-9)).astype(dtype)
    return x, y, q, rng.uniform(0.1, 3, shape[-1]).astype(dtype)


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


# ---- the bits of log_softmax ----

SHAPES = [
    ((7,), 0),
    ((5, 7), -1),
    ((40, 1), -1),
    ((3, 100), 1),
    ((70, 10), 0),
    ((20, 33), 0),
    ((4, 5, 6, 7), 2),
    ((4, 5, 6), 0),
    ((1, 8192), -1),
    ((2, 8193), -1),
    ((2, 20_000), -1),
    ((20_000, 2), 0),
    ((1, 100_000), -1),
]


def at(y, target, axis):
    return np.take_along_axis(y, np.expand_dims(target, axis), axis).squeeze(axis)


def assert_is_minus(loss, want):
    """Bit for bit, but for the sign of zero."""
    assert (loss >= 0).all()
    assert_same_bits(np.abs(loss), np.abs(want))


def targets(rng, shape, axis):
    axis %= len(shape)
    return np.asarray(rng.integers(0, shape[axis], shape[:axis] + shape[axis + 1 :]))


@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
def test_same_bits_as_log_softmax(shape, axis, dtype, backend, thread_count, split_early):
    rng = np.random.default_rng([1, *shape])
    x, y = rng.normal(0, 4, shape).astype(dtype), targets(rng, shape, axis)
    want = at(fsm.log_softmax(x, axis, backend=backend), y, axis)
    before = bits(x)
    loss, lse, _ = fsm.cross_entropy(x, y, axis, reduction="none", return_lse=True, return_grad=True, backend=backend)
    assert_is_minus(np.asarray(loss), want)
    assert_same_bits(np.asarray(lse), np.asarray(fsm.logsumexp(x, axis, backend=backend)))
    assert_is_minus(np.asarray(fsm.cross_entropy(x, y, axis, reduction="none", backend=backend)), want)
    assert_same_bits(np.asarray(fsm.token_logprobs(x, y, axis, backend=backend)), want)
    assert bits(x) == before


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_types_have_the_bits_of_float32(half, backend, bfloat16):
    dtype = np.dtype(bfloat16 if half == "bfloat16" else half)
    for shape, axis in SHAPES:
        rng = np.random.default_rng([2, *shape])
        x, y = rng.normal(0, 4, shape).astype(dtype), targets(rng, shape, axis)
        want = at(fsm.log_softmax(x.astype(np.float32), axis, backend=backend), y, axis).astype(dtype)
        assert_is_minus(np.asarray(fsm.cross_entropy(x, y, axis, reduction="none", backend=backend)), want)
        assert_same_bits(np.asarray(fsm.token_logprobs(x, y, axis, backend=backend)), want)


def strided(x):
    """Every second of something larger, reversed: for integers, too."""
    return np.repeat(x[::-1], 2, axis=0)[::-2]


TARGET_LAYOUTS = [LAYOUTS[n] for n in ("C", "F", "unaligned by 1", "packed field", "swapped bytes", "read-only")]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, dtype, backend):
    rng = np.random.default_rng(3)
    x, y = rng.normal(0, 4, (6, 5, 30)).astype(dtype), rng.integers(0, 30, (6, 5))
    q = rng.random(x.shape).astype(dtype)
    w = rng.random(30).astype(dtype)
    change, smooth = LAYOUTS[layout], {"weight": w, "label_smoothing": 0.1}
    for axis in (0, 1, 2):
        moved, moved_q = np.moveaxis(x, -1, axis), np.moveaxis(q, -1, axis)
        for i, kind in enumerate([*TARGET_LAYOUTS, strided]):
            options = {"reduction": REDUCTIONS[i % 3], "return_lse": True, "return_grad": True, "backend": backend}
            want = fsm.cross_entropy(x, y, **options)
            got = fsm.cross_entropy(change(moved), kind(y), axis, **options)
            for a, b in zip(got[:2], want[:2], strict=True):
                assert_same_bits(np.asarray(a), np.asarray(b), f"axis {axis}")
            assert_same_bits(np.moveaxis(got[2], axis, -1), want[2], f"axis {axis}")
            want = fsm.token_logprobs(x, y, backend=backend)
            assert_same_bits(fsm.token_logprobs(change(moved), kind(y), axis, backend=backend), want)
        for reduction in REDUCTIONS:
            options = {"reduction": reduction, "return_grad": True, "backend": backend} | smooth
            want = fsm.cross_entropy(x, q, **options)
            got = fsm.cross_entropy(change(moved), change(moved_q), axis, **options | {"weight": change(w)})
            assert_same_bits(np.asarray(got[0]), np.asarray(want[0]))
            assert_same_bits(np.moveaxis(got[1], axis, -1), want[1])


OPTIONS = {
    "plain": {},
    "weight": {"weight": "w"},
    "temperature": {"temperature": 0.7},
    "z_loss": {"z_loss": 1e-3},
    "smoothing": {"label_smoothing": 0.1},
    "all": {"weight": "w", "temperature": 0.7, "z_loss": 1e-3, "label_smoothing": 0.1},
}


def results(x, y, w, options, **more):
    options = {"return_lse": True} | options | ({"weight": w} if "weight" in options else {}) | more
    for reduction in REDUCTIONS:
        yield from fsm.cross_entropy(x, y, reduction=reduction, return_grad=True, **options)


@pytest.mark.parametrize("options", OPTIONS)
def test_every_fma_backend_has_the_same_bits(options, dtype, fma_backend, thread_count, split_early):
    for shape in ((200, 33), (2000, 10), (3, 9000), (1, 40_001), (9, 1)):
        x, y, _, w = random_rows(np.random.default_rng(shape), shape, dtype)
        y[0] = 0
        with fsm.threads(1):
            want = list(results(x, y, w, OPTIONS[options], backend="numba"))
        for a, b in zip(results(x, y, w, OPTIONS[options], backend=fma_backend), want, strict=True):
            assert_same_bits(np.asarray(a), np.asarray(b), f"{shape}")


@pytest.mark.parametrize("kind", ["indices", "probabilities"])
def test_threads_change_no_bit(kind, dtype, backend, thread_count, split_early):
    for shape in ((3000, 10), (300, 200), (2, 40_000)):
        x, y, q, w = random_rows(np.random.default_rng(shape), shape, dtype)
        target = y if kind == "indices" else q
        with fsm.threads(1):
            want = list(results(x, target, w, OPTIONS["all"], backend=backend))
        for a, b in zip(results(x, target, w, OPTIONS["all"], backend=backend), want, strict=True):
            assert_same_bits(np.asarray(a), np.asarray(b), f"{shape}")


@pytest.mark.parametrize("kind", ["indices", "probabilities"])
def test_same_bits_in_any_batch(kind, dtype, backend):
    for n in (1, 5, 10, 33, 300, 9000):
        x, y, q, w = random_rows(np.random.default_rng(n), (37, n), dtype)
        target = y if kind == "indices" else q
        options = {"weight": w, "label_smoothing": 0.2, "z_loss": 1e-2, "reduction": "none", "return_grad": True}
        for given in ({"reduction": "none", "return_grad": True}, options):
            loss, grad = fsm.cross_entropy(x, target, backend=backend, **given)
            for part in (slice(1), slice(3, 20), slice(36, None)):
                got = fsm.cross_entropy(x[part], target[part], backend=backend, **given)
                assert_same_bits(got[0], loss[part])
                assert_same_bits(got[1], grad[part])


@pytest.mark.skipif(not BACKENDS[0].startswith("c-"), reason="the C part is not expected here")
def test_without_backend(dtype):
    """What is left to the dispatcher, the simplest call included, gives the same bits."""
    for shape in ((5,), (1, 7), (3, 4), (2, 3, 4), (40, 300)):
        x, y, q, w = random_rows(np.random.default_rng(shape), shape, dtype)
        y, c = np.asarray(y), BACKENDS[0]
        for kind in ("int64", "int32", "uint8"):
            ids = (abs(y) % min(shape[-1], 99)).astype(kind)
            for axis in (-1, len(shape) - 1):
                assert_same_bits(
                    np.asarray(fsm.cross_entropy(x, ids, axis)), np.asarray(fsm.cross_entropy(x, ids, axis, backend=c))
                )
            assert_same_bits(np.asarray(fsm.token_logprobs(x, ids)), np.asarray(fsm.token_logprobs(x, ids, backend=c)))
        for target, options, lse in itertools.product((y, q), OPTIONS.values(), (True, False)):
            options = options | {"return_lse": lse}
            for a, b in zip(results(x, target, w, options), results(x, target, w, options, backend=c), strict=True):
                assert_same_bits(np.asarray(a), np.asarray(b))


@pytest.mark.skipif(not BACKENDS[0].startswith("c-"), reason="the C part is not expected here")
def test_sums_without_backend(dtype):
    """Of so many rows that a plain sum has lost some bits."""
    for seed in range(20):
        x, y, _, _ = random_rows(np.random.default_rng(seed), (3000, 3), dtype)
        for reduction in ("mean", "sum"):
            want = fsm.cross_entropy(x, y, reduction=reduction, backend=BACKENDS[0])
            assert_same_bits(np.asarray(fsm.cross_entropy(x, y, reduction=reduction)), np.asarray(want))


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


# ---- targets ----


@pytest.mark.parametrize("kind", INTEGERS)
def test_targets_of_every_integer_type(kind, dtype, backend):
    x, y, _, _ = random_rows(np.random.default_rng(10), (30, 10), dtype)
    y[0] = 9
    ignored = -100 if kind.startswith("i") else 100
    y = np.where(y == -100, ignored, y)
    options = {"ignore_index": ignored, "reduction": "none", "return_grad": True, "backend": backend}
    want = fsm.cross_entropy(x, y, **options)
    for target in (y.astype(kind), y.astype(np.dtype(kind).newbyteorder()), unaligned(y.astype(kind))):
        for a, b in zip(fsm.cross_entropy(x, target, **options), want, strict=True):
            assert_same_bits(a, b)
        got = fsm.nll_loss(x, target, ignore_index=ignored, reduction="none")
        assert_array_equal(got, np.where(y == ignored, 0, -at(x, y % 10, 1)))
    ids = y % 10
    want = fsm.token_logprobs(x, ids, backend=backend)
    assert_same_bits(fsm.token_logprobs(x, ids.astype(kind), backend=backend), want)


OUT_OF_RANGE = [
    (kind, value)
    for kind in INTEGERS
    for value in (
        -1,
        -99,
        -101,
        10,
        127,
        156,
        255,
        2**15,
        2**31 - 1,
        2**31,
        2**32 - 100,
        2**62,
        2**63,
        2**64 - 100,
        2**64 - 1,
    )
    if np.iinfo(kind).min <= value <= np.iinfo(kind).max
]


@pytest.mark.parametrize("backend", [*BACKENDS, None])
@pytest.mark.parametrize(("kind", "value"), OUT_OF_RANGE)
def test_targets_out_of_range(kind, value, backend):
    """Refused before anything is written, even where the value would be -100 in another type."""
    x = np.zeros((2, 10, 3))
    y = np.zeros((2, 3), kind)
    y[1, 2] = value
    grad = np.full(x.shape, 7.0)
    with pytest.raises(IndexError, match="target") as caught:
        fsm.cross_entropy(x, y, 1, grad_out=grad, backend=backend)
    assert str(value) in str(caught.value)
    assert "(1, 2)" in str(caught.value)
    assert (grad == 7).all()
    with pytest.raises(IndexError, match=rf"target.*{value}"):
        fsm.nll_loss(x, y, 1)
    out = np.full((2, 3), 7.0)
    with pytest.raises(IndexError, match=rf"ids.*{value}"):
        fsm.token_logprobs(x, y, 1, out=out, backend=backend)
    assert (out == 7).all()


def test_more_targets_out_of_range(backend):
    with pytest.raises(IndexError, match=r"ids.*-100"):
        fsm.token_logprobs(np.zeros((2, 3)), [0, -100], backend=backend)
    with pytest.raises(IndexError, match=r"target.*-100"):
        fsm.cross_entropy(np.zeros((2, 3)), [0, -100], ignore_index=-1, backend=backend)
    with pytest.raises(IndexError, match=r"target.*3"):
        fsm.cross_entropy(np.zeros(3), 3, backend=backend)
    x = np.zeros((100_000, 3), np.float32)
    y = np.zeros(100_000, np.int64)
    y[99_999] = 3
    with pytest.raises(IndexError, match=r"target.*3.*99999"):
        fsm.cross_entropy(x, y, grad_out=x, backend=backend)
    assert (x == 0).all()


@pytest.mark.parametrize("ignore_index", [-100, -1, 0, 4, 255, 2**40, -(2**40)])
def test_ignored_rows(ignore_index, dtype, backend):
    """They add nothing and get nothing, NaN or not; the others do not notice."""
    rng = np.random.default_rng(11)
    x, y, _, w = random_rows(rng, (60, 5), dtype)
    y = np.where(y == ignore_index, 1, y)
    y = np.where((y == -100) | (np.arange(60) == 7), ignore_index, y)
    keep = y != ignore_index
    x[~keep] = rng.choice([nan, inf, -inf, 1.0], ((~keep).sum(), 5))
    for weight, smoothing in itertools.product((None, w), (0, 0.1)):
        options = {"weight": weight, "ignore_index": ignore_index, "label_smoothing": smoothing, "backend": backend}
        for reduction in REDUCTIONS:
            more = options | {"reduction": reduction, "return_grad": True}
            loss, grad = fsm.cross_entropy(x, y, **more)
            want, want_grad = fsm.cross_entropy(x[keep], y[keep], **more)
            assert_allclose(loss[keep] if reduction == "none" else loss, want, rtol=8 * np.finfo(dtype).eps)
            assert_allclose(grad[keep], want_grad, rtol=8 * np.finfo(dtype).eps, atol=1e-30)
            assert_array_equal(grad[~keep], 0)
            if reduction == "none":
                assert_array_equal(loss[~keep], 0)
            got = fsm.nll_loss(x, y, weight=weight, ignore_index=ignore_index, reduction=reduction)
            want = fsm.nll_loss(x[keep], y[keep], weight=weight, reduction=reduction)
            assert_allclose(got[keep] if reduction == "none" else got, want, rtol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_a_nan_weight_of_any_payload_shows(half, backend, bfloat16):
    x = np.zeros((2, 70), bfloat16 if half == "bfloat16" else half)
    for payload in (0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF):
        weight = np.full(70, payload, np.uint32).view(np.float32)
        for result in fsm.cross_entropy(x, [3, 5], weight=weight, return_grad=True, backend=backend):
            assert np.isnan(result).all()


def test_rows_without_weight(dtype, backend):
    """Loss 0 and gradient 0, also at -inf."""
    x = np.array([[-inf, 1, 2], [0, 1, 2], [3, 2, 1]], dtype)
    y, w = np.array([0, 0, 2]), np.array([0, 1, 2], dtype)
    loss, grad = fsm.cross_entropy(x, y, weight=w, reduction="none", return_grad=True, backend=backend)
    assert_array_equal(loss[:2], 0)
    assert_array_equal(grad[:2], 0)
    assert fsm.cross_entropy(x, y, weight=w, backend=backend) == pytest.approx(loss[2] / 2, rel=1e-6)
    assert_array_equal(fsm.nll_loss(x, y, weight=w, reduction="none"), [0, 0, -2])


@pytest.mark.parametrize(
    "weight", [[inf, 1, 1], [1e-45, 1e-45, 1e-40], [3e38, 3e38, 3e38], [1e-320, 0, 0], [nan, 0, 1]]
)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_weights_give_a_warning(weight, reduction, dtype, backend):
    with np.errstate(all="raise"):
        fsm.cross_entropy(
            np.zeros((3, 3), dtype), [0, 1, 2], weight=weight, reduction=reduction, return_grad=True, backend=backend
        )
        fsm.nll_loss(np.zeros((3, 3), dtype), [0, 1, 2], weight=weight, reduction=reduction)


@pytest.mark.parametrize("smoothing", [0, 0.1])
def test_a_mean_over_subnormal_weights_has_its_gradient(smoothing, backend):
    """1 / (their sum) would be infinite."""
    x, tiny, given = np.array([[1.0, 0, 2], [0, 1, 0]]), 2.0**-1060, {"label_smoothing": smoothing, "backend": backend}
    _, got = fsm.cross_entropy(x, [0, 1], weight=[tiny, 3 * tiny, 0], return_grad=True, **given)
    _, want = fsm.cross_entropy(x, [0, 1], weight=[1, 3, 0], return_grad=True, **given)
    assert_allclose(got, want, rtol=1e-14, atol=1e-3 if smoothing else 0)  # shares of what is subnormal have few digits


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


# ---- grad_out ----


@pytest.mark.parametrize("kind", ["indices", "probabilities"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_in_place(kind, reduction, dtype, backend):
    for shape, axis in (((60, 33), 1), ((33, 60), 0), ((1, 20_000), 1), ((3, 9, 8), 1), ((40, 1), 1)):
        rng = np.random.default_rng(shape)
        x, y = rng.normal(0, 3, shape).astype(dtype), targets(rng, shape, axis)
        w = rng.random(shape[axis]).astype(dtype)
        target = y if kind == "indices" else rng.random(shape).astype(dtype)
        for options in ({}, {"weight": w, "label_smoothing": 0.1, "z_loss": 0.1}):
            options = options | {"reduction": reduction, "backend": backend}
            loss, grad = fsm.cross_entropy(x, target, axis, return_grad=True, **options)
            place = x.copy()
            got = fsm.cross_entropy(place, target, axis, grad_out=place, **options)
            assert got[1] is place
            assert_same_bits(np.asarray(got[0]), np.asarray(loss))
            assert_same_bits(place, grad)
            if kind == "probabilities":
                place = target.copy()
                got = fsm.cross_entropy(x, place, axis, grad_out=place, **options)
                assert_same_bits(np.asarray(got[0]), np.asarray(loss))
                assert_same_bits(place, grad)


def test_overlapping(dtype, backend):
    rng = np.random.default_rng(12)
    for n in (1, 7, 40, 300, 9000):
        buffer = rng.normal(0, 2, 4 * n + 3).astype(dtype)
        y = rng.integers(0, n, 3)
        for start, change in ((1, None), (n, None), (3, slice(None, None, -1))):
            here = buffer.copy()
            x, place = here[: 3 * n].reshape(3, n), here[start : start + 3 * n].reshape(3, n)
            place = place[change] if change else place
            loss, grad = fsm.cross_entropy(x.copy(), y, return_grad=True, backend=backend)
            got = fsm.cross_entropy(x, y, grad_out=place, backend=backend)
            assert got[0] == loss
            assert got[1] is place
            assert_same_bits(place.copy(), grad)
        here = buffer.copy()  # as the target, shifted
        q, place = here[: 3 * n].reshape(3, n), here[2 : 2 + 3 * n].reshape(3, n)
        x = rng.normal(0, 2, (3, n)).astype(dtype)
        loss, grad = fsm.cross_entropy(x, q.copy(), return_grad=True, backend=backend)
        assert fsm.cross_entropy(x, q, grad_out=place, backend=backend)[0] == loss
        assert_same_bits(place.copy(), grad)


@pytest.mark.parametrize("backend", [*BACKENDS, None])
def test_over_the_class_indices(dtype, backend):
    """The gradient goes where the indices are, and where the logits are, transposed."""
    rng = np.random.default_rng(13)
    x = rng.normal(0, 2, (30, 30)).astype(dtype)
    place = np.zeros((30, 30), dtype)
    kind = {"float32": np.int32, "float64": np.int64}[dtype]
    for where in (place.view(kind)[-1], place.view(kind)[:, 3]):
        place[...] = 0
        where[...] = rng.integers(0, 30, 30)
        loss, grad = fsm.cross_entropy(x, where.copy(), return_grad=True, backend=backend)
        assert fsm.cross_entropy(x, where, grad_out=place, backend=backend)[0] == loss
        assert_same_bits(place, grad)
    y = rng.integers(0, 30, 30)
    loss, grad = fsm.cross_entropy(x.copy(), y, return_grad=True, backend=backend)
    fsm.cross_entropy(x, y, grad_out=x.T, backend=backend)
    assert_same_bits(x.T.copy(), grad)


def test_grad_out_with_gaps(dtype, backend):
    """What lies between stays as it is."""
    x, y, _, _ = random_rows(np.random.default_rng(14), (17, 9), dtype)
    grad = fsm.cross_entropy(x, y, return_grad=True, backend=backend)[1]
    whole = np.full((51, 20), 7, dtype)
    place = whole[::-3, 1:19:2]
    assert fsm.cross_entropy(x, y, grad_out=place, backend=backend)[1] is place
    assert_same_bits(place.copy(), grad)
    place[...] = 7
    assert (whole == 7).all()


def test_token_logprobs_into_out(dtype, backend):
    x, y, _, _ = random_rows(np.random.default_rng(15), (17, 9), dtype)
    y = abs(y) % 9
    want = fsm.token_logprobs(x, y, backend=backend)
    for out in (np.empty(17, dtype), np.empty(34, dtype)[::-2], x.copy()[:, 3]):
        assert fsm.token_logprobs(x, y, out=out, backend=backend) is out
        assert_same_bits(out.copy(), want)
    here = x.copy()
    fsm.token_logprobs(here, y, out=here[:, 2], backend=backend)
    assert_same_bits(here[:, 2].copy(), want)
    for bad in (np.empty(16, dtype), np.empty(17, "f2"), np.empty(17, dtype)[::1]):
        bad.flags.writeable = bad.shape != (17,) or bad.dtype != dtype
        with pytest.raises(ValueError, match="out"):
            fsm.token_logprobs(x, y, out=bad, backend=backend)


# ---- what is refused ----

X, Y = np.zeros((3, 4)), np.zeros(3, int)
Q = np.full((3, 4), 0.25)
READ_ONLY = np.zeros((3, 4))
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"target": np.zeros(4, int)}, ValueError, r"(?s)target.*\(3,\).*\(4,\)|target.*\(4,\).*\(3,\)"),
        ({"target": np.zeros((3, 4), int)}, ValueError, r"target"),
        ({"target": np.zeros((3, 1), int)}, ValueError, r"target"),
        ({"target": 0}, ValueError, r"target"),
        ({"target": np.zeros(3)}, ValueError, r"(?s)target.*\(3, 4\).*\(3,\)|target.*\(3,\).*\(3, 4\)"),
        ({"target": np.zeros((4, 3))}, ValueError, r"target"),
        ({"target": np.zeros(3, bool)}, TypeError, "target.*bool"),
        ({"target": np.ones((3, 4), bool)}, TypeError, "target.*bool"),
        ({"target": Q.astype(complex)}, TypeError, "target.*complex"),
        ({"target": np.ma.masked_array(Y, [True, False, False])}, TypeError, "target.*[Mm]ask"),
        ({"target": np.ma.masked_array(Q)}, TypeError, "target.*[Mm]ask"),
        ({"target": ["a", "b", "c"]}, TypeError, "target"),
        ({"target": [None] * 3}, TypeError, "target"),
        ({"target": np.zeros(3, "m8[s]")}, TypeError, "target"),
        ({"target": Q, "ignore_index": 0}, ValueError, "ignore_index"),
        ({"target": Q, "ignore_index": 300}, ValueError, "ignore_index"),
        ({"label_smoothing": -0.1}, ValueError, "label_smoothing.*-0.1"),
        ({"label_smoothing": 1.1}, ValueError, "label_smoothing.*1.1"),
        ({"label_smoothing": nan}, ValueError, "label_smoothing.*nan"),
        ({"label_smoothing": inf, "target": Q}, ValueError, "label_smoothing.*inf"),
        ({"label_smoothing": "a"}, TypeError, "label_smoothing"),
        ({"weight": np.ones(3)}, ValueError, "weight"),
        ({"weight": np.ones(5)}, ValueError, "weight"),
        ({"weight": np.ones((1, 4))}, ValueError, "weight"),
        ({"weight": 1.0}, ValueError, "weight"),
        ({"weight": np.ones(4, complex)}, TypeError, "weight"),
        ({"weight": ["a"] * 4}, TypeError, "weight"),
        ({"weight": np.ma.ones(4)}, TypeError, "weight.*[Mm]ask"),
        ({"reduction": "avg"}, ValueError, "reduction.*avg"),
        ({"reduction": "batchmean"}, ValueError, "reduction.*batchmean"),
        ({"reduction": None}, (ValueError, TypeError), "reduction"),
        ({"temperature": 0}, ValueError, "temperature"),
        ({"temperature": -1.5}, ValueError, "temperature"),
        ({"temperature": nan}, ValueError, "temperature"),
        ({"temperature": inf}, ValueError, "temperature"),
        ({"temperature": [[1], [0], [2]]}, ValueError, "temperature"),
        ({"temperature": np.ones(4)}, ValueError, "temperature"),
        ({"temperature": "warm"}, TypeError, "temperature"),
        ({"z_loss": -0.1}, ValueError, "z_loss.*-0.1"),
        ({"z_loss": nan}, ValueError, "z_loss.*nan"),
        ({"z_loss": inf}, ValueError, "z_loss.*inf"),
        ({"z_loss": "a"}, TypeError, "z_loss"),
        ({"grad_out": np.full((4, 3), 7.0)}, ValueError, "grad_out"),
        ({"grad_out": np.full((3, 4, 1), 7.0)}, ValueError, "grad_out"),
        ({"grad_out": np.full((3, 4), 7, np.float32)}, ValueError, "grad_out"),
        ({"grad_out": np.full((3, 4), 7, np.dtype("f8").newbyteorder())}, ValueError, "grad_out"),
        ({"grad_out": READ_ONLY}, ValueError, "grad_out"),
        ({"grad_out": [[0.0] * 4] * 3}, (TypeError, ValueError), "grad_out"),
        ({"grad_out": np.ma.zeros((3, 4))}, (TypeError, ValueError), "grad_out"),
        ({"axis": 2}, AxisError, "axis"),
        ({"axis": -3}, AxisError, "axis"),
        ({"axis": 1.0}, TypeError, "axis"),
        ({"axis": "1"}, TypeError, "axis"),
        ({"axis": None}, (TypeError, ValueError), "axis"),
        ({"axis": (0, 1)}, (TypeError, ValueError), "axis"),
        ({"backend": "cuda"}, ValueError, "cuda"),
    ],
    ids=str,
)
def test_errors(given, error, message, backend):
    target = given.get("target", Y)
    given = {"backend": backend, "grad_out": np.full((3, 4), 7.0)} | given
    given.pop("target", None)
    with pytest.raises(error, match=message):
        fsm.cross_entropy(X, target, **given)
    if isinstance(given["grad_out"], np.ndarray) and given["grad_out"] is not READ_ONLY and given["grad_out"].any():
        assert (given["grad_out"] == 7).all()
    assert (X == 0).all()


BAD_LOGITS = {
    "masked": np.ma.zeros((3, 4)),
    "complex": np.zeros((3, 4), complex),
    "str": np.full((3, 4), "a"),
    "object": np.full((3, 4), None),
    "datetime": np.zeros((3, 4), "M8[s]"),
    "None": None,
    "a word": "abc",
}


@pytest.mark.parametrize("bad", BAD_LOGITS)
def test_logits_that_are_no_numbers(bad):
    for call in (
        lambda x: fsm.cross_entropy(x, Y),
        lambda x: fsm.cross_entropy(x, Q),
        lambda x: fsm.nll_loss(x, Y),
        lambda x: fsm.token_logprobs(x, Y),
        lambda x: fsm.kl_div(x, Q),
        lambda x: fsm.kl_div(Q, x),
    ):
        with pytest.raises(TypeError):
            call(BAD_LOGITS[bad])


def test_errors_of_nll_loss():
    for given, error, message in (
        ({"target": np.zeros(4, int)}, ValueError, "target"),
        ({"target": np.zeros(3)}, TypeError, "target"),
        ({"target": np.zeros(3, bool)}, TypeError, "target"),
        ({"weight": np.ones(3)}, ValueError, "weight"),
        ({"weight": np.ones((4, 1))}, ValueError, "weight"),
        ({"weight": np.ones(4, complex)}, TypeError, "weight"),
        ({"reduction": "batchmean"}, ValueError, "reduction"),
        ({"axis": 2}, AxisError, "axis"),
        ({"axis": 0.0}, TypeError, "axis"),
    ):
        options = {"target": Y} | given
        with pytest.raises(error, match=message):
            fsm.nll_loss(X, options.pop("target"), **options)


def test_errors_of_token_logprobs(backend):
    for given, error, message in (
        ({"ids": np.zeros(4, int)}, ValueError, "ids"),
        ({"ids": np.zeros(3)}, TypeError, "ids"),
        ({"ids": np.zeros(3, bool)}, TypeError, "ids"),
        ({"ids": np.ma.zeros(3, int)}, TypeError, "ids"),
        ({"temperature": 0.0}, ValueError, "temperature"),
        ({"temperature": np.ones(4)}, ValueError, "temperature"),
        ({"axis": 2}, AxisError, "axis"),
        ({"out": np.empty((3, 1))}, ValueError, "out"),
    ):
        options = {"ids": Y, "backend": backend} | given
        with pytest.raises(error, match=message):
            fsm.token_logprobs(X, options.pop("ids"), **options)


def test_keyword_only_and_positional_only():
    for call in (
        lambda: fsm.cross_entropy(logits=X, target=Y),
        lambda: fsm.cross_entropy(X, target=Y),
        lambda: fsm.cross_entropy(X),
        lambda: fsm.cross_entropy(X, Y, -1, np.ones(4)),
        lambda: fsm.nll_loss(X, Y, -1, np.ones(4)),
        lambda: fsm.kl_div(X, Q, "sum"),
        lambda: fsm.token_logprobs(X, Y, -1, 1.0),
    ):
        with pytest.raises(TypeError):
            call()


# ---- nll_loss and kl_div ----


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


# ---- what a review found ----


def test_big_integers_keep_their_differences(backend):
    x = np.array([[2**63 - 1, 2**63 - 2]])
    want = fsm.log_softmax(x, backend=backend)[:, 0]
    assert fsm.token_logprobs(x, [0], backend=backend) == want
    loss, lse = fsm.cross_entropy(x, [0], reduction="none", return_lse=True, backend=backend)
    assert loss == -want and lse == fsm.logsumexp(x, -1, backend=backend)


def test_gradients_into_the_weights(backend):
    x, y = np.random.default_rng(2).normal(size=(40_000, 5)), np.arange(40_000) % 5
    out = np.zeros(x.shape)
    out[0] = 1, 2, 3, 4, 5
    options = {"label_smoothing": 0.1, "reduction": "sum", "backend": backend}
    loss, gradient = fsm.cross_entropy(x, y, weight=out[0].copy(), return_grad=True, **options)
    got, into = fsm.cross_entropy(x, y, weight=out[0], grad_out=out, **options)
    assert got == loss and into is out
    np.testing.assert_array_equal(out, gradient)


def test_gradient_of_lse_alone_does_not_cancel(backend, dtype):
    x = np.array([[0, -12, 0.5], [3, 1, -30]], dtype)
    options = {"weight": [1, 0, 0], "z_loss": 0.1, "reduction": "sum", "return_grad": True, "backend": backend}
    _, gradient = fsm.cross_entropy(x, [1, 2], **options)
    p, lse = fsm.softmax(x.astype(float)), fsm.logsumexp(x.astype(float), -1, keepdims=True)
    assert_allclose(gradient, 0.2 * lse * p, rtol=40 * np.finfo(dtype).eps)  # e^log p: off by |log p| ulp


def test_no_class_is_ignored_by_token_logprobs(backend):
    for options in ({}, {"backend": backend}):
        with pytest.raises(IndexError, match="ids"):
            fsm.token_logprobs(np.zeros((4, 5)), np.array([-(2**63)] * 4), **options)


def test_sums_beyond_the_largest_number():
    logs, y = np.full((327_680, 1), -6e302), np.zeros(327_680, int)
    assert fsm.nll_loss(logs, y, reduction="sum") == np.inf


def test_gradient_argument_that_is_no_array():
    for wrong in (True, False, [[0.0] * 3] * 2):
        with pytest.raises(TypeError, match="grad_out"):
            fsm.cross_entropy(np.zeros((2, 3)), [0, 1], grad_out=wrong)


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
