"""Every line of the array table (TRUST.md): types, layouts, shapes. Results are compared with the plain copy's."""

import ctypes
import decimal
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import reference as ref
from layouts import LAYOUTS, assert_same_bits, unaligned
from numpy.testing import assert_array_equal

import fastsoftmax as fsm
from fastsoftmax import _backends

MAPS = [fsm.softmax, fsm.log_softmax, fsm.softmin, fsm.hardmax, fsm.logcumsumexp]
REDUCTIONS = [fsm.logsumexp, fsm.logmeanexp]
ELEMENTWISE = [fsm.sigmoid, fsm.softplus]
ALL = MAPS + REDUCTIONS + ELEMENTWISE


def named(functions):
    return pytest.mark.parametrize("f", functions, ids=lambda f: f.__name__)


def call(f, x, axis=-1, **keywords):
    return f(x, **keywords) if f in ELEMENTWISE else f(x, axis=axis, **keywords)


def data(shape, dtype, seed=0):
    return np.asarray(np.random.default_rng(seed).normal(0, 4, shape)).astype(dtype)


@named(ALL)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(f, layout, backend, dtype):
    for shape in [(7,), (200,), (5, 33), (3, 4, 17)]:
        plain = data(shape, dtype)
        x = LAYOUTS[layout](plain)
        before = x.tobytes()
        for axis in range(len(shape)):
            got = call(f, x, axis, backend=backend)
            assert got.dtype == np.dtype(dtype)
            assert got.dtype.isnative
            assert_same_bits(np.asarray(got), np.asarray(call(f, plain, axis, backend=backend)), f"{shape} axis {axis}")
        assert x.tobytes() == before


@named(ALL)
@pytest.mark.parametrize("offset", range(1, 8))
def test_any_byte_offset(f, offset, backend, dtype):
    plain = data((6, 67), dtype)
    raw = np.zeros(plain.nbytes + 16, np.uint8)
    x = raw[offset : offset + plain.nbytes].view(dtype).reshape(plain.shape)
    x[...] = plain
    assert_same_bits(call(f, x, backend=backend), call(f, plain, backend=backend))


@named(ALL)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_backends_are_given_what_they_are_promised(f, layout, dtype, monkeypatch):
    """Native, aligned arrays with strides of whole elements; a CPU may well forgive others."""
    backend, given = fsm.backends()[0], []
    real = _backends.load(backend)
    recording = SimpleNamespace(run=lambda op, x, y, *rest: given.extend((x, y)) or real.run(op, x, y, *rest))
    monkeypatch.setattr(_backends, "load", lambda name: recording)
    for shape in [(7,), (5, 33), (3, 4, 17)]:
        x = LAYOUTS[layout](data(shape, dtype))
        for axis in range(len(shape)):
            call(f, x, axis, backend=backend)
            if f not in REDUCTIONS:
                call(f, data(shape, dtype), axis, out=unaligned(x.astype(dtype)), backend=backend)
    assert given or f is fsm.hardmax
    assert all(a.flags.aligned and a.dtype.isnative for a in given)
    assert not [a for a in given for step in a.strides if step % a.itemsize]


@named(ALL)
def test_zero_strides(f, backend, dtype):
    row = data(33, dtype)
    rows = np.broadcast_to(row, (4, 33))
    assert_same_bits(call(f, rows, backend=backend), call(f, rows.copy(), backend=backend))
    assert_same_bits(call(f, rows, 0, backend=backend), call(f, rows.copy(), 0, backend=backend))
    constant = np.broadcast_to(np.array(1.25, dtype), (3, 129))
    assert_same_bits(call(f, constant, backend=backend), call(f, constant.copy(), backend=backend))


@named(ALL)
def test_overlapping_windows(f, backend, dtype):
    x = np.lib.stride_tricks.sliding_window_view(data(100, dtype), 37)
    assert_same_bits(call(f, x, backend=backend), call(f, x.copy(), backend=backend))


@named(ALL)
def test_size_one_axes_with_any_stride(f, backend, dtype):
    row = data(33, dtype)
    step = row.itemsize
    x = np.lib.stride_tricks.as_strided(row, (1, 33, 1), (2**40, step, -(2**50)))
    for axis in range(3):
        assert_same_bits(call(f, x, axis, backend=backend), call(f, row.reshape(1, 33, 1), axis, backend=backend))


