"""Direct calls: it takes what it should, leaves the rest, and nobody can tell the two ways apart."""

import ctypes
import itertools
import sys
import types

import ml_dtypes
import numpy as np
import pytest
from conftest import BACKENDS
from layouts import LAYOUTS, assert_same_bits, read_only, stepped, unaligned
from numpy.exceptions import AxisError
from numpy.testing import assert_array_equal

import fastsoftmax as fsm
from fastsoftmax._backends import ELEMENT_MAPS, LOG_PROB, OPS, ROW_REDUCTIONS
from fastsoftmax._dispatch import direct

needs_c = pytest.mark.skipif(not BACKENDS[0].startswith("c-"), reason="only the C part has direct calls")
every_op = pytest.mark.parametrize("op", OPS)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64", "float16", ml_dtypes.bfloat16])
SHAPES = [(1,), (10,), (511,), (512,), (3000,), (2, 70_000), (2, 5), (1, 7), (7, 1), (3, 4, 5), (2, 1, 3, 2)]


@pytest.fixture(autouse=True, scope="module")
def bfloat16_is_known():
    """From its first array on."""
    fsm.softmax(np.ones(1, ml_dtypes.bfloat16))


def data(shape, dtype, seed=0):
    return np.asarray(np.random.default_rng(seed).normal(0, 4, shape)).astype(dtype)


def call(op, x, axis, **keywords):
    return getattr(fsm, op)(x, **({} if op in ELEMENT_MAPS else {"axis": axis}), **keywords)


def the_long_way(op, x, axis, **keywords):
    """A backend by name is never a direct call."""
    return call(op, x, axis, backend=BACKENDS[0], **keywords)


def axes(op, x):
    return [None] if op in ELEMENT_MAPS else [None, *range(-x.ndim, x.ndim)]


@every_dtype
@needs_c
@every_op
def test_taken_with_the_same_result(op, dtype):
    for shape in SHAPES:
        x = read_only(data(shape, dtype))
        for axis in axes(op, x):
            got, want = direct[op](x, axis, None), the_long_way(op, x, axis)
            assert got is not None, (shape, axis)
            assert type(got) is type(want)
            assert got is not x
            assert (got.strides, got.flags.writeable) == (want.strides, want.flags.writeable)
            assert_same_bits(np.asarray(got), np.asarray(want), f"{shape} axis {axis}")
            assert_same_bits(np.asarray(call(op, x, axis)), np.asarray(want))


@every_dtype
@needs_c
@every_op
def test_taken_with_out(op, dtype):
    for shape in SHAPES:
        x = data(shape, dtype)
        for axis in axes(op, x):
            want = np.asarray(the_long_way(op, x, axis))
            out = np.full(want.shape, 7, dtype)
            assert direct[op](x, axis, out) is out, (shape, axis)
            assert_same_bits(out, want)
        if op not in ROW_REDUCTIONS:
            want = the_long_way(op, x, -1)
            assert direct[op](x, None if op in ELEMENT_MAPS else -1, x) is x
            assert_same_bits(x, want)


class Array(np.ndarray):
    pass


X = data((4, 6), "f4")
NOT_DIRECT = {
    "list": ([1.0, 2.0], 0),
    "scalar": (np.float32(1), None),
    "subclass": (X.view(Array), -1),
    "masked": (np.ma.array(X), -1),
    "empty": (np.empty((3, 0), "f4"), -1),
    "empty batch": (np.empty((0, 3), "f4"), -1),
    "zero dimensions, axis": (np.array(1.0), -1),
    "longdouble": (X.astype("g"), -1),
    "complex": (X.astype("c8"), -1),
    "integers": (X.astype("i4"), -1),
    "objects": (X.astype(object), -1),
    "swapped": (LAYOUTS["swapped bytes"](X), -1),
    "F": (np.asfortranarray(X), -1),
    "apart": (stepped(X, (1, 2)), -1),
    "broadcast": (np.broadcast_to(X[0], (3, 6)), -1),
    "unaligned": (unaligned(X), -1),
    "dtype with metadata": (X.astype(np.dtype("f4", metadata={"a": 1})), -1),
    "axis beyond": (X, 2),
    "axis before": (X, -3),
    "axis far beyond": (X, 1 << 70),
    "axis far before": (X, -(1 << 70)),
    "axis beyond int": (X, (1 << 32) - 1),
    "bool": (X, True),
    "float": (X, -1.0),
    "NumPy integer": (X, np.int64(-1)),
    "tuple": (X, (0, 1)),
    "str": (X, "-1"),
}


