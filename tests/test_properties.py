"""Any array against the reference, and the structure of the functions: bounds, order, equality, shifts."""

import hypothesis.strategies as st
import numpy as np
import pytest
import reference as ref
from hypothesis import given
from hypothesis.extra import numpy as hnp
from layouts import LAYOUTS, assert_same_bits
from numpy.testing import assert_array_equal

import fastsoftmax as fsm

FLOATS = ("float16", "float32", "float64")
BOUNDS = {  # softmax, log_softmax, logsumexp, running and element-wise
    "float16": (0.51, 0.51, 0.51, 0.51),
    "float32": (3.0, 2.0, 1.5, 3.0),
    "float64": (3.5, 2.5, 2.0, 3.0),
}


def numbers(dtype):
    """Any number of the type, with those that matter made frequent."""
    width = 16 if dtype == "float16" else 32 if dtype == "float32" else 64
    ordinary = st.floats(-20, 20, width=width)
    special = st.sampled_from([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -87.5, 88.5, 104.0, -745.0, 5.0, 5.0])
    return st.one_of(ordinary, ordinary, ordinary, special, st.floats(width=width))


@st.composite
def arrays(draw, dtypes=FLOATS, special=True, min_side=0, max_dims=4):
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=max_dims, min_side=min_side, max_side=9))
    if draw(st.booleans()) and shape:  # one long axis among short ones
        place = draw(st.integers(0, len(shape) - 1))
        shape = tuple(draw(st.integers(10, 70)) if i == place else min(n, 3) for i, n in enumerate(shape))
    elements = numbers(dtype) if special else st.floats(-30, 30, width=16)
    fill = st.nothing() if draw(st.booleans()) else None
    x = draw(hnp.arrays(dtype, shape, elements=elements, fill=fill))
    steps = draw(st.lists(st.sampled_from([1, 1, 2, -1, -3]), min_size=x.ndim, max_size=x.ndim))
    layout = draw(st.sampled_from([*LAYOUTS, "steps", "permuted", "broadcast"]))
    if layout == "steps":
        from layouts import stepped

        return stepped(x, steps)
    if layout == "permuted":
        return x.transpose(draw(st.permutations(range(x.ndim))))
    if layout == "broadcast":
        return np.broadcast_to(x, (draw(st.integers(1, 3)), *x.shape))
    return LAYOUTS[layout](x)


@st.composite
def arrays_and_axis(draw, tuples=True, **options):
    x = draw(arrays(**options))
    single = st.integers(-max(x.ndim, 1), max(x.ndim, 1) - 1)
    choices = [single, single]
    if tuples:
        choices.append(st.none())
        if x.ndim:
            choices.append(st.lists(st.integers(0, x.ndim - 1), unique=True, min_size=1).map(tuple))
    return x, draw(st.one_of(choices))


def compare(got, exact, dtype, bound, floor=0):
    assert got.shape == exact.shape
    assert got.dtype == dtype
    assert got.dtype.isnative
    assert ref.ulp_error(got, exact, dtype, floor).max(initial=0) <= bound


@given(case=arrays_and_axis())
def test_any_array_over_any_axes(backend, case):
    x, axis = case
    native = x.dtype.newbyteorder("=")
    softmax, log_softmax, lse, _ = BOUNDS[native.name]
    compare(fsm.softmax(x, axis=axis, backend=backend), ref.over(ref.softmax, x, axis), native, softmax)
    compare(fsm.log_softmax(x, axis=axis, backend=backend), ref.over(ref.log_softmax, x, axis), native, log_softmax)
    exact, floor = (ref.over(f, x, axis, reduces=True) for f in (ref.logsumexp, ref.excess))
    compare(np.asarray(fsm.logsumexp(x, axis=axis, backend=backend)), exact, native, lse, floor)
    kept = fsm.logsumexp(x, axis=axis, keepdims=True, backend=backend)
    assert kept.shape == (np.zeros(x.shape).sum(axis=axis, keepdims=True).shape if x.ndim else ())
    n = x.size // max(exact.size, 1)
    exact = ref.over(ref.logmeanexp, x, axis, reduces=True)
    got = np.asarray(fsm.logmeanexp(x, axis=axis, backend=backend))
    compare(got, exact, native, lse + 0.5 if lse > 1 else lse, np.log(max(n, 2)))


