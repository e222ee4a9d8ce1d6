"""where=, temperature=, bias=, softcap=, sink=, empty= and return_lse=: the same bits as the steps written by hand."""

import itertools

import numpy as np
import pytest
from conftest import BACKENDS
from layouts import LAYOUTS, assert_same_bits
from numpy.testing import assert_allclose, assert_array_equal

import fastsoftmax as fsm
from fastsoftmax._dispatch import direct

MAPS = {"softmax": fsm.softmax, "log_softmax": fsm.log_softmax}
SHAPES = [
    ((5, 7), -1),
    ((40, 1), -1),
    ((3, 100), -1),
    ((70, 10), 1),
    ((70, 100), 1),
    ((20, 33), 0),
    ((4, 5, 6, 7), 2),
    ((3, 4, 5), (0, 2)),
    ((2, 3, 4, 5), (1, 3)),
    ((1, 8192), -1),
    ((2, 9000), -1),
    ((9000, 3), 0),
]


def work_of(dtype):
    return np.dtype(np.float32) if np.dtype(dtype).itemsize == 2 else np.dtype(dtype)


class Case:
    """An array, what modifies it, and its rows when the steps are written by hand."""

    def __init__(self, shape, axis, dtype, temperature=None, bias=None, where=None, sink=None, seed=0):
        rng = np.random.default_rng([seed, *shape])
        self.axes = tuple(a % len(shape) for a in (axis if isinstance(axis, tuple) else (axis,)))
        self.axis, work = axis, work_of(dtype)
        kept = tuple(1 if i in self.axes else n for i, n in enumerate(shape))
        broadcast = {"row": tuple(n if i in self.axes else 1 for i, n in enumerate(shape)), "all": shape, "rows": kept}
        self.x = rng.normal(0, 5, shape).astype(dtype)
        z = self.x.astype(work)
        self.given = {}
        if temperature:
            t = np.array(0.7) if temperature == "one" else rng.uniform(0.1, 9, kept)
            self.given["temperature"] = t.astype(work)
            z = z / t.astype(work)
        if bias:
            b = rng.normal(0, 3, broadcast[bias]).astype(dtype if bias == "all" else work)
            self.given["bias"] = b
            z = z + b.astype(work)
        if where:
            self.given["where"] = rng.random(broadcast[where]) < 0.6
            z = np.where(self.given["where"], z, work.type(-np.inf))
        self.order = [*(i for i in range(len(shape)) if i not in self.axes), *self.axes]
        self.batch = tuple(n for i, n in enumerate(shape) if i not in self.axes)
        z = z.transpose(self.order).reshape(*self.batch, -1)
        if sink:
            self.given["sink"] = rng.normal(0, 3, kept).astype(work)
            z = np.concatenate([z, self.given["sink"].transpose(self.order).reshape(*self.batch, 1)], axis=-1)
        self.rows = np.ascontiguousarray(z)

    def map_by_hand(self, op, backend):
        want = MAPS[op](self.rows, backend=backend)
        if "where" in self.given:
            want[(self.rows == -np.inf).all(axis=-1)] = 0 if op == "softmax" else -np.inf
        return (want[..., :-1] if "sink" in self.given else want).astype(self.x.dtype)

    def as_rows(self, y):
        return np.ascontiguousarray(y.transpose(self.order)).reshape(*self.batch, -1)


CHOICES = list(itertools.product([None, "one", "rows"], [None, "row", "all"], [None, "row", "all"], [None, "rows"]))


@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
@pytest.mark.parametrize("op", MAPS)
def test_as_by_hand(op, shape, axis, dtype, backend):
    for choice in CHOICES:
        case = Case(shape, axis, dtype, *choice)
        y, lse = MAPS[op](case.x, axis, return_lse=True, backend=backend, **case.given)
        assert_same_bits(case.as_rows(y), case.map_by_hand(op, backend), f"{choice}")
        assert_same_bits(lse, fsm.logsumexp(case.rows, axis=-1, backend=backend), f"logsumexp, {choice}")
        assert_same_bits(fsm.logsumexp(case.x, axis, backend=backend, **case.given), lse, f"logsumexp, {choice}")


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("op", MAPS)
def test_half_types_are_rounded_once(op, half, backend, bfloat16):
    dtype = np.dtype(bfloat16 if half == "bfloat16" else half)
    for (shape, axis), choice in itertools.product(SHAPES[::2], CHOICES[::5]):
        case = Case(shape, axis, dtype, *choice)
        y, lse = MAPS[op](case.x, axis, return_lse=True, backend=backend, **case.given)
        assert_same_bits(case.as_rows(y), case.map_by_hand(op, backend), f"{shape}, {choice}")
        assert_same_bits(lse, fsm.logsumexp(case.rows, axis=-1, backend=backend))  # in float32
        one = fsm.logsumexp(case.x, axis, backend=backend, **case.given)
        assert_same_bits(one, lse.astype(dtype))


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "bytes"])
def test_layouts(layout, dtype, backend):
    case = Case((3, 4, 60), -1, dtype, "rows", "all", "all")
    change = LAYOUTS[layout]
    given = {name: change(value) for name, value in case.given.items()}
    want = case.map_by_hand("softmax", backend)
    assert_same_bits(fsm.softmax(change(case.x), backend=backend, **given), want)
    out = LAYOUTS["every third" if layout == "C" else "C"](np.empty_like(case.x))
    assert fsm.softmax(change(case.x), backend=backend, out=out, **given) is out
    assert_same_bits(np.ascontiguousarray(out), want)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 1, 5), (2, 1, 1, 5), (3, 4, 1), (5,), ()])