@needs_c
@every_op
@pytest.mark.parametrize("case", NOT_DIRECT)
def test_left_alone(op, case):
    assert direct[op](*NOT_DIRECT[case], None) is None


@needs_c
@every_op
@pytest.mark.parametrize("case", NOT_DIRECT)
def test_what_is_left_alone_ends_as_it_does_the_long_way(op, case):
    x, axis = NOT_DIRECT[case]
    outcomes = []
    for way in (call, the_long_way):
        try:
            outcomes.append(np.asarray(way(op, x, axis)))
        except (TypeError, ValueError, AxisError) as error:
            outcomes.append((type(error), str(error)))
    if isinstance(outcomes[0], np.ndarray):
        assert_array_equal(*outcomes, strict=True)
    else:
        assert outcomes[0] == outcomes[1]


def read_only_out(x):
    return read_only(np.zeros_like(x))


NO_OUT = {
    "list": lambda x: x.tolist(),
    "subclass": lambda x: np.zeros_like(x).view(Array),
    "shape": lambda x: np.zeros(x.shape[::-1], x.dtype),
    "dimensions": lambda x: np.zeros(x.size, x.dtype),
    "other dtype": lambda x: np.zeros(x.shape, "f8" if x.dtype == "f4" else "f4"),
    "swapped": lambda x: np.zeros(x.shape, x.dtype.newbyteorder()),
    "read-only": read_only_out,
    "unaligned": lambda x: unaligned(np.zeros_like(x)),
    "apart": lambda x: stepped(np.zeros_like(x), (1, 2)),
    "F": lambda x: np.asfortranarray(np.zeros_like(x)),
}


@every_dtype
@needs_c
@pytest.mark.parametrize("op", [op for op in OPS if op not in ROW_REDUCTIONS])
@pytest.mark.parametrize("case", NO_OUT)
def test_out_left_alone(op, case, dtype):
    x = data((4, 6), dtype)
    out = NO_OUT[case](x)
    assert direct[op](x, None, out) is None
    assert not np.any(out) or case == "list"


@every_dtype
@needs_c
@every_op
def test_overlapping_out_is_left_alone_and_right(op, dtype):
    """Every shift of out against x in one piece of memory; a reduction's out is never where x is."""
    reduces, n = op in ROW_REDUCTIONS, 6
    x0 = data((2, n), dtype)
    want = np.asarray(the_long_way(op, x0, -1))
    for shift in range(-16, 17):
        memory = np.zeros(64, dtype)
        x = memory[20:32].reshape(2, n)
        x[...] = x0
        out = memory[20 + shift :][: want.size].reshape(want.shape)
        axis = None if op in ELEMENT_MAPS else -1
        apart = shift >= 2 * n or shift <= -want.size
        taken = direct[op](x, axis, out) is out
        assert taken == (apart or (shift == 0 and not reduces)), shift
        if not taken:
            assert_same_bits(x, x0)
            call(op, x, axis, out=out)
        assert_same_bits(out, want, f"shift {shift}")


@needs_c
@pytest.mark.parametrize("op", ROW_REDUCTIONS)
@pytest.mark.parametrize("shape", [(3,), (1, 2), (2, 1), (), (2, 2)])
def test_out_of_the_wrong_shape_for_a_reduction(op, shape):
    assert direct[op](np.zeros((2, 3)), -1, np.zeros(shape)) is None
    with pytest.raises(ValueError, match="out: shape"):
        getattr(fsm, op)(np.zeros((2, 3)), -1, out=np.zeros(shape))


@every_dtype
@needs_c
def test_scalars_are_new_ones(dtype):
    scalar = np.dtype(dtype).type
    values = [fsm.logsumexp(np.full(1, v, dtype)) for v in (1, 2, 3, np.nan, -np.inf)]
    assert [type(v) for v in values] == [scalar] * 5
    assert repr(values) == repr([scalar(v) for v in (1, 2, 3, np.nan, -np.inf)])
    assert scalar(0) == 0


