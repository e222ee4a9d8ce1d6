"""Gradients through softmax, log_softmax and logsumexp: the formulas in long double, and the same bits everywhere."""

import itertools

import numpy as np
import pytest
from conftest import FMA_BACKENDS
from layouts import LAYOUTS, assert_same_bits
from numpy.exceptions import AxisError
from numpy.testing import assert_allclose, assert_array_equal

import fastsoftmax as fsm

LD = np.longdouble
MAPS = {"softmax": (fsm.softmax, fsm.softmax_vjp), "log_softmax": (fsm.log_softmax, fsm.log_softmax_vjp)}
VJPS = [fsm.softmax_vjp, fsm.log_softmax_vjp, fsm.logsumexp_vjp]
LENGTHS = [*range(1, 71), 1000, 8191, 8192, 8193, 20_000]
every_map = pytest.mark.parametrize("op", MAPS)


@pytest.fixture(params=["float16", "bfloat16"])
def half(request):
    return request.getfixturevalue("bfloat16") if request.param == "bfloat16" else np.float16


def draw(shape, dtype, seed=0, spread=3.0):
    """(x, g)"""
    rng = np.random.default_rng([seed, *shape])
    return rng.normal(0, spread, shape).astype(dtype), rng.normal(0, 1, shape).astype(dtype)


def exact(op, g, y, axis=-1):
    """The gradient, and how large what is subtracted is."""
    g, y = g.astype(LD), y.astype(LD)
    if op == "softmax":
        d = (g * y).sum(axis=axis, keepdims=True)
        return y * (g - d), np.maximum(np.abs(y * g), np.abs(y * d))
    e = np.exp(y)
    s = g.sum(axis=axis, keepdims=True)
    return g - e * s, np.maximum(np.abs(g), np.abs(e * s))


def ulp_off(got, want, size):
    """In ulp of that size."""
    unit = np.spacing(size.astype(got.dtype)).astype(LD)
    return float(np.max(np.abs(got.astype(LD) - want) / unit, initial=0))


# ---- the right numbers ----


@every_map
def test_formula(op, dtype, backend):
    forward, backward = MAPS[op]
    for shape, axis in [((2, n), -1) for n in LENGTHS] + [((n, 3), 0) for n in LENGTHS]:
        x, g = draw(shape, dtype)
        y = forward(x, axis, backend=backend)
        assert ulp_off(backward(g, y, axis, backend=backend), *exact(op, g, y, axis)) <= 4, shape


@every_map
@pytest.mark.parametrize("spread", [0.01, 30.0, 200.0])
@pytest.mark.parametrize("scale", [-60, -20, 20, 60])
def test_formula_of_large_and_small_gradients(op, spread, scale, dtype, backend):
    x, g = draw((6, 300), dtype, spread=spread)
    g *= np.exp2(np.arange(300) % 9).astype(dtype) * np.dtype(dtype).type(2.0**scale)
    y = MAPS[op][0](x, backend=backend)
    want, size = exact(op, g, y)
    floor = np.finfo(dtype).smallest_subnormal
    assert ulp_off(MAPS[op][1](g, y, backend=backend), want, np.maximum(size, floor)) <= 4


@every_map
def test_sums_that_cancel(op, dtype, backend):
    """The sum is right to far more digits than the type has."""
    x, g = draw((4, 5000), dtype)
    y = MAPS[op][0](x, backend=backend)
    g[:, 1::2] = -g[:, ::2]
    if op == "softmax":
        y[:, 1::2] = y[:, ::2]
    g[:, 7] += np.dtype(dtype).type(2.0**-12)
    assert ulp_off(MAPS[op][1](g, y, backend=backend), *exact(op, g, y)) <= 4


def test_the_smallest_gradients(dtype, backend):
    """Sums so small that terms must not carry their boost, and results that are subnormal."""
    info = np.finfo(dtype)
    for scale in (float(info.smallest_subnormal) * 8, float(info.tiny) * 2, float(info.tiny) * 2.0**50):
        g = np.full((2, 40), scale, dtype)
        y = np.full((2, 40), -2.0, dtype)
        want, size = exact("log_softmax", g, y)
        assert ulp_off(fsm.log_softmax_vjp(g, y, backend=backend), want, size) <= 4
    g, y = np.zeros((1, 30), dtype), np.full((1, 30), np.log(float(info.tiny)) - 3, dtype)
    g[0, 0], y[0, 0] = -1, 0
    want, _ = exact("log_softmax", g, y)
    got = fsm.log_softmax_vjp(g, y, backend=backend)
    assert 0 < got[0, 1] < info.tiny
    assert ulp_off(got, want, np.maximum(np.abs(want), info.tiny)) <= 4