@pytest.mark.parametrize("axis", [-1, 1, (1, 3)])
def test_any_broadcasting(shape, axis, backend):
    rng = np.random.default_rng(1)
    x, bias, where = rng.normal(0, 2, (2, 3, 4, 5)), rng.normal(0, 2, shape), np.asarray(rng.random(shape) < 0.8)
    want = fsm.softmax(np.where(where, x + bias, -np.inf), axis, backend=backend)
    assert_same_bits(fsm.softmax(x, axis, bias=bias, where=where, empty="nan", backend=backend), want)


@pytest.mark.parametrize(("short", "axis"), [((1, 4, 5), -1), ((3, 1, 5), (1, 2)), ((1, 1, 1), -1), ((3, 4, 1), 1)])
@pytest.mark.parametrize("dtype", ["float32", "longdouble"])
def test_operands_that_are_broadcast_already(short, axis, dtype, backend):
    """Lengths without strides."""
    rng = np.random.default_rng(2)
    x, bias = rng.normal(0, 2, (3, 4, 5)).astype(dtype), rng.normal(0, 2, short).astype(dtype)
    full = np.broadcast_to(bias, x.shape)
    want = fsm.softmax(x + bias, axis, backend=backend)
    for given in (full, full[0], np.broadcast_to(bias[:1], (1, 4, 5))):
        if given is full or short[0] == 1:
            where = np.broadcast_to(np.True_, given.shape)
            assert_array_equal(fsm.softmax(x, axis, bias=given, where=where, backend=backend), want)


def test_reversed_results(dtype, backend):
    """Rows whose results lie in the other order, with gaps that stay as they are."""
    for n in (1, 3, 7, 10, 24, 40, 300):
        x = np.random.default_rng(n).normal(0, 2, (17, n)).astype(dtype)
        for given in ({}, {"temperature": 0.7}):
            want = fsm.softmax(x, backend=backend, **given)
            for gap in (0, 3):
                whole = np.full((51, n + gap), 7, dtype)
                out = whole[::-3, :n]
                fsm.softmax(x, out=out, backend=backend, **given)
                assert_same_bits(out.copy(), want)
                out[...] = 7
                assert (whole == 7).all()


# ---- direct calls: without backend= ----

needs_c = pytest.mark.skipif(not BACKENDS[0].startswith("c-"), reason="the C part is not expected here")


def is_direct(x, axis, out, given):
    wanted = {"where": None, "temperature": 1.0, "bias": None, "softcap": None} | given
    return direct["softmax"](x, axis, out, *wanted.values(), False) is not None


@needs_c
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64"])
def test_direct_calls(kind, bfloat16):
    rng = np.random.default_rng(0)
    dtype = np.dtype(bfloat16 if kind == "bfloat16" else kind)
    fsm.softmax(np.zeros(3, dtype), backend="c")  # bfloat16 is learnt from its first array
    shapes = [(5,), (1,), (1, 7), (3, 4), (2, 3, 4), (2, 1, 3), (9000,), (40, 300)]
    for shape in shapes:
        x = rng.normal(0, 3, shape).astype(dtype)
        for axis in (*range(len(shape)), -1, None):
            for part in ([*shape[k:]] for k in range(len(shape) + 1)):
                for ones in itertools.product([False, True], repeat=len(part)):
                    own = [1 if one else n for n, one in zip(part, ones, strict=True)]
                    bias = rng.normal(0, 2, own).astype(dtype if len(part) % 2 else work_of(dtype))
                    given = {"bias": bias, "where": rng.random(own) < 0.7, "temperature": 0.7, "softcap": 9.0}
                    for f in (fsm.softmax, fsm.log_softmax, fsm.logsumexp):
                        assert_same_bits(f(x, axis, **given), f(x, axis, backend=BACKENDS[0], **given), f"{own}")
        given = {"bias": np.zeros(shape, dtype), "where": np.ones(shape[-1:], bool), "temperature": 2.0}
        assert is_direct(x, -1, None, given)
        assert is_direct(x, 0, np.empty_like(x), {"softcap": 3.0})