# ---- logsumexp beside the result; gradients ----


@every_dtype
@needs_c
@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_taken_with_logsumexp(op, dtype):
    for shape in SHAPES:
        x = data(shape, dtype)
        for axis in axes(op, x):
            for modifiers in ({}, {"temperature": 0.5}, {"where": x > -4}):
                given = {"where": None, "temperature": 1.0, "bias": None, "softcap": None} | modifiers
                got = direct[op](x, axis, None, *given.values(), True)
                want = the_long_way(op, x, axis, return_lse=True, **modifiers)
                for a, b in zip(got, want, strict=True):
                    assert (type(a), a.dtype) == (type(b), b.dtype), (shape, axis)
                    assert_same_bits(np.asarray(a), np.asarray(b), f"{shape} axis {axis} {modifiers}")


@needs_c
@pytest.mark.parametrize("wanted", [None, 1, "yes", np.True_])
def test_only_a_bool_asks_for_logsumexp(wanted):
    assert direct["softmax"](X, -1, None, None, 1.0, None, None, wanted) is None


VJPS = pytest.mark.parametrize("op", ["softmax", "log_softmax"])


@every_dtype
@needs_c
@VJPS
def test_gradients_are_taken(op, dtype):
    vjp, whole = direct[f"{op}_vjp"], getattr(fsm, f"{op}_vjp")
    for shape in SHAPES:
        g = read_only(data(shape, dtype, 1))
        for axis in axes(op, g):
            y = call(op, data(shape, dtype), axis)
            want = whole(g, y, axis, backend=BACKENDS[0])
            assert_same_bits(vjp(g, y, axis, None), want, f"{shape} axis {axis}")
            for out in (np.full(shape, 7, dtype), g.copy(), y.copy()):
                given = [out if np.array_equal(a, out) else a for a in (g, y)]  # in place of either, too
                assert vjp(*given, axis, out) is out
                assert_same_bits(out, want)


@needs_c
@VJPS
@pytest.mark.parametrize("case", NOT_DIRECT)
def test_gradients_left_alone(op, case):
    x, axis = NOT_DIRECT[case]
    good = np.ones(np.shape(x), "f4")
    assert direct[f"{op}_vjp"](good, x, axis, None) is None
    if not case.startswith(("axis", "bool", "float", "NumPy integer", "tuple", "str", "zero")):
        assert direct[f"{op}_vjp"](x, good, axis, None) is None


@needs_c
@VJPS
def test_gradients_of_other_shapes_dtypes_and_overlapping_results_are_left_alone(op):
    vjp, memory = direct[f"{op}_vjp"], np.zeros(100, "f4")
    y, g = memory[:24].reshape(4, 6), memory[24:48].reshape(4, 6)
    assert vjp(g[0], y, -1, None) is vjp(g.T.copy(), y, -1, None) is vjp(g.astype("f8"), y, -1, None) is None
    for shift in range(1, 48):
        out = memory[shift : shift + 24].reshape(4, 6)
        assert (vjp(g, y, -1, out) is out) == (shift == 24), shift
    for case in NO_OUT.values():
        assert vjp(g, y, -1, case(y)) is None
    for arguments in ((), (g,), (g, y, -1), (g, y, -1, None, None)):
        assert vjp(*arguments) is None


def assert_nothing_is_kept(calls, held):
    """A leaked array, scalar, tuple or dtype would show as one reference or block a call."""
    held = [o for o in held if sys.getrefcount(o) < 1 << 30]  # the others are immortal

    def count():
        return [sys.getrefcount(o) for o in held]

    calls()
    before, blocks = count(), sys.getallocatedblocks()
    for _ in range(300):
        calls()
    assert max(abs(a - b) for a, b in zip(count(), before, strict=True)) < 50
    assert sys.getallocatedblocks() - blocks < 100


