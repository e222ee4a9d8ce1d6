"""SciPy's own tests of logsumexp, softmax and log_softmax, with our functions in their place.

The wrappers adapt what differs on purpose, and nothing else:
- softmax and log_softmax default to axis=-1 here, to axis=None there;
- maps of 0-d input give 0-d arrays here, scalars there.
Where TRUST.md decides otherwise than SciPy, the last tests hold both sides of the difference still.
"""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fastsoftmax as fsm

scipy_special = pytest.importorskip("scipy.special", reason="the comparison needs `pip install scipy`")
theirs = pytest.importorskip(
    "scipy.special.tests.test_logsumexp", reason="this SciPy comes without its tests: `pip install scipy` from PyPI"
)


@pytest.fixture
def xp():
    return np


@pytest.fixture
def devices():
    return ["cpu"]


@pytest.fixture(autouse=True)
def in_their_place(monkeypatch, backend):
    def logsumexp(a, axis=None, b=None, keepdims=False, return_sign=False):
        # complex goes to NumPy, whichever backend the real numbers would use
        chosen = None if np.iscomplexobj(a) or np.iscomplexobj(b) else backend
        return fsm.logsumexp(a, axis=axis, b=b, keepdims=keepdims, return_sign=return_sign, backend=chosen)

    def softmax(x, axis=None):
        return fsm.softmax(x, axis=axis, backend=backend)[()]

    def log_softmax(x, axis=None):
        return fsm.log_softmax(x, axis=axis, backend=backend)[()]

    for function in (logsumexp, softmax, log_softmax):
        monkeypatch.setattr(theirs, function.__name__, function)


class TestLogSumExp(theirs.TestLogSumExp):
    pass


class TestSoftmax(theirs.TestSoftmax):
    pass


class TestLogSoftmax(theirs.TestLogSoftmax):
    pass


@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0, 2), (1,)])
@pytest.mark.parametrize("keepdims", [False, True])
def test_same_shapes_and_values(axis, keepdims, backend, dtype):
    rng = np.random.default_rng(0)
    x, b = rng.normal(0, 5, (4, 5, 6)).astype(dtype), rng.normal(0, 1, (4, 5, 6)).astype(dtype)
    close = {
        "rtol": 5e-5 if dtype == "float32" else 1e-12,
        "atol": 5e-5 if dtype == "float32" else 1e-12,
        "strict": True,
    }
    for weights in (None, b, abs(b)):
        mine = fsm.logsumexp(x, axis, weights, keepdims=keepdims, return_sign=True, backend=backend)
        other = scipy_special.logsumexp(x, axis, weights, keepdims=keepdims, return_sign=True)
        assert_allclose(mine[0], other[0], **close)
        assert_array_equal(mine[1], other[1], strict=True)
        mine = fsm.logsumexp(x, axis, weights, keepdims=keepdims, backend=backend)
        assert_allclose(mine, scipy_special.logsumexp(x, axis, weights, keepdims=keepdims), **close)
    assert_allclose(fsm.softmax(x, axis, backend=backend), scipy_special.softmax(x, axis), **close)
    assert_allclose(fsm.log_softmax(x, axis, backend=backend), scipy_special.log_softmax(x, axis), **close)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "a",
    [[np.inf], [-np.inf], [np.nan], [np.inf, np.inf], [-np.inf, 0], [np.inf, -np.inf], [np.nan, np.inf], [0, np.nan]],
)
@pytest.mark.parametrize("b", [None, 1.0, -1.0, 0.0, [1.0, 0.0], [0.0, 1.0], [1.0, -1.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_same_special_values_of_logsumexp(a, b, backend):
    b = np.resize(1.0 if b is None else b, len(a))
    mine = fsm.logsumexp(a, b=b, return_sign=True, backend=backend)
    # SciPy means to drop a term of weight zero, but lets inf or NaN through if the result is not finite: drop it here
    a, b = np.asarray(a)[b != 0], b[b != 0]
    other = scipy_special.logsumexp(a, b=b, return_sign=True)
    assert_array_equal(mine[0], other[0])
    if not np.isnan(mine[0]) and a.size:
        assert_array_equal(mine[1], other[1])
    want = scipy_special.logsumexp(a, b=b)
    assert_array_equal(fsm.logsumexp(a, b=b, backend=backend), want)
    assert_array_equal(fsm.logsumexp(a, b=None if (b == 1).all() else b, backend=backend), want)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_deliberate_differences(backend):
    # an infinite logit: SciPy's log_softmax mixes NaN with -inf although its softmax is NaN throughout
    x = np.array([0.0, np.inf])
    assert_array_equal(scipy_special.log_softmax(x), [-np.inf, np.nan])
    assert_array_equal(fsm.log_softmax(x, backend=backend), [np.nan, np.nan])
    # unsigned integers wrap in SciPy
    small = np.array([0, 1, 3], np.uint8)
    assert np.isnan(scipy_special.softmax(small)).any()
    assert_allclose(fsm.softmax(small, backend=backend), scipy_special.softmax(small.astype(float)))
    # nothing to normalise: SciPy raises
    with pytest.raises(ValueError, match="zero-size"):
        scipy_special.softmax(np.empty((3, 0)), axis=1)
    assert fsm.softmax(np.empty((3, 0)), axis=1, backend=backend).shape == (3, 0)
    # masks are ignored in SciPy
    with pytest.raises(TypeError):
        fsm.softmax(np.ma.masked_array([1.0, 2.0], [True, False]), backend=backend)
    # digits: SciPy's log_softmax loses a tiny excess
    assert scipy_special.log_softmax([0.0, -40.0])[0] == 0
    assert fsm.log_softmax([0.0, -40.0], backend=backend)[0] == pytest.approx(-np.exp(-40), rel=1e-15)