@pytest.mark.parametrize("n", [1, 7, 33, 1000, 9000])
def test_logsumexp(n, dtype, backend):
    for shape, axis in (((4, n), 1), ((n, 5), 0), ((2, n, 3), (0, 1))):
        x, g = draw(shape, dtype)
        e = np.exp(x.astype(LD) - x.max(axis=axis, keepdims=True))
        g = g.take(0, axis=axis) if isinstance(axis, int) else g[0, 0]
        want = np.expand_dims(g, axis).astype(LD) * e / e.sum(axis=axis, keepdims=True)
        got = fsm.logsumexp_vjp(g, x, axis, backend=backend)
        assert ulp_off(got, want, np.abs(want)) <= 5
        assert_same_bits(fsm.logsumexp_vjp(np.expand_dims(g, axis), x, axis, backend=backend), got)
        softmax = fsm.softmax(x, axis, backend=backend)
        assert_same_bits(got, (softmax * np.expand_dims(g, axis)).astype(dtype))


def test_logsumexp_of_everything(backend):
    x, _ = draw((3, 4), "float64")
    want = 2.0 * fsm.softmax(x, None, backend=backend)
    for g in (2.0, 2, [[2.0]]):
        assert_same_bits(fsm.logsumexp_vjp(g, x, backend=backend), want)
    assert_same_bits(fsm.logsumexp_vjp(3.0, x, 1, backend=backend), 3 * fsm.softmax(x, 1, backend=backend))
    assert_array_equal(fsm.logsumexp_vjp(2.0, 5.0, backend=backend), 2.0)


def test_logsumexp_in_pieces(dtype, backend):
    """Arrays that are gone through in pieces, along any axis."""
    for shape, axis in (((1500, 400), 1), ((400, 1500), 0), ((3, 500, 400), 1), ((2, 2, 150_000), (0, 2))):
        x, g = draw(shape, dtype)
        g = np.expand_dims(g.take(0, axis=axis) if isinstance(axis, int) else g[0, :, 0], axis)
        want = fsm.softmax(x, axis, backend=backend) * g
        assert_same_bits(fsm.logsumexp_vjp(g, x, axis, backend=backend), want)
        assert_same_bits(fsm.logsumexp_vjp(g, x, axis, out=x, backend=backend), want)