@named([fsm.softmax, fsm.logsumexp, fsm.sigmoid])
def test_huge_strides(f, backend):
    big = np.zeros((3, 2**28), np.float32)  # calloc: the pages in between are never touched
    big[:, :: 2**26] = data((3, 4), "f4")
    x = big[:, :: 2**26]
    assert_same_bits(call(f, x, backend=backend), call(f, x.copy(), backend=backend))
    assert_same_bits(np.asarray(call(f, x, 0, backend=backend)), np.asarray(call(f, x.copy(), 0, backend=backend)))


@named(ALL)
def test_sixty_four_dimensions(f, backend, dtype):
    x = data((1,) * 31 + (3,) + (1,) * 31 + (5,), dtype)
    assert x.ndim == 64
    for axis in (-1, 31, 0):
        got = call(f, x, axis, backend=backend)
        flat_axis = {-1: 1, 31: 0, 0: None}[axis]
        if flat_axis is not None:
            assert_array_equal(np.ravel(got), np.ravel(call(f, x.reshape(3, 5), flat_axis, backend=backend)))


@named([fsm.softmax, fsm.log_softmax, fsm.softmin, fsm.hardmax, *REDUCTIONS])
def test_tuples_of_axes_and_none(f, backend, dtype):
    x = data((3, 4, 5, 6), dtype)
    reduces = f in REDUCTIONS
    name = f.__name__
    for axis in [(0,), (0, 1), (1, 0), (-1, 0), (1, 3), (3, 2, 1), (0, 1, 2, 3), (0, -2, -1), None]:
        if f in (fsm.softmin, fsm.hardmax) and axis not in [(0, 1), None]:
            continue
        for y in (x, np.asfortranarray(x), x[:, ::-1]):
            got = f(y, axis=axis, backend=backend)
            want = ref.over(getattr(ref, name), y, axis, reduces)
            assert got.shape == want.shape
            assert ref.ulp_error(got, want, dtype, at_least=10).max() <= 3


@named(MAPS[:2] + MAPS[3:] + REDUCTIONS)
def test_the_order_of_axes_does_not_matter(f, backend, dtype):
    """Elements of a row are in the order of the array, for sums, running sums and the first maximum."""
    x = data((4, 5, 60), dtype)
    x[0, 1, 0] = x[1, 0, 0] = x[0, 0, 7] = 30
    for axes, other in (((0, 1), (1, 0)), ((0, 2), (2, 0)), ((0, 1, 2), (2, 0, 1)), ((1, 2), (-1, -2))):
        got = f(x, axis=other, backend=backend)
        assert_same_bits(np.asarray(got), np.asarray(f(x, axis=axes, backend=backend)), f"{axes}, {other}")


def test_an_empty_tuple_of_axes_reduces_nothing(backend, dtype):
    x = data((3, 4), dtype)
    assert_array_equal(fsm.logsumexp(x, axis=(), backend=backend), x)
    assert_array_equal(fsm.softmax(x, axis=(), backend=backend), np.ones_like(x))


def test_axis_may_be_any_int_like(backend):
    class Index:
        def __index__(self):
            return 1

    x = data((3, 4), "f8")
    for axis in (np.int8(1), np.uint64(1), Index()):
        assert_array_equal(fsm.softmax(x, axis=axis, backend=backend), fsm.softmax(x, axis=1, backend=backend))


@named(REDUCTIONS)
def test_keepdims(f, backend, dtype):
    x = data((3, 4, 5), dtype)
    for axis in (0, -1, (0, 2), None):
        kept = f(x, axis=axis, keepdims=True, backend=backend)
        assert kept.shape == x.sum(axis=axis, keepdims=True).shape
        assert_array_equal(np.squeeze(kept), np.squeeze(f(x, axis=axis, backend=backend)))


def test_zero_dimensional_results(backend, dtype):
    x = np.array(2.0, dtype)
    for f in [*MAPS, *ELEMENTWISE]:
        got = call(f, x, backend=backend)
        assert isinstance(got, np.ndarray)
        assert got.shape == ()
        assert got.dtype == np.dtype(dtype)
        assert isinstance(call(f, x[()], backend=backend), np.ndarray)
    for f in REDUCTIONS:
        for value in (f(x, backend=backend), f(data((3, 4), dtype), backend=backend)):
            assert isinstance(value, np.dtype(dtype).type)
    value, sign = fsm.logsumexp(data(5, dtype), return_sign=True, backend=backend)
    assert isinstance(value, np.dtype(dtype).type)
    assert isinstance(sign, np.dtype(dtype).type)