@needs_c
def test_what_is_not_direct():
    x, out = np.ones((3, 4)), np.full((3, 4), 7.0)
    fsm.softmax(x)
    for given in (
        {"bias": np.ones((4, 3)).T[:, ::-1]},  # not contiguous
        {"bias": np.ones(4, "f4")},  # another dtype
        {"bias": np.ones((2, 4))},  # does not broadcast
        {"bias": np.ones((1, 3, 4))},
        {"bias": [0.0] * 4},
        {"bias": out},  # where the result goes
        {"where": np.ones(4)},
        {"where": True},
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 2},
        {"temperature": np.ones((3, 1))},
        {"temperature": None},
        {"softcap": 1},
        {"softcap": 0.0},
    ):
        assert not is_direct(x, -1, out, given), given
    for bad in ([1.0], None.__class__, out[:, :3], out.astype("f4"), x[0]):
        assert not is_direct(x, -1, bad, {"temperature": 2.0})
    assert not is_direct(np.ones((2, 3, 4)), -1, None, {"where": np.ones((2, 1, 4), bool)})  # nor are its batches one
    assert (out == 7).all()
    assert_same_bits(fsm.softmax(x, bias=out, out=out), fsm.softmax(x + 7))


# ---- division ----


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 0.1, 1 / 3, 0.7, 1.0, 1.5, 3.0, 7.1, 1e3, 1e6, 1e30])
def test_division_is_correctly_rounded(temperature, dtype, backend):
    """logsumexp of a row of one is that one."""
    rng = np.random.default_rng(0)
    info = np.finfo(dtype)
    special = [0.0, np.inf, -np.inf, info.max, -info.max, info.tiny, info.smallest_subnormal, 2.0**50, 2.0**-50]
    scales = 2.0 ** rng.integers(-120, 120, 20_000)
    x = np.concatenate([special, rng.normal(0, 9, 100_000), rng.normal(0, 9, 20_000) * scales]).astype(dtype)
    t = np.dtype(dtype).type(temperature)
    with np.errstate(all="ignore"):
        want = x / t
    for shape in ((-1, 1), (1, -1)):
        axis = 1 if shape == (-1, 1) else 0
        got = fsm.logsumexp(x.reshape(shape), axis, temperature=t, backend=backend)
        assert_array_equal(got, want)


def test_division_by_every_divisor_there_is(backend):
    """Divisors whose reciprocals are hardest to round, and numerators all over their binade."""
    rng = np.random.default_rng(3)
    t = (1 + rng.integers(0, 2**23, 3000) * 2.0**-23).astype(np.float32)[:, np.newaxis]
    t[:4, 0] = [1 + 2.0**-23, 2 - 2.0**-23, 2 - 2.0**-22, 1.5]
    x = (1 + rng.integers(0, 2**23, (3000, 64)) * 2.0**-23).astype(np.float32)
    x[:, :3] = [1, 2 - 2.0**-23, 1 + 2.0**-23]
    got = fsm.log_softmax(x, bias=None, temperature=t, backend=backend)
    assert_same_bits(got, fsm.log_softmax(x / t, backend=backend))