@given(case=arrays_and_axis(tuples=False))
def test_any_array_along_one_axis(backend, case):
    x, axis = case
    native = x.dtype.newbyteorder("=")
    bound = BOUNDS[native.name]
    compare(fsm.softmin(x, axis=axis, backend=backend), ref.over(ref.softmin, x, axis), native, bound[0])
    compare(fsm.hardmax(x, axis=axis, backend=backend), ref.over(ref.hardmax, x, axis), native, 0)
    exact = ref.over(ref.logcumsumexp, x, axis)
    floor = ref.over(lambda v: ref.cumulative_parts(v)[1], x, axis)
    compare(fsm.logcumsumexp(x, axis=axis, backend=backend), exact, native, min(bound[3], 2.66), floor)


@given(x=arrays(), beta=st.sampled_from([1.0, 1, 0.5, 2.0, 10, 0.125]))
def test_any_array_element_by_element(backend, x, beta):
    native = x.dtype.newbyteorder("=")
    bound = BOUNDS[native.name][3]
    compare(fsm.sigmoid(x, backend=backend), ref.sigmoid(x), native, bound)
    compare(fsm.softplus(x, beta=beta, backend=backend), ref.softplus(x, beta), native, bound)


@given(x=arrays(dtypes=("float32", "float64")), data=st.data())
def test_any_weights(backend, x, data):
    if x.ndim == 0:
        x = x.reshape(1)
    weights = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 2.0]), st.floats(-4, 4, width=16))
    b = data.draw(hnp.arrays(x.dtype.newbyteorder("="), x.shape[-1], elements=weights))
    got, sign = fsm.logsumexp(x, axis=-1, b=b, return_sign=True, backend=backend)
    exact, exact_sign = ref.signed_logsumexp(x, b)
    with np.errstate(all="ignore"):
        magnitude = ref.signed_logsumexp(x, abs(b))[0]
        condition = np.exp(np.where(exact == magnitude, 0, magnitude - exact))
        eps = np.finfo(x.dtype).eps
        sure = condition * eps * max(x.shape[-1], 1) < 0.1
        close = abs(got - exact) <= eps * (4 * abs(exact) + 4 * abs(magnitude) + 8 * condition + 64)
    same = (got == exact) | (np.isnan(got) & np.isnan(exact))
    assert (close | same | ~sure).all()
    assert ((sign == exact_sign) | (np.isnan(sign) & np.isnan(exact_sign)) | ~sure).all()
    plain = fsm.logsumexp(x, axis=-1, b=b, backend=backend)
    assert_array_equal(plain, np.where(sign < 0, np.nan, got))


@given(case=arrays_and_axis(), op=st.sampled_from(["softmax", "log_softmax"]))
def test_out_gives_the_same_bits(backend, case, op):
    x, axis = case
    f = getattr(fsm, op)
    want = f(x, axis=axis, backend=backend)
    out = np.empty(x.shape, x.dtype.newbyteorder("="))
    assert f(x, axis=axis, out=out, backend=backend) is out
    assert_same_bits(out, want)
    if (
        x.flags.writeable
        and x.dtype.isnative
        and not any(s == 0 and n > 1 for s, n in zip(x.strides, x.shape, strict=True))
    ):
        f(x, axis=axis, out=x, backend=backend)
        assert_same_bits(x, want)


@given(x=arrays(special=False, min_side=1))
def test_between_zero_and_one(backend, x):
    p = fsm.softmax(x, backend=backend)
    assert (p >= 0).all()
    assert (p <= 1).all()
    assert (fsm.log_softmax(x, backend=backend) <= 0).all()
    sigma = fsm.sigmoid(x, backend=backend)
    assert (sigma >= 0).all()
    assert (sigma <= 1).all()
    assert (fsm.softplus(x, backend=backend) >= np.maximum(x, 0)).all()
    if x.ndim:
        lse = fsm.logsumexp(x, axis=-1, backend=backend)
        assert (lse >= x.max(axis=-1)).all()
        assert (np.diff(fsm.logcumsumexp(x, backend=backend), axis=-1) >= 0).all()


