"""Bad input gets AxisError, TypeError or ValueError that names what is wrong; nothing is half-written."""

import sys

import numpy as np
import pytest
from conftest import BACKENDS
from numpy.exceptions import AxisError
from numpy.testing import assert_array_equal

import fastsoftmax as fsm

MAPS = [fsm.softmax, fsm.log_softmax, fsm.softmin, fsm.hardmax, fsm.logcumsumexp]
REDUCTIONS = [fsm.logsumexp, fsm.logmeanexp]
ELEMENTWISE = [fsm.sigmoid, fsm.softplus]
ALONG_AXIS = MAPS + REDUCTIONS
ALL = ALONG_AXIS + ELEMENTWISE
X = np.arange(12.0).reshape(3, 4)


def named(functions):
    return pytest.mark.parametrize("f", functions, ids=lambda f: f.__name__)


@named(ALONG_AXIS)
@pytest.mark.parametrize("axis", [2, -3, 100, 2**40])
def test_axis_out_of_range(f, axis, backend):
    with pytest.raises(AxisError, match=r"axis"):
        f(X, axis=axis, backend=backend)


@named(ALONG_AXIS)
@pytest.mark.parametrize("axis", [1, -2, 5])
def test_axis_out_of_range_for_zero_dimensions(f, axis):
    with pytest.raises(AxisError):
        f(np.array(1.0), axis=axis)


@named(ALONG_AXIS)
@pytest.mark.parametrize("axis", [0.0, 1.5, "0", [0], b"0", object(), {0}, np.array([0, 1]), np.float64(1)])
def test_axis_of_the_wrong_type(f, axis):
    with pytest.raises(TypeError, match="axis"):
        f(X, axis=axis)


@named([fsm.softmax, fsm.log_softmax, *REDUCTIONS])
@pytest.mark.parametrize("axis", [(0, 0), (1, -1)])
def test_axis_given_twice(f, axis):
    with pytest.raises(ValueError, match=r"axis"):
        f(X, axis=axis)


@named([fsm.softmax, fsm.log_softmax, *REDUCTIONS])
@pytest.mark.parametrize("axis", [(0, 2), (-3,), (0, 1, 7)])
def test_axis_in_a_tuple_out_of_range(f, axis):
    with pytest.raises(AxisError):
        f(X, axis=axis)


@named([fsm.softmax, fsm.log_softmax, *REDUCTIONS])
@pytest.mark.parametrize("axis", [(0, 1.0), (0, "1"), (None,)])
def test_axis_in_a_tuple_of_the_wrong_type(f, axis):
    with pytest.raises(TypeError):
        f(X, axis=axis)


BAD_INPUT = {
    "object": np.array([1.0, None], object),
    "str": np.array(["a", "b"]),
    "bytes": np.array([b"a"]),
    "datetime64": np.array(["2020-01-01"], "M8[D]"),
    "timedelta64": np.array([1], "m8[s]"),
    "struct": np.zeros(3, [("a", "f4")]),
    "void": np.zeros(3, "V4"),
    "None": None,
    "dict": {"a": 1},
    "set": {1.0, 2.0},
    "words": ["a", "b"],
    "a word": "abc",
}


@named(ALL)
@pytest.mark.parametrize("bad", BAD_INPUT)
def test_input_that_cannot_be_done(f, bad):
    with pytest.raises(TypeError):
        f(BAD_INPUT[bad])


@named(ALL)
def test_ragged_lists(f):
    with pytest.raises((TypeError, ValueError)):
        f([[1.0], [1.0, 2.0]])


@named([fsm.softmax, fsm.logsumexp, fsm.sigmoid])
@pytest.mark.parametrize("kind", ["datetime64[D]", "V4"])
def test_the_message_names_the_dtype(f, kind):
    with pytest.raises(TypeError, match=kind.split("[")[0].replace("V4", r"(V4|void)")):
        f(np.zeros(3, kind))


@named([f for f in ALL if f is not fsm.logsumexp])
@pytest.mark.parametrize("kind", ["complex64", "complex128", "clongdouble"])
def test_complex_is_for_logsumexp_only(f, kind):
    with pytest.raises(TypeError, match="complex"):
        f(np.ones(3, kind))


@named(ALL)
def test_masked_arrays_are_never_silently_unmasked(f, backend):
    with pytest.raises(TypeError, match=r"[Mm]ask"):
        f(np.ma.masked_array([1.0, 2.0], [True, False]), backend=backend)
    with pytest.raises(TypeError, match=r"[Mm]ask"):
        f(np.ma.masked_array([1.0, 2.0]), backend=backend)