FUNCTIONS = {
    "softmax": (
        fsm.softmax,
        lambda g, x, axis, b: fsm.softmax_vjp(g, fsm.softmax(x, axis, backend=b), axis, backend=b),
    ),
    "log_softmax": (
        fsm.log_softmax,
        lambda g, x, axis, b: fsm.log_softmax_vjp(g, fsm.log_softmax(x, axis, backend=b), axis, backend=b),
    ),
    "logsumexp": (fsm.logsumexp, lambda g, x, axis, b: fsm.logsumexp_vjp(g, x, axis, backend=b)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("axis", [0, 1, -1, (0, 2), None])
def test_finite_differences(name, axis, backend):
    forward, backward = FUNCTIONS[name]
    x, _ = draw((3, 4, 5), "float64", spread=1)
    g = np.random.default_rng(1).normal(0, 1, np.shape(forward(x, axis)))
    got, step = backward(g, x, axis, backend), 1e-5
    for place in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[place] += step
        down[place] -= step
        slope = np.sum(g * (forward(up, axis) - forward(down, axis))) / (2 * step)
        assert abs(slope - got[place]) < 1e-9


def test_autograd_of_torch(backend):
    x = np.array([[1.0, 2.0, -0.5], [0.0, -3.0, 4.0]])
    g = np.array([[1.0, -2.0, 0.5], [3.0, 0.25, -1.0]])
    wanted = {
        (fsm.softmax_vjp, -1): [
            [0.5321245610852123, -0.6225517334988329, 0.09042717241362072],
            [0.07056867483137944, 0.0010530388220654809, -0.07162171365344491],
        ],
        (fsm.log_softmax_vjp, -1): [
            [1.1268580908175125, -1.655163956937748, 0.5283058661202357],
            [2.959567234345173, 0.2479869711320413, -3.207554205477214],
        ],
        (fsm.softmax_vjp, 0): [
            [-0.3932238664829637, -0.01495812750927763, 0.016299344583337854],
            [0.3932238664829637, 0.014958127509277852, -0.01629934458333781],
        ],
        (fsm.log_softmax_vjp, 0): [
            [-1.9242343145200196, -0.2617124891174983, 0.5054934713152965],
            [1.9242343145200196, 0.2617124891174985, -0.5054934713152965],
        ],
    }
    for (vjp, axis), want in wanted.items():
        forward = fsm.softmax if vjp is fsm.softmax_vjp else fsm.log_softmax
        assert_allclose(vjp(g, forward(x, axis), axis, backend=backend), want, rtol=1e-13, atol=1e-16)
    want = [
        [0.5074323632700504, 1.379344172249007, 0.11322346448094256],
        [-0.008985059034406034, -0.00044733974843526677, -0.4905676012171587],
    ]
    assert_allclose(fsm.logsumexp_vjp([2.0, -0.5], x, -1, backend=backend), want, rtol=1e-13)


# ---- special values ----


@pytest.mark.parametrize("n", [1, 5, 17, 300, 9000])
def test_rows_of_nothing(n, dtype, backend):
    x, g = draw((40, n), dtype)
    x[1::2] = -np.inf
    x[0, 0] = -np.inf if n > 1 else x[0, 0]
    y = fsm.log_softmax(x, empty="zero", backend=backend)
    for axis, turn in ((-1, np.copy), (0, lambda a: a.T.copy())):
        got = turn(fsm.log_softmax_vjp(turn(g), turn(y), axis, backend=backend))
        assert_array_equal(got[1::2], np.zeros((20, n)))
        assert_same_bits(got[::2], fsm.log_softmax_vjp(g[::2], y[::2], backend=backend))
        dx = turn(y)
        assert_same_bits(turn(fsm.log_softmax_vjp(turn(g), dx, axis, out=dx, backend=backend)), got)
        got = turn(fsm.logsumexp_vjp(g[:, 0], turn(x), axis, backend=backend))
        assert_array_equal(got[1::2], np.zeros((20, n)))
    y = fsm.softmax(x, empty="zero", backend=backend)
    assert_array_equal(fsm.softmax_vjp(g, y, backend=backend)[1::2], np.zeros((20, n)))


@every_map
@pytest.mark.parametrize("n", [3, 40, 9000])
def test_special_values_are_those_of_the_formula(op, n, dtype, backend):
    """Infinities and NaN, in one row and not in its neighbours."""
    x, g = draw((9, n), dtype)
    y = MAPS[op][0](x, backend=backend)
    g[1, 1], g[2, 0], g[3, 0], g[3, 1] = np.inf, np.nan, np.inf, -np.inf
    y[4, 1], y[5, 0], y[6, 0] = np.nan, 0 if op == "softmax" else -np.inf, 0 if op == "softmax" else -np.inf
    g[6, 0], g[7] = np.inf, -np.inf
    with np.errstate(all="ignore"):
        want = exact(op, g, y)[0].astype(dtype)
    with np.errstate(all="raise"):
        got = MAPS[op][1](g, y, backend=backend)
        columns = MAPS[op][1](g.T, y.T, 0, backend=backend).T
    assert_array_equal(columns, got)
    assert_array_equal(np.isnan(got), np.isnan(want))
    assert_array_equal(np.isinf(got), np.isinf(want))
    assert_array_equal(np.sign(got[np.isinf(got)]), np.sign(want[np.isinf(got)]))


def test_what_is_no_logarithm_of_a_softmax(dtype, backend):
    g, y = np.ones((2, 20), dtype), np.full((2, 20), -1.0, dtype)
    y[0, :4] = [3, 32, 33, np.inf]
    for got in (
        fsm.log_softmax_vjp(g, y, backend=backend),
        fsm.log_softmax_vjp(g.T, y.T.copy(), 0, backend=backend).T,
    ):
        assert np.isfinite(got[0, [0, 1, 4]]).all()
        assert np.isnan(got[0, 2:4]).all()
        assert np.isfinite(got[1]).all()


# ---- the same bits ----


@every_map
def test_same_bits_on_every_backend(op, dtype):
    for n in LENGTHS:
        x, g = draw((3, n), dtype, 5)
        y = MAPS[op][0](x, backend=FMA_BACKENDS[0])
        want = MAPS[op][1](g, y, backend=FMA_BACKENDS[0])
        for backend in FMA_BACKENDS[1:]:
            assert_same_bits(MAPS[op][1](g, y, backend=backend), want, f"{backend}, n = {n}")


@every_map
@pytest.mark.parametrize(
    ("shape", "axis"), [((30, 7), 1), ((7, 30), 0), ((4, 5, 6, 7), (1, 2)), ((1, 70, 64), 1), ((9, 20, 4), 1)]
)
def test_layouts(op, shape, axis, dtype, backend):
    x, g = draw(shape, dtype)
    y = MAPS[op][0](x, axis, backend=backend)
    want = MAPS[op][1](g, y, axis, backend=backend)
    for name, layout in LAYOUTS.items():
        for a, b in ((layout(g), y), (g, layout(y)), (layout(g), layout(y))):
            assert_same_bits(MAPS[op][1](a, b, axis, backend=backend), want, name)
        if name not in ("swapped bytes", "read-only", "bytes"):
            out = layout(np.zeros_like(y))
            assert MAPS[op][1](g, layout(y), axis, out=out, backend=backend) is out
            assert_same_bits(out.copy(), want, name)


@every_map
@pytest.mark.parametrize("n", [3, 40, 1000, 9000])
def test_any_axis_and_place_in_a_batch(op, n, dtype, backend):
    x, g = draw((70, n), dtype)
    y = MAPS[op][0](x, backend=backend)
    want = MAPS[op][1](g, y, backend=backend)
    for rows in (1, 2, 5, 16, 17, 63, 65):
        assert_same_bits(MAPS[op][1](g[-rows:], y[-rows:], backend=backend), want[-rows:])
        got = MAPS[op][1](g[:rows].T.copy(), y[:rows].T.copy(), 0, backend=backend)
        assert_same_bits(got.T, want[:rows], f"{rows} columns")


@every_map
def test_gradients_that_are_broadcast(op, dtype, backend):
    x, _ = draw((4, 5, 6), dtype)
    rng = np.random.default_rng(3)
    for axis in (0, 1, 2, (0, 2), None):
        y = MAPS[op][0](x, axis, backend=backend)
        for shape in ((), (1,), (6,), (5, 1), (1, 5, 6), (4, 1, 1), (4, 1, 6)):
            g = rng.normal(0, 1, shape).astype(dtype)
            want = MAPS[op][1](np.broadcast_to(g, x.shape).copy(), y, axis, backend=backend)
            assert_same_bits(MAPS[op][1](g, y, axis, backend=backend), want, f"{shape}")
            assert_same_bits(MAPS[op][1](np.broadcast_to(g, x.shape), y, axis, backend=backend), want, f"{shape}")


@pytest.mark.usefixtures("split_early")
@every_map
def test_threads(op, dtype, backend, thread_count):
    for shape, axis in (((64, 1000), 1), ((1000, 70), 0), ((1, 300_000), 1), ((3, 20_000), 1), ((40_000, 3), 0)):
        x, g = draw(shape, dtype)
        y = MAPS[op][0](x, axis, backend=backend)
        got = MAPS[op][1](g, y, axis, backend=backend)
        with fsm.threads(1):
            assert_same_bits(got, MAPS[op][1](g, y, axis, backend=backend))


@every_map
def test_results_past_the_cache(op, backend):
    """So large that they are written past it, also where rows begin anywhere."""
    whole, g = draw((3, 1_500_001), "float32")
    y = MAPS[op][0](whole, backend=backend)
    got = MAPS[op][1](g, y, backend=backend)
    with fsm.threads(1):
        assert_same_bits(got[1], MAPS[op][1](g[1], y[1], backend=backend))


@every_map
def test_in_place_and_overlapping(op, dtype, backend):
    forward, backward = MAPS[op]
    for shape, axis in (((6, 50), 1), ((6, 50), 0), ((50, 40), 0), ((1, 20_000), 1), ((3, 2, 8), (0, 2))):
        x, g = draw(shape, dtype)
        y = forward(x, axis, backend=backend)
        want = backward(g, y, axis, backend=backend)
        for place in (0, 1):
            given = [g.copy(), y.copy()]
            assert backward(*given, axis, out=given[place], backend=backend) is given[place]
            assert_same_bits(given[place], want)
    x, g = draw((241,), dtype)
    early, late = slice(-1), slice(1, None)
    for step, place, (here, there) in itertools.product((1, -1), (0, 1), ((early, late), (late, early))):
        given = [g[1:].copy(), forward(x[1:], backend=backend)]
        want = backward(*given, backend=backend)
        memory = np.empty(241, dtype)
        memory[here] = given[place]
        given[place], out = memory[here], memory[there][::step]
        backward(*given, out=out, backend=backend)
        assert_same_bits(out.copy(), want)


@every_map
def test_out_over_a_gradient_that_is_broadcast(op, dtype, backend):
    x, g = draw((5, 30), dtype)
    y = MAPS[op][0](x, backend=backend)
    want = MAPS[op][1](g[2], y, backend=backend)
    MAPS[op][1](g[2], y, out=g, backend=backend)
    assert_same_bits(g, want)


def test_logsumexp_in_place_and_overlapping(dtype, backend):
    x, g = draw((6, 50), dtype)
    for axis in (0, 1):
        a = g.take(0, axis=axis)
        want = fsm.logsumexp_vjp(a, x, axis, backend=backend)
        own = x.copy()
        assert fsm.logsumexp_vjp(a, own, axis, out=own, backend=backend) is own
        assert_same_bits(own, want)
        over = g.copy()
        fsm.logsumexp_vjp(over.take(0, axis=axis) if axis else over[0], x, axis, out=over, backend=backend)
        assert_same_bits(over, want)
    row = draw((41,), dtype)[0]
    want = fsm.logsumexp_vjp(2.0, row[:-1], backend=backend)
    fsm.logsumexp_vjp(2.0, row[:-1], out=row[1:], backend=backend)
    assert_same_bits(row[1:], want)


# ---- dtypes ----


@every_map
@pytest.mark.parametrize(
    ("shape", "axis"), [((5, 7), 1), ((4, 300), 1), ((300, 40), 1), ((300, 20), 0), ((2, 9000), 1), ((8193, 2), 0)]
)
def test_half_types_are_rounded_once(op, half, shape, axis, backend):
    x, g = draw(shape, half)
    y = MAPS[op][0](x, axis, backend=backend)
    got = MAPS[op][1](g, y, axis, backend=backend)
    assert got.dtype == half
    wide = MAPS[op][1](g.astype("f4"), y.astype("f4"), axis, backend=backend)
    assert_same_bits(got, wide.astype(half))
    large = (g.astype("f4") * 1e30).astype("f4")  # beyond float16
    tiny = MAPS[op][1](large, y, axis, backend=backend)
    with np.errstate(over="ignore"):
        assert_same_bits(tiny, MAPS[op][1](large, y.astype("f4"), axis, backend=backend).astype(half))


@pytest.mark.parametrize(("shape", "axis"), [((5, 7), 1), ((300, 20), 0), ((2, 9000), 1)])
def test_logsumexp_of_half_types(half, shape, axis, backend):
    x, g = draw(shape, half)
    g = g.take(0, axis=axis)
    got = fsm.logsumexp_vjp(g, x, axis, backend=backend)
    assert_same_bits(got, fsm.logsumexp_vjp(g.astype("f4"), x.astype("f4"), axis, backend=backend).astype(half))
    assert fsm.logsumexp_vjp(g, x, axis, out=x, backend=backend) is x
    assert_same_bits(x, got)


def test_other_dtypes(backend):
    y, g = np.array([[0, 1, 0], [1, 0, 0]]), np.array([[1, 2, 3], [3, 2, 1]], np.int8)
    assert_array_equal(fsm.softmax_vjp(g, y, backend=backend), np.zeros((2, 3)))
    assert fsm.softmax_vjp(g, y, backend=backend).dtype == np.float64
    want = fsm.softmax([[2.0**53 + 2, 2.0**53]], 1, backend=backend)
    assert_same_bits(fsm.logsumexp_vjp(1, np.array([[2**53 + 2, 2**53]]), 1, backend=backend), want)
    for wide in (
        fsm.softmax_vjp(g, y.astype(LD), backend=backend),
        fsm.logsumexp_vjp(1, y.astype(LD), backend=backend),
    ):
        assert wide.dtype == LD
    x, g = draw((3, 5), "float32")
    y = fsm.softmax(x, backend=backend)
    assert_same_bits(fsm.softmax_vjp(g.astype("f8"), y, backend=backend), fsm.softmax_vjp(g, y, backend=backend))
    assert_same_bits(
        fsm.softmax_vjp(g.astype(">f4"), y.astype(">f4"), backend=backend), fsm.softmax_vjp(g, y, backend=backend)
    )


def test_small_and_empty(backend):
    assert_array_equal(fsm.softmax_vjp(3.0, 1.0, backend=backend), 0.0)
    assert fsm.log_softmax_vjp(3.0, 0.0, backend=backend).shape == ()
    for vjp in VJPS[:2]:
        assert vjp(np.empty((0, 3)), np.empty((0, 3)), backend=backend).shape == (0, 3)
        assert vjp(1.0, np.empty((2, 0)), backend=backend).shape == (2, 0)
    assert fsm.logsumexp_vjp(np.empty(0), np.empty((0, 3)), 1, backend=backend).shape == (0, 3)
    out = np.empty((2, 0))
    assert fsm.logsumexp_vjp([1.0, 2.0], np.empty((2, 0)), 1, out=out, backend=backend) is out


def test_every_axis_is_that_of_the_rows(dtype, backend):
    x, g = draw((2, 3, 4, 5), dtype)
    for op, (forward, backward) in MAPS.items():
        for axis in (0, 1, 2, 3, -2, (0, 1), (0, 3), (1, 3), (3, 0), (0, 1, 2, 3), None):
            axes = tuple(range(4)) if axis is None else tuple(a % 4 for a in np.atleast_1d(axis))
            y = forward(x, axis, backend=backend)
            assert ulp_off(backward(g, y, axis, backend=backend), *exact(op, g, y, axes)) <= 4


# ---- errors ----


@pytest.mark.parametrize("vjp", VJPS[:2])
def test_errors(vjp):
    y, out = np.full((3, 4), 0.25), np.full((3, 4), 7.0)
    for wrong in (np.ones(3), np.ones((4, 4)), np.ones((1, 3, 4)), np.ones((3, 4, 1))):
        with pytest.raises(ValueError, match=r"g: shape .* does not broadcast to that of y, \(3, 4\)"):
            vjp(wrong, y, out=out)
    for wrong in (["a"] * 4, np.ones(4, complex), np.ma.ones(4), None):
        with pytest.raises(TypeError, match=r"g: "):
            vjp(wrong, y, out=out)
        with pytest.raises(TypeError, match=r"y: "):
            vjp(1.0, wrong)
    check_the_usual_errors(lambda **given: vjp(1.0, y, **{"out": out, **given}))
    assert (out == 7).all()


def test_errors_of_logsumexp():
    x, out = np.full((3, 4), 0.25), np.full((3, 4), 7.0)
    for axis, wrong in ((0, (3,)), (0, (3, 1)), (1, (4,)), (None, (2,)), (1, (1, 4)), (1, (1, 3, 1)), ((0, 1), (3,))):
        with pytest.raises(ValueError, match=r"g: shape .* does not broadcast to one number a row of x, .* or "):
            fsm.logsumexp_vjp(np.ones(wrong), x, axis, out=out)
    for wrong in (["a"] * 3, np.ones(3, complex), np.ma.ones(3), None):
        with pytest.raises(TypeError, match=r"g: "):
            fsm.logsumexp_vjp(wrong, x, 1, out=out)
        with pytest.raises(TypeError, match=r"x: "):
            fsm.logsumexp_vjp(1.0, wrong)
    check_the_usual_errors(lambda **given: fsm.logsumexp_vjp(1.0, x, **{"out": out, **given}))
    assert (out == 7).all()


def check_the_usual_errors(call):
    for axis in (2, -3):
        with pytest.raises(AxisError):
            call(axis=axis)
    with pytest.raises(TypeError, match="axis"):
        call(axis=1.5)
    with pytest.raises(ValueError, match="axis"):
        call(axis=(0, 0))
    with pytest.raises(ValueError, match="backend"):
        call(backend="no-such")
    frozen = np.ones((3, 4))
    frozen.flags.writeable = False
    for wrong in (
        np.empty((4, 3)),
        np.empty((3, 4), "f4"),
        frozen,
        np.lib.stride_tricks.as_strided(np.ones(4), (3, 4), (0, 8)),
    ):
        with pytest.raises(ValueError, match=r"out: "):
            call(out=wrong)
    with pytest.raises(TypeError, match=r"out: "):
        call(out=[1.0])
