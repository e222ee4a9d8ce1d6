"""Losses have the bits of log_softmax, wherever rows lie and wherever gradients go."""

import itertools

import numpy as np
import pytest
from conftest import BACKENDS
from layouts import LAYOUTS, assert_same_bits, bits
from loss_cases import OPTIONS, REDUCTIONS, at, random_rows, results, targets

import fastsoftmax as fsm

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


def assert_is_minus(loss, want):
    """Bit for bit, but for the sign of zero."""
    assert (loss >= 0).all()
    assert_same_bits(np.abs(loss), np.abs(want))


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


def test_gradients_into_the_weights(backend):
    x, y = np.random.default_rng(2).normal(size=(40_000, 5)), np.arange(40_000) % 5
    out = np.zeros(x.shape)
    out[0] = 1, 2, 3, 4, 5
    options = {"label_smoothing": 0.1, "reduction": "sum", "backend": backend}
    loss, gradient = fsm.cross_entropy(x, y, weight=out[0].copy(), return_grad=True, **options)
    got, into = fsm.cross_entropy(x, y, weight=out[0], grad_out=out, **options)
    assert got == loss and into is out
    np.testing.assert_array_equal(out, gradient)