def test_masked_weights():
    with pytest.raises(TypeError, match=r"[Mm]ask"):
        fsm.logsumexp([1.0, 2.0], b=np.ma.masked_array([1.0, 2.0], [True, False]))


@named(ALL)
@pytest.mark.parametrize("dtype", ["i4", "bool", "U3", "O", "M8[s]", "V8"])
def test_dtype_that_cannot_hold_a_result(f, dtype):
    with pytest.raises(TypeError, match="dtype"):
        f(X, dtype=dtype)


@named(ALL)
@pytest.mark.parametrize("dtype", ["no such type", ",", "f4,", "(2,", 5, [], {"names": ["a"]}])
def test_dtype_that_is_none_at_all(f, dtype):
    with pytest.raises(TypeError, match="dtype"):
        f(X, dtype=dtype)


@pytest.mark.parametrize("shape", [(2**70,), (2**40, 2**40), (-1,)])
@named(ALL)
def test_shape_that_no_array_can_have(f, shape):
    class Interface:
        __array_interface__ = {"version": 3, "typestr": "<f8", "shape": shape, "data": (X.ctypes.data, True)}  # noqa: RUF012

    with pytest.raises(ValueError, match=r"^[xa]: "):
        f(Interface())


@named(ALL)
def test_unknown_backend(f):
    for x in (X, X[:0], X[:, :0]):  # also where there is nothing to do
        with pytest.raises(ValueError, match=r"(?s)cuda.*numpy|numpy.*cuda"):
            f(x, backend="cuda")


@named(ALL)
@pytest.mark.parametrize("bad", [3, b"numpy", ["numpy"], ("numpy",)])
def test_backend_of_the_wrong_type(f, bad):
    with pytest.raises((TypeError, ValueError), match="backend"):
        f(X, backend=bad)


def test_an_isa_that_this_machine_lacks():
    missing = {"c-avx512", "c-avx2", "c-neon"} - set(fsm.backends())
    assert missing, "no machine has them all"
    for name in missing:
        with pytest.raises(ValueError, match=name):
            fsm.softmax(X, backend=name)


def shape_of(f, x):
    return () if f in REDUCTIONS else x.shape


@named(ALL)
@pytest.mark.parametrize("bad", ["shape", "larger", "dtype", "byteorder", "read-only"])
def test_out_that_does_not_fit(f, bad, backend):
    shape = shape_of(f, X)
    out = {
        "shape": lambda: np.full((*shape, 1) if shape else (2,), 7.0),
        "larger": lambda: np.full((5, *shape), 7.0),
        "dtype": lambda: np.full(shape, 7, np.float32),
        "byteorder": lambda: np.full(shape, 7, np.dtype("f8").newbyteorder()),
        "read-only": lambda: np.full(shape, 7.0),
    }[bad]()
    out.flags.writeable = bad != "read-only"
    with pytest.raises((ValueError, TypeError), match="out"):
        f(X, out=out, backend=backend)
    assert_array_equal(out, 7)


@named(ALL)
def test_out_whose_elements_share_memory(f, backend):
    x, memory = np.zeros((3, 4, 5)), np.full(60, 7.0)
    shape = x.shape[:2] if f in REDUCTIONS else x.shape
    for steps in ((0, 8, 16), (8, 8, 8), (16, 8, 40), (32, -8, 0), (8, 16, 40)):
        out = np.lib.stride_tricks.as_strided(memory[8:], shape, steps[: len(shape)])
        given = {} if f in ELEMENTWISE else {"axis": -1}
        if f in REDUCTIONS and steps in ((32, -8, 0), (16, 8, 40), (8, 16, 40)):
            continue  # those in two dimensions do not
        with pytest.raises(ValueError, match="out: its elements share memory"):
            f(x, out=out, backend=backend, **given)
    assert_array_equal(memory, 7)


@named([fsm.softmax, fsm.logsumexp, fsm.sigmoid])
def test_the_message_about_out_has_both_shapes(f):
    x = np.zeros((3, 5))
    want = r"\(\)" if f is fsm.logsumexp else r"\(3, 5\)"
    with pytest.raises(ValueError, match=want) as caught:
        f(x, out=np.zeros((17, 19)))
    assert "(17, 19)" in str(caught.value)


@named(ALL)
@pytest.mark.parametrize("bad", [[0.0], 3.0, "out", (np.zeros((3, 4)),), np.ma.zeros((3, 4)), bytearray(96)])
def test_out_that_is_no_array(f, bad):
    with pytest.raises((TypeError, ValueError), match="out"):
        f(X, out=bad)


