"""Targets and weights: what is taken, what is ignored, what is refused."""

import itertools

import numpy as np
import pytest
from conftest import BACKENDS
from layouts import assert_same_bits, unaligned
from loss_cases import INTEGERS, REDUCTIONS, Q, X, Y, at, inf, nan, random_rows
from numpy.exceptions import AxisError
from numpy.testing import assert_allclose, assert_array_equal

import fastsoftmax as fsm

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


def test_no_class_is_ignored_by_token_logprobs(backend):
    for options in ({}, {"backend": backend}):
        with pytest.raises(IndexError, match="ids"):
            fsm.token_logprobs(np.zeros((4, 5)), np.array([-(2**63)] * 4), **options)


# ---- what is refused ----

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


def test_gradient_argument_that_is_no_array():
    for wrong in (True, False, [[0.0] * 3] * 2):
        with pytest.raises(TypeError, match="grad_out"):
            fsm.cross_entropy(np.zeros((2, 3)), [0, 1], grad_out=wrong)