@named(ALL)
@pytest.mark.parametrize("kind", ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
def test_integers_compute_in_float64(f, kind, backend):
    x = np.array([[0, 1, 1], [1, 0, 1]]).astype(kind)
    if kind != "?":
        x = x * np.array(3, kind)
    got = call(f, x, backend=backend)
    assert got.dtype == np.float64
    assert_same_bits(got, call(f, x.astype(float), backend=backend))


def test_unsigned_integers_do_not_wrap(backend):
    x = np.array([0, 1, 3], np.uint8)
    assert_same_bits(fsm.softmax(x, backend=backend), fsm.softmax([0.0, 1.0, 3.0], backend=backend))
    assert_same_bits(fsm.softmin(x, backend=backend), fsm.softmin([0.0, 1.0, 3.0], backend=backend))
    least = np.array([-128, 127], np.int8)
    assert_same_bits(fsm.softmin(least, backend=backend), fsm.softmin([-128.0, 127.0], backend=backend))


@pytest.mark.parametrize("base", [2**53, 2**60, 2**63 - 8, -(2**63), 2**64 - 8])
def test_differences_of_64_bit_integers_are_exact(base, backend):
    x = np.array([base, base + 1, base + 3], np.uint64 if base > 2**62 else np.int64)
    small = np.array([0, 1, 3])
    assert ref.ulp_error(fsm.softmax(x, backend=backend), ref.softmax(small)).max() <= 3.5
    assert ref.ulp_error(fsm.log_softmax(x, backend=backend), ref.log_softmax(small)).max() <= 2.5
    assert ref.ulp_error(fsm.softmin(x, backend=backend), ref.softmin(small)).max() <= 3.5
    assert_array_equal(fsm.hardmax(x, backend=backend), [0, 0, 1])
    assert ref.ulp_error(fsm.logsumexp(x, backend=backend), ref.logsumexp(x)) <= 2
    assert ref.ulp_error(fsm.logcumsumexp(x, backend=backend), ref.logcumsumexp(x)).max() <= 2.66


def test_the_whole_range_of_64_bit_integers(backend):
    x = np.array([-(2**63), 2**63 - 1, 0, 2**63 - 2], np.int64)
    assert ref.ulp_error(fsm.softmax(x, backend=backend), ref.softmax(x)).max() <= 3.5
    assert ref.ulp_error(fsm.log_softmax(x, backend=backend), ref.log_softmax(x)).max() <= 2.5


@named(ALL)
def test_float16_is_float32_rounded_once(f, backend):
    for shape in [(40,), (5, 1000), (0,), ()]:
        x = data(shape, np.float16)
        got = call(f, x, backend=backend)
        assert got.dtype == np.float16
        assert_array_equal(got, call(f, x.astype(np.float32), backend=backend).astype(np.float16))


@named(ALL)
def test_bfloat16_is_float32_rounded_once(f, backend, bfloat16):
    for shape in [(40,), (5, 1000), ()]:
        x = data(shape, bfloat16)
        got = call(f, x, backend=backend)
        assert got.dtype == bfloat16
        assert_array_equal(got, call(f, x.astype(np.float32), backend=backend).astype(bfloat16))


def test_double_is_rounded_to_bfloat16_once(backend, bfloat16):
    """Just above the middle between 1 and the next bfloat16, so near that float32 has the middle itself."""
    x = np.array([1 + 2.0**-8 + 2.0**-30, -1 - 2.0**-8 - 2.0**-30, 1 + 2.0**-8 - 2.0**-30, 3.0, np.inf, np.nan])
    got = fsm.logsumexp(x[:, np.newaxis], axis=1, dtype=bfloat16, backend=backend)
    assert_array_equal(got.astype(float), [1 + 2.0**-7, -1 - 2.0**-7, 1, 3, np.inf, np.nan])


@named(ALL)
def test_longdouble_is_right(f):
    x = data((4, 9), np.longdouble) + np.longdouble(2) ** -60
    got = call(f, x)
    assert got.dtype == np.longdouble
    want = getattr(ref, f.__name__)(x)
    assert (abs(got - want) <= 8 * np.finfo(np.longdouble).eps * np.maximum(abs(want), 1)).all()


def test_the_imaginary_part_is_above_minus_pi():
    for given in (complex(2, -np.pi), complex(2, np.pi)):
        got = fsm.logsumexp(np.array([given]))
        assert got.real == pytest.approx(2)
        assert got.imag == pytest.approx(np.pi)


@pytest.mark.parametrize("kind", ["complex64", "complex128"])
def test_complex_logsumexp(kind):
    x = (data((5, 20), "f8") + 1j * data((5, 20), "f8", 1)).astype(kind)
    got = fsm.logsumexp(x, axis=1)
    assert got.dtype == kind
    want = np.log(np.exp(x.astype(complex)).sum(axis=1))
    np.testing.assert_allclose(got, want, rtol=1e-5 if kind == "complex64" else 1e-12)
    assert (abs(got.imag) <= np.pi).all()
    value, sign = fsm.logsumexp(x, axis=1, return_sign=True)
    np.testing.assert_allclose(sign * np.exp(value), np.exp(want), rtol=1e-4 if kind == "complex64" else 1e-11)


@named(ALL)
def test_dtype_argument(f, backend):
    x = data((3, 50), "f4")
    wide = call(f, x, dtype=np.float64, backend=backend)
    assert_same_bits(wide, call(f, x.astype("f8"), backend=backend))
    assert call(f, x, dtype="float16", backend=backend).dtype == np.float16
    assert_same_bits(call(f, x, dtype=np.dtype("f4"), backend=backend), call(f, x, backend=backend))
    small = np.arange(6, dtype=np.int16)
    assert_same_bits(call(f, small, dtype="f4", backend=backend), call(f, small.astype("f4"), backend=backend))
    assert call(f, x, dtype=np.dtype("f4").newbyteorder(), backend=backend).dtype.isnative


@named(ALL)
def test_things_that_are_not_arrays(f, backend):
    want = call(f, np.array([1.0, 2.0, 4.0]), backend=backend)

    class Arrayish:
        def __array__(self, dtype=None, copy=None):
            return np.array([1.0, 2.0, 4.0], dtype)

    class Sub(np.ndarray):
        pass

    values = [[1, 2, 4], (1.0, 2, 4), memoryview(np.array([1.0, 2.0, 4.0])), Arrayish()]
    values += [(ctypes.c_double * 3)(1, 2, 4), np.array([1.0, 2.0, 4.0]).view(Sub)]
    for value in values:
        assert_array_equal(call(f, value, backend=backend), want)
    assert call(f, 3.0, backend=backend).shape == call(f, 3, backend=backend).shape == ()


@named(ALL)
def test_python_numbers_that_numpy_holds_as_objects(f):
    for bad in (2**70, decimal.Decimal("1.5"), [decimal.Decimal(1)], [2**70, 1]):
        with pytest.raises(TypeError):
            f(bad)


@named(ALL)
def test_matrix_is_refused_or_right(f, backend):
    values = data((3, 3), "f8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        x = values.view(np.matrix)
        try:
            got = call(f, x, backend=backend)
        except TypeError:
            return
    assert_array_equal(np.asarray(got).ravel(), np.ravel(call(f, values, backend=backend)))


def test_weights_broadcast_both_ways(backend, dtype):
    x, b = data((4, 1, 2, 1), dtype), abs(data((3, 1, 5), dtype, 1))
    got = fsm.logsumexp(x, b=b, backend=backend)
    wide_x, wide_b = (np.ascontiguousarray(v) for v in np.broadcast_arrays(x, b))
    assert_array_equal(got, fsm.logsumexp(wide_x, b=wide_b, backend=backend))
    assert fsm.logsumexp(x, axis=(0, 2), b=b, backend=backend).shape == (3, 5)
    assert fsm.logsumexp(x, axis=1, b=b, keepdims=True, backend=backend).shape == (4, 1, 2, 5)


def test_weights_in_more_dimensions_than_numpy_broadcasts():
    dims = (1,) * ((64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32) - 2)
    x, b = data((4, 5), "f8"), abs(data((5,), "f8", 1))
    got = fsm.logsumexp(x.reshape(*dims, 4, 5), axis=-1, b=b)
    assert_array_equal(got.reshape(4), fsm.logsumexp(x, axis=-1, b=b))


@pytest.mark.parametrize(("a", "b", "result"), [
    ("f4", "f4", "f4"), ("f4", "f8", "f8"), ("f8", "f4", "f8"), ("i4", "f4", "f8"), ("f4", "i8", "f8"),
    ("u1", "?", "f8"), ("f2", "f2", "f2"), ("f2", "f4", "f4"),
])  # fmt: skip
def test_weights_take_part_in_the_result_type(a, b, result, backend):
    value = fsm.logsumexp(np.array([2, 1], a), b=np.array([1, 1], b), backend=backend)
    assert value.dtype == np.dtype(result)
    assert value == pytest.approx(2.3132616875182226, rel=1e-3 if result == "f2" else 1e-6)