@named(ALL)
def test_nothing_is_written_when_another_argument_is_wrong(f):
    out = np.full(shape_of(f, X), 7.0)
    for bad in ({"backend": "cuda"}, {"dtype": "f4"}, {"dtype": "i4"}):
        with pytest.raises((TypeError, ValueError)):
            f(X, out=out, **bad)
    if f not in ELEMENTWISE:
        with pytest.raises(AxisError):
            f(X, out=out, axis=9)
    assert_array_equal(out, 7)


@pytest.mark.skipif(sys.platform != "linux", reason="limits its memory as Linux does")
@pytest.mark.skipif(not BACKENDS[0].startswith("c-"), reason="needs the C part, whose scratch it is about")
def test_no_memory(run_ok):
    """For the scratch that columns of such a length take; by the direct call and the long way."""
    run_ok("""if True:
        import resource, numpy as np, fastsoftmax as f
        x, g = np.zeros((4_000_000, 2), "f4"), np.zeros((4_000_000, 2), "f4")
        out = np.full_like(x, 7)
        for shape in ((2, 2), (9000, 2)):
            f.softmax(np.zeros(shape, "f4"), axis=0), f.softmax(np.zeros(shape, "f4"), axis=0, return_lse=True)
            f.softmax_vjp(np.zeros(shape, "f4"), np.zeros(shape, "f4"), axis=0)
        in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + (12 << 20), -1))
        for call in (
            lambda: f.softmax(x, axis=0, out=out),
            lambda: f.softmax(x, axis=0, out=out, backend="c"),
            lambda: f.log_softmax(x, axis=0, out=out, temperature=2.0),
            lambda: f.softmax_vjp(g, x, axis=0, out=out),
        ):
            try:
                call()
            except MemoryError as error:
                assert "no scratch memory for rows of 4000000" in str(error)
            else:
                raise SystemExit("no MemoryError")
        assert out.min() == out.max() == 7
    """)


def test_return_sign_with_out():
    with pytest.raises(ValueError, match="return_sign"):
        fsm.logsumexp(X, return_sign=True, out=np.empty(()))


def test_weights_that_do_not_broadcast(backend):
    with pytest.raises(ValueError, match=r"(?s)b.*\(3, 4\).*\(5,\)|b.*\(5,\).*\(3, 4\)"):
        fsm.logsumexp(X, b=np.ones(5), backend=backend)


@pytest.mark.parametrize("bad", [np.array(["a"]), np.array([None]), np.array([1], "M8[s]"), {"a": 1}])
def test_weights_that_are_no_numbers(bad):
    with pytest.raises(TypeError):
        fsm.logsumexp(X, b=bad)


@pytest.mark.parametrize("bad", [float("nan"), 0, -1.0, 10**400, float("inf")])
def test_softplus_beta_out_of_range(bad):
    with pytest.raises(ValueError, match="beta"):
        fsm.softplus(X, beta=bad)


@pytest.mark.parametrize("bad", ["1", None, [1.0, 2.0]])
def test_softplus_beta_of_the_wrong_type(bad):
    with pytest.raises((TypeError, ValueError), match="beta"):
        fsm.softplus(X, beta=bad)


@named(ALL)
def test_keyword_only_and_positional_only(f):
    with pytest.raises(TypeError):
        f(x=X) if f not in REDUCTIONS else f(a=X)
    with pytest.raises(TypeError):
        f()
    with pytest.raises(TypeError):
        f(X, no_such_argument=1)
    with pytest.raises(TypeError):
        f(X, None, None, None, None)


@pytest.mark.parametrize("bad", [0, -1, 1.5, "two", None])
def test_thread_counts(bad):
    before = fsm.get_num_threads()
    with pytest.raises((TypeError, ValueError)):
        fsm.set_num_threads(bad)
    with pytest.raises((TypeError, ValueError)), fsm.threads(bad):
        raise AssertionError("entered")
    assert fsm.get_num_threads() == before


def test_explain_refuses_what_the_function_would_refuse():
    with pytest.raises(AxisError):
        fsm.explain(X, axis=7)
    with pytest.raises(ValueError, match="op"):
        fsm.explain(X, op="no such")
    with pytest.raises(ValueError, match="cuda"):
        fsm.explain(X, backend="cuda")
    with pytest.raises(ValueError, match=r"backend: \[\] is unknown"):
        fsm.explain(X, backend=[])
    with pytest.raises(TypeError):
        fsm.explain(np.array(["a"]))


def test_show_config_mode():
    with pytest.raises(ValueError, match="mode"):
        fsm.show_config(mode="no such")
