"""Same bits, for every public function at once: the same rows on every backend, with 1 to 8 threads, alone or in any
batch, along any axis, in any layout, into out= or in place. test_same_bits.py goes deeper into single functions."""

import zlib
from functools import cache
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import reference as ref
from conftest import FMA_BACKENDS
from layouts import LAYOUTS, assert_same_bits

import fastsoftmax as fsm

pytestmark = pytest.mark.usefixtures("split_early")

SIZES = [(2400, 7), (500, 33), (56, 300), (4, 9001)]  # rows, n: enough for threads; of the last they share a row
PLACED = ("x", "p", "log_p", "g", "q", "bias", "where", "shared", "temperature", "sink", "of_row")
# The soft cap in Numba is NumPy's tanh, within the same bound as that of C.
OWN_BITS = {("numba", "softmax, softcap shared bias")}
NOT_NUMERIC = {"__version__", "backends", "explain", "get_num_threads", "register_with_threadpoolctl"}
NOT_NUMERIC |= {"set_num_threads", "show_config", "threads"}


class Case(NamedTuple):
    """A call with arrays by name, and which of these its result may replace, by which keyword."""

    call: object
    over: str = ""
    keyword: str = "out"


def losses(a, axis, **given):
    return fsm.cross_entropy(a.x, a.target, axis, reduction="none", return_grad=True, **given)


CASES = {
    "softmax": Case(lambda a, axis, **k: fsm.softmax(a.x, axis, **k), "x"),
    "log_softmax": Case(lambda a, axis, **k: fsm.log_softmax(a.x, axis, **k), "x"),
    "softmin": Case(lambda a, axis, **k: fsm.softmin(a.x, axis, **k), "x"),
    "hardmax": Case(lambda a, axis, **k: fsm.hardmax(a.x, axis, **k), "x"),
    "logcumsumexp": Case(lambda a, axis, **k: fsm.logcumsumexp(a.x, axis, **k), "x"),
    "sigmoid": Case(lambda a, axis, **k: fsm.sigmoid(a.x, **k), "x"),
    "softplus": Case(lambda a, axis, **k: fsm.softplus(a.x, **k), "x"),
    "logsumexp": Case(lambda a, axis, **k: fsm.logsumexp(a.x, axis, **k)),
    "logmeanexp": Case(lambda a, axis, **k: fsm.logmeanexp(a.x, axis, **k)),
    "logsumexp, weights": Case(lambda a, axis, **k: fsm.logsumexp(a.x, axis, b=a.q, **k)),
    "softmax, temperature bias where": Case(
        lambda a, axis, **k: fsm.softmax(a.x, axis, temperature=a.temperature, bias=a.bias, where=a.where, **k), "x"
    ),
    "softmax, softcap shared bias": Case(
        lambda a, axis, **k: fsm.softmax(a.x, axis, softcap=9.0, bias=a.shared, **k), "x"
    ),
    "log_softmax, where sink": Case(
        lambda a, axis, **k: fsm.log_softmax(a.x, axis, where=a.where, sink=a.sink, **k), "x"
    ),
    "softmax, return_lse": Case(lambda a, axis, **k: fsm.softmax(a.x, axis, return_lse=True, temperature=0.7, **k)),
    "logsumexp, bias sink": Case(lambda a, axis, **k: fsm.logsumexp(a.x, axis, bias=a.bias, sink=a.sink, **k)),
    "cross_entropy": Case(losses, "x", "grad_out"),
    "cross_entropy, all options": Case(
        lambda a, axis, **k: losses(
            a, axis, weight=a.weight, label_smoothing=0.1, temperature=a.temperature, z_loss=1e-3, return_lse=True, **k
        )
    ),
    "cross_entropy, probabilities": Case(
        lambda a, axis, **k: fsm.cross_entropy(a.x, a.q, axis, reduction="none", return_grad=True, **k)
    ),
    "token_logprobs": Case(lambda a, axis, **k: fsm.token_logprobs(a.x, a.target, axis, **k)),
    "nll_loss": Case(lambda a, axis, backend: fsm.nll_loss(a.log_p, a.target, axis, weight=a.weight, reduction="none")),
    "kl_div": Case(lambda a, axis, backend: fsm.kl_div(a.log_p, a.q, reduction="none")),
    "softmax_vjp": Case(lambda a, axis, **k: fsm.softmax_vjp(a.g, a.p, axis, **k), "p"),
    "log_softmax_vjp": Case(lambda a, axis, **k: fsm.log_softmax_vjp(a.g, a.log_p, axis, **k), "log_p"),
    "logsumexp_vjp": Case(lambda a, axis, **k: fsm.logsumexp_vjp(a.of_row, a.x, axis, **k), "x"),
}