@every_dtype
@needs_c
@every_op
def test_references_are_given_back(op, dtype):
    """For taken and refused calls alike."""
    x, out, bad = data((2, 3), dtype), np.zeros((2, 3), dtype), np.zeros((7, 7), dtype)
    direct[op](x, -1, None)  # which is made by its first call
    sums, f = np.zeros(2, dtype), direct[op]

    def calls():
        for axis, y in itertools.product((None, 0, -1, 1 << 70, "0"), (None, out, sums, bad, x)):
            f(x, axis, y)
        f(x[::-1], -1, None)
        f(np.zeros(600, dtype), -1, None)
        for y in (None, out, bad) if op in ("softmax", "log_softmax") else ():
            f(x, -1, y, None, 1.0, None, None, True)
            direct[f"{op}_vjp"](x, x, -1, y)

    assert_nothing_is_kept(calls, [x, out, bad, sums, x.dtype, x.dtype.type, np.ndarray, np.empty, np.empty_like, None])


@every_dtype
@needs_c
def test_references_are_given_back_by_losses(dtype):
    x, out, bad, target = data((2, 3), dtype), np.zeros((2, 3), dtype), np.zeros((7, 7), dtype), np.zeros(2, np.int64)

    def calls():
        for reduction, gradient in itertools.product(range(4), (False, True, out, bad)):
            direct[LOG_PROB](x, target, -1, -100, reduction, gradient)
            direct[LOG_PROB](x[0], target[0, ...], -1, -100, reduction, gradient)

    assert_nothing_is_kept(calls, [x, out, bad, target, x.dtype, x.dtype.type, np.ndarray, None])


@needs_c
def test_any_number_of_arguments():
    fsm.softmax(X)
    for arguments in ((), (X,), (X, -1), (X, -1, None, None)):
        assert direct["softmax"](*arguments) is None


@needs_c
def test_what_the_layout_check_finds(monkeypatch):
    """A NumPy with other fields than those in binding/prelude.h is found out, and its arrays take the long way."""
    from fastsoftmax._backends import c, load

    check = c.layout_as_expected.__wrapped__
    assert check()
    real = c.ffi

    def broken(field, change):
        def cast(ctype, value):
            pointer = real.cast(ctype, value)
            if ctype == "uintptr_t" or ctype == "void *" or not hasattr(pointer, field):
                return pointer
            fields = {f: getattr(pointer, f) for f, _ in real.typeof(ctype).item.fields}
            return types.SimpleNamespace(**fields | {field: change(fields[field])})

        return types.SimpleNamespace(cast=cast, sizeof=real.sizeof)

    for field in ("data", "ndim", "flags", "shape", "strides", "dtype", "value"):
        change = (lambda p: p) if field in ("data", "shape", "strides", "dtype") else (lambda v: v + 1)
        monkeypatch.setattr(c, "ffi", broken(field, change))
        assert check() == (field in ("data", "shape", "strides", "dtype"))  # the harness itself passes unchanged fields
    for field in ("data", "shape", "strides"):
        monkeypatch.setattr(c, "ffi", broken(field, lambda p: p + 1))
        assert not check(), field
    monkeypatch.setattr(c, "ffi", broken("dtype", lambda p: real.cast("char *", p) + 8))
    assert not check()
    too_big = types.SimpleNamespace(cast=real.cast, sizeof=lambda ctype: 10**6)
    monkeypatch.setattr(c, "ffi", too_big)
    assert not check()
    monkeypatch.setattr(c, "ffi", real)
    monkeypatch.setattr(sys, "implementation", types.SimpleNamespace(name="pypy"))
    assert not check()

    monkeypatch.setattr(c, "layout_as_expected", lambda: False)
    assert load(BACKENDS[0]).direct("softmax", lambda dtype: 100, lambda elements, dtype: 1) is None


@needs_c
@pytest.mark.parametrize(
    ("version", "known"), [(0x01000009, True), (0x02000000, True), (0x03000000, False), (0, False)]
)
def test_only_a_known_table_of_functions_is_used(version, known, monkeypatch):
    """Of a NumPy with another ABI nothing but its version is asked."""
    from fastsoftmax._backends import c, load

    get_version = ctypes.CFUNCTYPE(ctypes.c_uint)(lambda: version)
    table = (ctypes.c_void_p * 1)(ctypes.cast(get_version, ctypes.c_void_p))
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype, new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    capsule = new_capsule(table, None, None)
    monkeypatch.setattr(c, "_numpy_functions", lambda: capsule)
    made = load(BACKENDS[0]).direct("softmax", lambda dtype: 100, lambda elements, dtype: 1)
    assert (made is not None) == known