@pytest.mark.parametrize("n", [1, 2, 3, 10, 17, 100, 300, 8193])
def test_certainty_is_not_exceeded(n, backend, dtype):
    """One element far above the others: its probability rounds to 1 and must not come out one ulp above."""
    rng = np.random.default_rng(n)
    x = rng.normal(0, 1, (max(10, 3000 // n), n)).astype(dtype)
    for gap in (5, 20, 40, 900):
        x[:, n // 2] = rng.uniform(gap, 3 * gap, len(x))
        assert fsm.softmax(x, backend=backend).max() <= 1
        assert fsm.softmax(np.asfortranarray(x), backend=backend).max() <= 1
        assert fsm.log_softmax(x, backend=backend).max() <= 0
    assert fsm.sigmoid(np.linspace(0, 50, 9999, dtype=dtype), backend=backend).max() <= 1


@given(x=arrays(special=False, min_side=1), seed=st.integers(0, 99))
def test_equal_inputs_give_equal_bits(backend, x, seed):
    x = np.resize(x, 77)
    x[np.random.default_rng(seed).integers(0, 77, 30)] = x[0]
    for f in (fsm.softmax, fsm.log_softmax, fsm.sigmoid, fsm.softplus):
        y = f(x, backend=backend)
        for value in np.unique(x):
            assert np.unique(y[x == value]).size == 1


@pytest.mark.usefixtures("split_early")
@pytest.mark.parametrize("n", [1000, 8191, 8193, 100_003])
def test_equal_inputs_give_equal_bits_in_long_rows(n, backend, dtype, thread_count):
    """In whole vectors and in what is left of them, in every block, and in the part of every thread."""
    x = np.random.default_rng(n).normal(0, 2, n).astype(dtype)
    places = [0, 1, 31, n // 3, n // 2, 8189 % n, n - 17, n - 2, n - 1]
    x[places] = x[5]
    for f in (fsm.softmax, fsm.log_softmax, fsm.sigmoid, fsm.softplus):
        assert np.unique(f(x, backend=backend)[places]).size == 1, f.__name__


@pytest.mark.parametrize("span", [1.0, 100.0, "neighbours"])
def test_monotone(span, backend, dtype):
    """Larger in, not smaller out; also between neighbouring numbers where a range reduction changes its step."""
    if span == "neighbours":
        steps = np.arange(-40, 12)[:, None] * (np.log(2) / 2)
        x = np.asarray(steps, dtype) + np.arange(-60, 61) * np.spacing(np.asarray(abs(steps) + 0.1, dtype))
        x = np.unique(x.astype(dtype))
    else:
        x = np.sort(np.random.default_rng(0).uniform(-span, span / 10, 50_000)).astype(dtype)
    for f in (fsm.softmax, fsm.log_softmax):
        assert (np.diff(f(x, backend=backend)) >= 0).all(), f.__name__


@pytest.mark.parametrize("shift", [1.0, -3.0, 64.0, -1024.0, 4096.0])
def test_an_exact_shift_stays_within_the_bound(shift, backend, dtype):
    x = (np.random.default_rng(0).integers(-(2**12), 2**10, (30, 200)) / 2.0**7).astype(dtype)
    moved = x + np.array(shift, dtype)
    assert_array_equal(moved - np.array(shift, dtype), x)
    bound = BOUNDS[dtype]
    assert ref.ulp_error(fsm.softmax(moved, backend=backend), ref.softmax(x)).max() <= bound[0]
    assert ref.ulp_error(fsm.log_softmax(moved, backend=backend), ref.log_softmax(x)).max() <= bound[1]
    lse = fsm.logsumexp(moved, axis=-1, backend=backend)
    assert ref.ulp_error(lse, ref.logsumexp(x) + shift, at_least=ref.excess(x)).max() <= bound[2]


def test_permuting_a_row_permutes_the_result(backend, dtype):
    x = np.random.default_rng(0).normal(0, 5, (20, 137)).astype(dtype)
    order = np.random.default_rng(1).permutation(137)
    a, b = fsm.softmax(x, backend=backend)[:, order], fsm.softmax(x[:, order], backend=backend)
    assert (abs(a - b) <= 3 * np.spacing(np.maximum(a, b))).all()
    assert_same_bits(fsm.hardmax(x, backend=backend)[:, order], fsm.hardmax(x[:, order], backend=backend))