def hardest_to_divide(bits, count):
    """Numbers and divisors from 1 to 2 whose quotients are as near as can be to halfway between two numbers."""
    half = 1 << (bits - 1)
    divisors = [2 * half - 1 - 2 * k for k in range(count)] + [
        half + 1 + 2 * k * (half // (2 * count)) for k in range(count)
    ]
    for divisor, beyond in itertools.product(divisors, (1, -1)):
        middle = -beyond * pow(divisor, -1, 4 * half) % (4 * half)
        number = (middle * divisor + beyond) // (4 * half)
        if middle > 2 * half and half <= number < divisor:
            yield number / half, divisor / half


@pytest.mark.parametrize("scale", [0, "subnormal"])
def test_division_that_is_hardest_to_round(scale, dtype, backend):
    """logsumexp of a row of which one element counts is that one."""
    info = np.finfo(dtype)
    x, t = np.array(list(hardest_to_divide(info.nmant + 1, 1000))).T.astype(dtype)
    if scale:
        x, t = np.ldexp(x, info.minexp // 3), np.ldexp(t, info.minexp - 5)
    rows = np.full((x.size, 40), -(2.0**20), dtype)
    rows[np.arange(x.size), np.arange(x.size) % 40] = x
    got = fsm.logsumexp(rows, 1, temperature=t[:, np.newaxis], backend=backend)
    assert_array_equal(got, x / t)


# ---- the soft cap ----


@pytest.mark.parametrize("cap", [0.5, 30.0, 50.0, 1e4])
def test_softcap(cap, dtype, backend):
    """Within a few ulp of tanh in a wider type; never past the cap; odd; NaN and infinities."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, s, 5000) for s in (1e-6, 0.1, 1, 30, 1000)]).astype(dtype)[:, np.newaxis]
    got = fsm.logsumexp(x, 1, softcap=cap, backend=backend)
    exact = np.longdouble(cap) * np.tanh(x[:, 0].astype(np.longdouble) / np.longdouble(cap))
    assert (np.abs(got - exact) / np.spacing(np.abs(exact.astype(dtype)))).max() <= 4
    assert (np.abs(got) <= cap).all()
    assert_array_equal(fsm.logsumexp(-x, 1, softcap=cap, backend=backend), -got)
    special = np.array([[np.inf], [-np.inf], [np.nan], [0.0]], dtype)
    assert_array_equal(fsm.logsumexp(special, 1, softcap=cap, backend=backend), [cap, -cap, np.nan, 0])


@pytest.mark.parametrize("op", MAPS)
def test_softcap_of_whole_rows(op, dtype, backend):
    """The same as of each element alone, in the parts of long rows too."""
    for shape, axis in (((5, 7), 1), ((3, 100), 1), ((2, 20_000), 1), ((9000, 3), 0)):
        x = np.random.default_rng(0).normal(0, 9, shape).astype(dtype)
        capped = fsm.logsumexp(x[..., np.newaxis], -1, softcap=7, backend=backend)
        want = MAPS[op](capped, axis, backend=backend)
        assert_same_bits(MAPS[op](x, axis, softcap=7, backend=backend), want, f"{shape}")
        got = fsm.logsumexp(x, axis, softcap=7, backend=backend)
        assert_same_bits(got, fsm.logsumexp(capped, axis, backend=backend), f"{shape}")


def test_order_of_the_steps(dtype, backend):
    """Divided, capped, biased, masked; the sink comes as it is."""
    x, bias = np.array([[10.0, -20.0, 30.0, 4.0]], dtype), np.array([1.0, 2.0, 3.0, np.nan], dtype)
    where = np.array([True, True, True, False])
    got = fsm.softmax(x, temperature=2, softcap=5, bias=bias, where=where, sink=1.5, backend=backend)
    z = 5 * np.tanh(x[:, :3].astype(np.float64) / 2 / 5) + bias[:3]
    terms = np.exp(np.append(z, [[1.5]], axis=1))
    assert_allclose(
        got, np.append(terms[:, :3], [[0]], axis=1) / terms.sum(), rtol=1e-5 if dtype == "float32" else 1e-13
    )


# ---- rows of nothing, and what must not be seen ----


@pytest.mark.parametrize("n", [1, 5, 17, 300, 9000])
def test_rows_that_are_masked_out(n, dtype, backend):
    x = np.random.default_rng(0).normal(0, 3, (4, n)).astype(dtype)
    where = np.ones((4, n), bool)
    where[1] = where[3] = False
    for op, nothing, uniform in (("softmax", 0, 1 / n), ("log_softmax", -np.inf, -np.log(n))):
        for empty, value in ((None, nothing), ("zero", nothing), ("nan", np.nan), ("uniform", uniform)):
            y, lse = MAPS[op](x, where=where, empty=empty, return_lse=True, backend=backend)
            assert_same_bits(y[::2], MAPS[op](x[::2], backend=backend))
            assert_array_equal(y[1::2], np.full((2, n), value, dtype))
            assert_array_equal(lse[1::2], -np.inf)
            assert_same_bits(MAPS[op](x, where=where, empty=empty, backend=backend), y)
    assert_array_equal(fsm.logsumexp(x, 1, where=where, backend=backend)[1::2], -np.inf)


def test_empty_without_a_mask(dtype, backend):
    """Only if asked for: -inf throughout is 0 / 0 where nobody said that there is nothing."""
    x = np.full((2, 6), -np.inf, dtype)
    x[1, 2] = 1
    assert np.isnan(fsm.softmax(x, temperature=2, backend=backend)[0]).all()
    assert_array_equal(fsm.softmax(x, empty="zero", backend=backend), [[0] * 6, [0, 0, 1, 0, 0, 0]])
    assert_array_equal(fsm.softmax(x, empty="uniform", backend=backend)[0], np.full(6, 1 / 6, dtype))
    assert_array_equal(fsm.softmax(x, bias=np.full(6, -np.inf), empty="zero", backend=backend), np.zeros((2, 6)))


@pytest.mark.parametrize("n", [6, 70, 9000])
def test_a_nan_is_no_empty_row(n, dtype, backend):
    x = np.full((3, n), -np.inf, dtype)
    x[0, 3], x[1, 3] = np.nan, np.inf
    where = np.ones(n, bool)
    where[0] = False
    for op in MAPS.values():
        assert np.isnan(op(x, where=where, backend=backend)[:2]).all()


def masks_with_ends(rows, n):
    """Causal, in blocks, padded on either side, one element, none, all."""
    i, k = np.arange(rows)[:, np.newaxis], np.arange(n)
    yield k <= i * n // rows
    yield k >= i * n // rows
    yield (k >= n // 3) & (k < n - i)
    yield np.broadcast_to(k < n - 17, (rows, n)).copy()
    yield k == i * 37 % n
    yield (k < 0) | (i % 5 == 3)


@pytest.mark.parametrize("n", [63, 64, 100, 257, 1024, 8192])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_masked_ends(n, dtype, backend):
    """They are cut off where that saves work, which nothing may show."""
    rng, rows = np.random.default_rng(n), 40 if n < 1000 else 5
    x = rng.normal(0, 3, (rows, n)).astype(dtype)
    x[1, n // 2], x[2, n // 2 + 1], x[rows - 1] = np.nan, np.inf, -np.inf
    for where in masks_with_ends(rows, n):
        z = np.where(where, x, np.asarray(-np.inf, dtype))
        for op, f in MAPS.items():
            want = f(z, backend=backend)
            want[(z == -np.inf).all(axis=1)] = 0 if op == "softmax" else -np.inf
            y, lse = f(x, where=where, return_lse=True, backend=backend)
            assert_same_bits(y, want)
            assert_same_bits(lse.astype(dtype), fsm.logsumexp(z, 1, backend=backend))
            turned = f(np.asfortranarray(x), where=where, backend=backend)
            assert_same_bits(np.ascontiguousarray(turned), want)
            inside = x.copy()
            f(inside, where=where, out=inside, backend=backend)
            assert_same_bits(inside, want)


@pytest.mark.parametrize("hidden", [np.nan, np.inf, -np.inf])
def test_what_is_masked_is_not_seen(hidden, dtype, backend):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 3, (5, 40)).astype(dtype)
    where = rng.random((5, 40)) < 0.5
    seen = np.where(where, x, hidden).astype(dtype)
    for op in MAPS.values():
        y, lse = op(seen, where=where, return_lse=True, backend=backend)
        want, want_lse = op(x, where=where, return_lse=True, backend=backend)
        assert_same_bits(y, want)
        assert_same_bits(lse, want_lse)
    assert (fsm.softmax(seen, where=where, backend=backend)[~where] == 0).all()


def test_bytes_that_are_true(dtype, backend):
    """A bool may be any byte but 0, if it comes from elsewhere."""
    for n in (5, 100, 9000):
        given = np.resize(np.array([2, 0, 255, 1, 128], np.uint8), n)
        p = fsm.softmax(np.zeros(n, dtype), where=given.view(bool), backend=backend)
        assert_array_equal(p > 0, given > 0)


def test_no_floating_point_error(dtype, backend):
    """Not where results overflow or underflow, however strict the caller is."""
    big, x = np.finfo(dtype).max, np.zeros((3, 40), dtype)
    x[0, 0], x[0, 1], x[1, 0], x[2, ::2] = big, -big, np.inf, -np.inf
    where = np.arange(40) != 5
    with np.errstate(all="raise"):
        for given in ({"temperature": 0.01}, {"bias": x}, {"softcap": 3.0}, {"sink": -big}, {"where": where}):
            for f in MAPS.values():
                f(x, return_lse=True, backend=backend, **given)
            fsm.logsumexp(x, 1, backend=backend, **given)
        assert fsm.log_softmax(x[:1, :2], where=where[:2], backend=backend)[0, 1] == -np.inf


def test_sink_is_part_of_the_sum_alone(dtype, backend):
    """Miller's e^x / (1 + sum e^x) is a sink of 0; an infinite sink takes all or nothing."""
    x = np.random.default_rng(0).normal(0, 2, (6, 30)).astype(dtype)
    e = np.exp(x.astype(np.longdouble))
    want = e / (1 + e.sum(axis=1, keepdims=True))
    assert_allclose(fsm.softmax(x, sink=0, backend=backend), want.astype(dtype), rtol=8 * np.finfo(dtype).eps)
    assert_same_bits(fsm.softmax(x, sink=-np.inf, backend=backend), fsm.softmax(x, backend=backend))
    assert np.isnan(fsm.softmax(x, sink=np.nan, backend=backend)).all()
    nothing, lse = fsm.softmax(x, where=np.zeros(30, bool), sink=2, empty="uniform", return_lse=True, backend=backend)
    assert_array_equal(nothing, np.zeros_like(x))  # the sink has it all
    assert_array_equal(lse, np.full(6, 2, dtype))


# ---- shapes, dtypes, out ----


def test_return_lse(backend):
    for dtype, of_lse in (("float16", "float32"), ("float32", "float32"), ("float64", "float64"), ("int8", "float64")):
        x = np.arange(24).reshape(2, 3, 4).astype(dtype)
        for axis, shape in ((-1, (2, 3)), (0, (3, 4)), ((0, 2), (3,)), (None, ())):
            y, lse = fsm.softmax(x, axis, return_lse=True, backend=backend)
            assert_same_bits(y, fsm.softmax(x, axis, backend=backend))
            assert lse.dtype == of_lse
            assert lse.shape == shape
            assert_array_equal(lse, fsm.logsumexp(x.astype(of_lse), axis, backend=backend))
            assert isinstance(lse, np.generic) == (shape == ())


def test_small_and_empty(backend):
    y, lse = fsm.softmax(3.0, return_lse=True, temperature=2, backend=backend)
    assert (y, lse, y.shape) == (1, 1.5, ())
    assert fsm.softmax(np.empty((0, 3)), where=np.empty((0, 3), bool), backend=backend).shape == (0, 3)
    y, lse = fsm.softmax(np.empty((2, 0)), return_lse=True, backend=backend)
    assert y.shape == (2, 0)
    assert_array_equal(lse, [-np.inf, -np.inf])
    assert_array_equal(fsm.logsumexp(np.empty((2, 0)), 1, sink=[[3.0], [4.0]], backend=backend), [3, 4])
    assert fsm.logsumexp(np.arange(6.0).reshape(2, 3), 1, keepdims=True, temperature=2, backend=backend).shape == (2, 1)


def test_integers_and_longdouble(backend):
    x = np.array([[1, 2, 3], [3, 2, 1]], np.uint8)
    want = fsm.softmax(x / 2.0, backend=backend)
    assert_same_bits(fsm.softmax(x, temperature=2, backend=backend), want)
    wide = fsm.softmax(x.astype(np.longdouble), temperature=2, backend=backend)
    assert wide.dtype == np.longdouble
    assert_allclose(wide.astype(float), want, rtol=1e-14)
    assert fsm.softmax(x, temperature=2, dtype="float32", backend=backend).dtype == np.float32


def test_a_bias_keeps_its_digits_beside_half_types(backend, bfloat16):
    """It is added in float32, not rounded to the type of x first."""
    for half in (np.float16, bfloat16):
        x = np.zeros((1, 2), half)
        bias = np.array([1000.0, 1000.3], np.float32)
        want = fsm.softmax(bias, backend=backend).astype(half)
        assert_array_equal(fsm.softmax(x, bias=bias, backend=backend)[0], want)


@pytest.mark.parametrize("op", MAPS)
def test_in_place_and_over_the_operands(op, dtype, backend):
    for shape, axis in (((6, 50), 1), ((6, 50), 0), ((1, 20_000), 1), ((3, 2, 8), (0, 2))):
        case = Case(shape, axis, dtype, "one", "all", "all")
        want = MAPS[op](case.x, axis, backend=backend, **case.given)
        x = case.x.copy()
        assert MAPS[op](x, axis, out=x, backend=backend, **case.given) is x
        assert_same_bits(x, want)
        bias = case.given["bias"].copy()
        MAPS[op](case.x, axis, out=bias, backend=backend, **case.given | {"bias": bias})
        assert_same_bits(bias, want)
    x = np.random.default_rng(0).normal(0, 1, 41).astype(dtype)
    want = MAPS[op](x[:-1], temperature=2, backend=backend)
    MAPS[op](x[:-1], temperature=2, out=x[1:], backend=backend)
    assert_same_bits(x[1:], want)
    memory = np.random.default_rng(1).normal(0, 1, 41).astype(dtype)
    want = MAPS[op](x[1:], bias=memory[:-1], backend=backend)
    MAPS[op](x[1:], bias=memory[:-1], out=memory[1:], backend=backend)
    assert_same_bits(memory[1:], want)


def test_reductions_into_out(dtype, backend):
    case = Case((6, 50), 1, dtype, "rows", "row", "all", "rows")
    want = fsm.logsumexp(case.x, 1, backend=backend, **case.given)
    out = np.empty(6, dtype)
    assert fsm.logsumexp(case.x, 1, out=out, backend=backend, **case.given) is out
    assert_same_bits(out, want)
    sink = case.given["sink"]
    fsm.logsumexp(case.x, 1, out=sink[:, 0], backend=backend, **case.given)
    assert_same_bits(sink[:, 0].copy(), want)


def test_threads_change_no_bit(dtype, fma_backend, thread_count, split_early):
    for shape, axis in (((300, 200), -1), ((200, 300), 0), ((3, 40_000), -1), ((1, 70_001), -1)):
        for sink in (None, "rows"):
            case = Case(shape, axis, dtype, "one", "row", "all", sink)
            y, lse = fsm.softmax(case.x, axis, return_lse=True, backend=fma_backend, **case.given)
            assert_same_bits(case.as_rows(y), case.map_by_hand("softmax", fma_backend))
            assert_same_bits(lse, fsm.logsumexp(case.rows, -1, backend=fma_backend))


# ---- sums with weights, signs, and of complex numbers ----


def test_weighted_and_complex_sums():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 2, (3, 8)), rng.normal(0, 2, 8)
    where, bias = rng.random((3, 8)) < 0.7, rng.normal(0, 1, 8)
    z = np.where(where, a / 0.5 + bias, -np.inf)
    given = {"where": where, "temperature": 0.5, "bias": bias}
    assert_array_equal(fsm.logsumexp(a, 1, b, **given), fsm.logsumexp(z, 1, b))
    for got, want in zip(
        fsm.logsumexp(a, 1, b, return_sign=True, **given), fsm.logsumexp(z, 1, b, return_sign=True), strict=True
    ):
        assert_array_equal(got, want)
    got, sign = fsm.logsumexp(a, 1, return_sign=True, **given)
    assert_array_equal(got, fsm.logsumexp(z, 1))
    assert_array_equal(sign, np.ones(3))
    c = a + 1j
    assert_allclose(fsm.logsumexp(c, 1, **given), np.log(np.where(where, np.exp(c / 0.5 + bias), 0).sum(axis=1)))
    for name in ("softcap", "sink"):
        with pytest.raises(ValueError, match=f"{name}: not with b or complex a"):
            fsm.logsumexp(a, 1, b, **{name: 1.0})


def test_weighted_sums_of_all_types_and_shapes(bfloat16):
    assert fsm.logsumexp(3.0, b=2.0, where=True, temperature=2.0) == fsm.logsumexp(1.5, b=2.0)
    for dtype in (np.float16, bfloat16, np.float32):
        a, b, out = np.ones(4, dtype), np.full(4, 2, dtype), np.empty((), dtype)
        assert fsm.logsumexp(a, b=b, temperature=2, out=out) is out
        assert_array_equal(out, fsm.logsumexp(a / dtype(2), b=b))
    with pytest.raises(ValueError, match=r"temperature: shape \(3,\) does not broadcast to one number a row"):
        fsm.logsumexp(np.zeros((2, 3)), 1, b=np.ones(3), temperature=np.ones(3))
    for bias in ("a", np.ones(3, complex), [None]):
        with pytest.raises(TypeError, match="bias: dtype"):
            fsm.logsumexp(np.zeros(3), b=np.ones(3), bias=bias)
    assert fsm.logsumexp(np.full(3, 1e308), b=np.ones(3), temperature=0.1) == np.inf  # and no warning


def test_big_integers_keep_their_differences(backend):
    x = np.array([2**60, 2**60 + 1, 2**60 + 3])
    want = fsm.softmax(x, backend=backend)
    y, lse = fsm.softmax(x, where=np.ones(3, bool), return_lse=True, backend=backend)
    assert_same_bits(y, want)
    assert lse == fsm.logsumexp(x, backend=backend)
    assert fsm.logsumexp(x, where=np.ones(3, bool), backend=backend) == lse


# ---- what is refused ----

X = np.zeros((3, 4))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"temperature": 0}, ValueError, "temperature: finite numbers above 0 .* not 0"),
        ({"temperature": -1.5}, ValueError, "temperature: .* not -1.5"),
        ({"temperature": np.nan}, ValueError, "temperature: .* not nan"),
        ({"temperature": np.inf}, ValueError, "temperature: .* not inf"),
        ({"temperature": [[1], [0], [2]]}, ValueError, r"temperature: .* not 0 at \(1, 0\)"),
        ({"temperature": np.ones(4)}, ValueError, r"temperature: shape \(4,\) does not broadcast to one number a row"),
        ({"temperature": "warm"}, TypeError, "temperature: dtype"),
        ({"temperature": True}, TypeError, "temperature: real numbers expected, not bool"),
        ({"temperature": 1j}, TypeError, "temperature: dtype complex128 is not supported"),
        ({"temperature": None}, TypeError, "temperature: dtype object is not supported"),
        ({"where": np.ones(4)}, TypeError, "where: an array of bool expected .* not of float64"),
        ({"where": np.ones(4, np.uint8)}, TypeError, "where: an array of bool expected .* not of uint8"),
        (
            {"where": np.ones((2, 4), bool)},
            ValueError,
            r"where: shape \(2, 4\) does not broadcast to that of x, \(3, 4\)",
        ),
        ({"where": np.ones((2, 3, 4), bool)}, ValueError, r"where: shape \(2, 3, 4\) does not broadcast"),
        ({"bias": np.ones(5)}, ValueError, r"bias: shape \(5,\) does not broadcast to that of x, \(3, 4\)"),
        ({"bias": ["a"]}, TypeError, "bias: dtype"),
        ({"bias": np.ones(4, complex)}, TypeError, "bias: dtype complex128 is not supported"),
        ({"bias": np.ma.ones(4)}, TypeError, "bias: masked arrays are not supported"),
        ({"bias": np.ones(4, bool)}, TypeError, "bias: real numbers expected, not bool"),
        ({"empty": np.array(["zero"] * 2)}, ValueError, "empty: one of nan, zero, uniform expected"),
        ({"softcap": 10**400}, ValueError, "softcap: a finite number above 0"),
        ({"softcap": 0}, ValueError, "softcap: a finite number above 0 .* not 0"),
        ({"softcap": -1.0}, ValueError, "softcap: .* not -1.0"),
        ({"softcap": np.nan}, ValueError, "softcap: .* not nan"),
        ({"softcap": "a"}, TypeError, "softcap: a real number or None expected, not 'a'"),
        ({"softcap": True}, TypeError, "softcap: a real number or None expected, not True"),
        ({"sink": np.ones(4)}, ValueError, r"sink: shape \(4,\) does not broadcast to one number a row, \(3, 1\)"),
        ({"sink": "a"}, TypeError, "sink: dtype"),
        ({"empty": "one"}, ValueError, "empty: one of nan, zero, uniform expected, not 'one'"),
    ],
    ids=str,
)
def test_errors(given, error, message, backend):
    out = np.full((3, 4), 7.0)
    with pytest.raises(error, match=message):
        fsm.softmax(X, out=out, backend=backend, **given)
    assert (out == 7).all()
    if "empty" not in given:
        with pytest.raises(error, match=message):
            fsm.logsumexp(X, 1, backend=backend, **given)