@needs_c
def test_a_capsule_of_another_kind_is_no_table(monkeypatch):
    from fastsoftmax._backends import c, load

    monkeypatch.setattr(c, "_numpy_functions", lambda: np.random.PCG64().capsule)
    assert load(BACKENDS[0]).direct("softmax", lambda dtype: 100, lambda elements, dtype: 1) is None


@needs_c
def test_without_direct_functions_all_is_the_same(run_ok):
    code = """
import numpy as np, fastsoftmax as f
from fastsoftmax import _dispatch
from fastsoftmax._backends import OPS, c
{patch}
x = np.random.default_rng(0).normal(size=(3, 7)).astype("f4")
for op in OPS:
    print(op, getattr(f, op)(x).tobytes().hex(), getattr(f, op)(x[0], out=None).tobytes().hex())
print(f.cross_entropy(x, np.array([6, 0, 3])).tobytes().hex(), "log_prob" in _dispatch.direct)
print(_dispatch.direct["softmax"](x, -1, None) is None)
"""
    with_them, without = (
        run_ok(code.format(patch=patch)).splitlines() for patch in ("", "c.layout_as_expected = lambda: False")
    )
    assert sorted(with_them[:-1]) == sorted(without[:-1])
    assert (with_them[-1], without[-1]) == ("False", "True")


@pytest.mark.parametrize("chosen", BACKENDS)
def test_direct_calls_run_on_the_backend_that_was_asked_for(chosen, run_ok):
    code = f"""
import numpy as np, fastsoftmax as f
x = np.random.default_rng(0).normal(0, 9, 3000).astype("f4")
print(f.explain(x).backend, all(
    getattr(f, op)(x).tobytes() == getattr(f, op)(x, backend={chosen!r}).tobytes()
    for op in ("softmax", "log_softmax", "logsumexp", "logcumsumexp")))
"""
    variable = {"FASTSOFTMAX_ISA": chosen[2:]} if chosen.startswith("c-") else {"FASTSOFTMAX_BACKEND": chosen}
    assert run_ok(code, **variable).split() == [chosen, "True"]


def test_nothing_is_made_by_importing(run_ok):
    """The first call of an operation makes its function; importing reads no settings."""
    code = "import fastsoftmax as f; from fastsoftmax import _dispatch as d; before = dict(d.direct); f.softmax([1.])"
    code += "; print([op for op in d.direct if d.direct[op] is not before[op]])"
    assert run_ok(code).strip() == "['softmax']"


@needs_c
def test_each_dtype_has_a_crossover_of_its_own():
    """Only from there on Python is asked for how many threads."""
    from fastsoftmax._backends import load

    asked = []
    below = {np.dtype("f4"): 100, np.dtype("f8"): 10, np.dtype("f2"): 50}
    made = load(BACKENDS[0]).direct("softmax", below.__getitem__, lambda *what: asked.append(what) or 1)
    for dtype, limit in (*below.items(), (np.dtype(ml_dtypes.bfloat16), 50)):
        for n in (limit - 1, limit):
            assert made(np.ones(n, dtype), -1, None) is not None
    assert asked == [(limit, dtype) for dtype, limit in (*below.items(), (np.dtype(ml_dtypes.bfloat16), 50))]


@needs_c
def test_an_error_on_the_way_to_the_threads(python):
    """A warning that is made an error comes out as what it is."""
    code = "import numpy, fastsoftmax as f; f.softmax(numpy.ones((1000, 1000)))"
    done = python(code, "-W", "error", OMP_NUM_THREADS="two")
    assert done.stderr.splitlines()[-1].startswith("UserWarning: OMP_NUM_THREADS='two'"), done.stderr


@needs_c
def test_bfloat16_is_learnt_from_its_first_array(run_ok):
    """Also by functions that are made later; before, and without ml_dtypes, all others are taken as ever."""
    code = """
import numpy as np, fastsoftmax as f
from fastsoftmax import _dispatch
f.softmax(np.ones(3, "f4"))
import ml_dtypes
x = np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)
taken = lambda op: _dispatch.direct[op](x, -1, None) is not None
print(taken("softmax"), end=" ")
first = f.softmax(x)
print(taken("softmax"), taken("logsumexp"), (f.softmax(x) == first).all(), f.logsumexp(x[0]))
"""
    assert run_ok(code).split() == ["False", "True", "True", "True", "2.40625"]