@cache
def rows_of(rows, n, dtype):
    """Arrays (rows, n), (rows, 1) and (1, n), a class a row, and a weight a class."""
    rng = np.random.default_rng([rows, n])
    x = rng.normal(0, 4, (rows, n)).astype(dtype)
    work = np.float32 if np.dtype(dtype).itemsize == 2 else x.dtype
    arrays = {
        "x": x,
        "p": ref.softmax(x).astype(dtype),
        "log_p": ref.log_softmax(x).astype(dtype),
        "g": rng.normal(0, 1, (rows, n)).astype(dtype),
        "q": rng.random((rows, n)).astype(dtype),
        "bias": rng.normal(0, 2, (rows, n)).astype(dtype),
        "where": rng.random((rows, n)) < 0.8,
        "shared": rng.normal(0, 2, (1, n)).astype(work),
        "temperature": rng.uniform(0.3, 3, (rows, 1)).astype(work),
        "sink": rng.normal(0, 2, (rows, 1)).astype(work),
        "of_row": rng.normal(0, 2, (rows, 1)).astype(dtype),
        "target": rng.integers(0, n, rows),
        "weight": rng.uniform(0.1, 3, n).astype(dtype),
    }
    return SimpleNamespace(**arrays)


def part_of(a, part):
    """Some of the rows."""
    cut = {name: value[part] for name, value in vars(a).items() if name not in ("shared", "weight")}
    return SimpleNamespace(shared=a.shared, weight=a.weight, **cut)


def placed(a, shape, axis, layout):
    """Rows arranged as `shape`, their elements along an axis, in a layout."""
    change = LAYOUTS[layout]

    def place(array):
        length, own = array.shape[-1], shape if len(array) > 1 else (1,) * len(shape)
        moved = np.moveaxis(array.reshape(*own, length), -1, axis)
        return change(moved.copy())  # which may be overwritten

    arrays = {name: place(getattr(a, name)) for name in PLACED}
    return SimpleNamespace(target=a.target.reshape(shape), weight=a.weight, **arrays)


def as_rows(result, dims, axis):
    """Results as they are without all that: (rows, n) or (rows,)."""
    parts = result if isinstance(result, tuple) else (result,)
    parts = [np.moveaxis(part, axis, -1) if np.ndim(part) == dims else np.asarray(part) for part in parts]
    return [np.ascontiguousarray(p).reshape(-1, p.shape[-1]) if p.ndim == dims else p.reshape(-1) for p in parts]


def settled(y):
    """With one NaN for all: where there is one is promised, its sign is not."""
    return np.where(np.isnan(y), np.array(np.nan, y.dtype), y)


class Variation(NamedTuple):
    """Which rows of which size, how they lie, and how they are computed."""

    size: tuple
    part: slice
    shape: tuple
    axis: int
    layout: str
    threads: int
    how: str


def variations(name):
    """One for each layout; with each the next size, thread count, batch, axis, and way to give results."""
    for i, layout in enumerate(LAYOUTS, zlib.crc32(name.encode())):
        rows, n = SIZES[i % 4]
        part = (slice(0, rows), slice(0, rows), slice(1, rows), slice(rows - 2, rows), slice(0, 1))[i % 5]
        count = part.stop - part.start
        shape = (2, count // 2) if count % 2 == 0 and i % 3 else (count,)
        how = ("new", "out", "in place")[i // 4 % 3]
        yield Variation((rows, n), part, shape, i // 2 % (len(shape) + 1), layout, 1 + i % 8, how)


@cache
def wanted(name, size, dtype, backend):
    """The rows as they are, on one thread."""
    with fsm.threads(1), np.errstate(all="ignore"):
        return [settled(y) for y in as_rows(CASES[name].call(rows_of(*size, dtype), -1, backend=backend), 2, -1)]


def computed(case, v, dtype, backend):
    """The rows as the variation has them; in place where the layout can be written."""
    a = placed(part_of(rows_of(*v.size, dtype), v.part), v.shape, v.axis, v.layout)
    if v.how == "new" or not case.over or v.layout in ("bytes", "read-only", "swapped bytes"):
        return case.call(a, v.axis, backend=backend)
    out = getattr(a, case.over)
    if v.how == "out":
        out = LAYOUTS[v.layout](np.empty_like(out))
    result = case.call(a, v.axis, backend=backend, **{case.keyword: out})
    assert (result[-1] if isinstance(result, tuple) else result) is out
    return result


def check(name, dtype, backend):
    shares = backend in FMA_BACKENDS and (backend, name) not in OWN_BITS
    reference = FMA_BACKENDS[0] if shares else backend
    for v in variations(name):
        with fsm.threads(v.threads):
            result = computed(CASES[name], v, dtype, backend)
        got = as_rows(result, len(v.shape) + 1, v.axis)
        for y, want in zip(got, wanted(name, v.size, dtype, reference), strict=True):
            assert_same_bits(settled(y), want[v.part], f"{name} {backend} {v}")


@pytest.mark.parametrize("name", CASES)
def test_matrix(name, dtype, backend):
    check(name, dtype, backend)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_matrix_of_half_types(name, half, backend, bfloat16):
    check(name, bfloat16 if half == "bfloat16" else half, backend)


def test_no_public_function_is_left_out():
    assert {name.partition(",")[0] for name in CASES} | NOT_NUMERIC == set(fsm.__all__)