def test_numbers_too_small_for_the_type(backend):
    with pytest.raises(ValueError, match=r"temperature: finite numbers above 0 \(in float32\) expected, not 1e-60"):
        fsm.softmax(X.astype("f4"), temperature=1e-60, backend=backend)
    with pytest.raises(ValueError, match=r"softcap: a finite number above 0 \(in float32\) expected, not 1e-60"):
        fsm.softmax(X.astype("f4"), softcap=1e-60, backend=backend)


def test_return_lse_beside_out_is_the_pair(backend):
    out = np.empty((3, 4))
    pair = fsm.softmax(X, out=out, return_lse=True, backend=backend)
    assert pair[0] is out
    with pytest.raises(ValueError, match="out: cannot take two results"):
        fsm.logsumexp(X, 1, out=np.empty(3), return_sign=True, where=np.ones(4, bool))


# ---- memory ----


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((3000, 1000), "float32"), ((3, 1_000_000), "float64"), ((300_000, 10), "float32"), ((3000, 1000), "float16")],
    ids=str,
)
def test_nothing_of_the_size_of_x_is_allocated(shape, dtype, backend, run_ok):
    """The most that is in use at once beside the arrays, as the system sees it."""
    code = f"""
import numpy as np, fastsoftmax as fsm
def peak():
    return 1024 * int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
fsm.set_num_threads(1)
x = np.random.default_rng(0).normal(0, 1, {shape}).astype("f4").astype({dtype!r})
given = dict(temperature=0.5, bias=np.zeros(x.shape[1], x.dtype), where=np.ones(x.shape[1], bool))
small = x[:2, :9000].copy()
fsm.softmax(small, out=small, backend={backend!r}, **given | {{"bias": 0.0, "where": True}})
fsm.logsumexp(small, 1, backend={backend!r}, **given | {{"bias": 0.0, "where": True}})
open("/proc/self/clear_refs", "w").write("5")  # the peak is what is in use now
before = peak()
fsm.softmax(x, out=x, backend={backend!r}, **given)
fsm.logsumexp(x, 1, backend={backend!r}, **given)
print(peak() - before)
"""
    extra = int(run_ok(code))
    rows, n = shape
    tile = max(1 << 17, n) * 16  # that Numba and NumPy work on, in float64
    if dtype == "float16":
        tile += rows * n * 4 if not backend.startswith("c-") else 4 << 19
    most = 3 << 20 if backend.startswith("c-") else (4 << 20) + 4 * tile
    assert extra < most, f"{extra >> 20} MiB"


def test_long_rows_whose_front_is_masked_have_the_same_bits_in_any_layout(backend, dtype):
    random = np.random.default_rng(0)
    for _ in range(5):
        x = (random.normal(size=(4, 9000)) * 30).astype(dtype)
        apart = np.repeat(x, 2, axis=1)[:, ::2]
        where = np.zeros(x.shape, bool)
        where[:, -random.integers(100, 8000) :] = True
        for function in (fsm.softmax, fsm.log_softmax):
            a, b = (function(z, where=where, backend=backend) for z in (x, apart))
            np.testing.assert_array_equal(a, b)
