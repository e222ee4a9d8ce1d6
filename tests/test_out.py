"""`out=`: every way it may lie over the input, and that nothing else is touched."""

import numpy as np
import pytest
from layouts import LAYOUTS, assert_same_bits, packed_field, unaligned
from numpy.exceptions import TooHardError
from numpy.testing import assert_array_equal

import fastsoftmax as fsm

MAPS = [fsm.softmax, fsm.log_softmax, fsm.softmin, fsm.hardmax, fsm.logcumsumexp]
REDUCTIONS = [fsm.logsumexp, fsm.logmeanexp]
ELEMENTWISE = [fsm.sigmoid, fsm.softplus]
SHAPE_KEEPING = MAPS + ELEMENTWISE


def named(functions):
    return pytest.mark.parametrize("f", functions, ids=lambda f: f.__name__)


def call(f, x, axis=-1, **keywords):
    return f(x, **keywords) if f in ELEMENTWISE else f(x, axis=axis, **keywords)


def data(shape, dtype, seed=0):
    return np.random.default_rng(seed).normal(0, 4, shape).astype(dtype)


@named(MAPS + REDUCTIONS + ELEMENTWISE)
def test_returns_out_itself(f, backend, dtype):
    x = data((5, 40), dtype)
    for axis in (0, 1):
        want = call(f, x, axis, backend=backend)
        out = np.full_like(want, np.nan)
        assert call(f, x, axis, out=out, backend=backend) is out
        assert_same_bits(out, want)


@named(REDUCTIONS)
def test_full_reductions_and_keepdims_into_out(f, backend, dtype):
    x = data((5, 40), dtype)
    out = np.empty((), dtype)
    assert f(x, out=out, backend=backend) is out
    assert out == f(x, backend=backend)
    kept = np.empty((5, 1), dtype)
    assert f(x, axis=1, keepdims=True, out=kept, backend=backend) is kept
    assert_array_equal(kept[:, 0], f(x, axis=1, backend=backend))


@named(SHAPE_KEEPING)
@pytest.mark.parametrize("shape", [(0,), (1,), (33,), (300,), (20_000,), (7, 33), (3, 5, 9)])
def test_in_place(f, shape, backend, dtype):
    plain = data(shape, dtype)
    for axis in range(len(shape)):
        want = call(f, plain, axis, backend=backend)
        for layout in ("C", "F", "every second", "reversed", "unaligned by 1", "packed field"):
            x = LAYOUTS[layout](plain.copy())
            assert call(f, x, axis, out=x, backend=backend) is x
            assert_same_bits(x, want, f"{layout}, axis {axis}")


@named(SHAPE_KEEPING)
@pytest.mark.parametrize("shift", [1, 2, 15, 16, 31, 32, 33, 100, 699, -1, -2, -16, -31, -32, -33, -100])
@pytest.mark.parametrize("n", [700, 9000])
def test_shifted_overlap(f, shift, n, backend, dtype):
    buffer = data(n + abs(shift), dtype)
    x, out = buffer[max(-shift, 0) :][:n], buffer[max(shift, 0) :][:n]
    want = call(f, x.copy(), backend=backend)
    call(f, x, out=out, backend=backend)
    assert_same_bits(out, want)


@named(SHAPE_KEEPING)
def test_overlap_that_is_too_hard_to_find(f, backend, dtype, monkeypatch):
    """Whether arrays share memory is NP-complete: a search that is given up counts as yes."""

    def give_up(*_, **__):
        raise TooHardError

    buffer = data(701, dtype)
    want = call(f, buffer[:700].copy(), backend=backend)
    monkeypatch.setattr(np, "shares_memory", give_up)
    assert_same_bits(call(f, buffer[:700], out=buffer[1:], backend=backend), want)


@named(SHAPE_KEEPING)
@pytest.mark.parametrize("shift", [1, -1, 3, -3])
def test_rows_shifted(f, shift, backend, dtype):
    buffer = data((20 + abs(shift), 50), dtype)
    for axis in (0, 1):
        work = buffer.copy()
        x, out = work[max(-shift, 0) :][:20], work[max(shift, 0) :][:20]
        want = call(f, x.copy(), axis, backend=backend)
        call(f, x, axis, out=out, backend=backend)
        assert_same_bits(out, want)


@named(SHAPE_KEEPING)
def test_reversed_and_transposed_overlap(f, backend, dtype):
    for make in (lambda x: x[::-1], lambda x: x[:, ::-1], lambda x: x.T, lambda x: x[::-1, ::-1].T):
        for axis in (0, 1):
            x = data((37, 37), dtype)
            want = call(f, x.copy(), axis, backend=backend)
            out = make(x)
            call(f, x, axis, out=out, backend=backend)
            assert_same_bits(out, want)
    row = data(500, dtype)
    want = call(f, row.copy(), backend=backend)
    assert_same_bits(call(f, row, out=row[::-1], backend=backend), want)


@named(SHAPE_KEEPING)
def test_strided_overlap(f, backend, dtype):
    buffer = data(2000, dtype)
    for x_slice, out_slice in (
        (np.s_[:600], np.s_[:1200:2]),
        (np.s_[:1200:2], np.s_[:600]),
        (np.s_[0:1200:2], np.s_[1:1201:2]),
        (np.s_[0:1200:2], np.s_[2:1202:2]),
    ):
        work = buffer.copy()
        want = call(f, work[x_slice].copy(), backend=backend)
        call(f, work[x_slice], out=work[out_slice], backend=backend)
        assert_same_bits(work[out_slice], want)


@named(SHAPE_KEEPING)
def test_out_over_a_broadcast_input(f, backend, dtype):
    """The input repeats one row of out itself."""
    work = data((6, 40), dtype)
    x = np.broadcast_to(work[2], (6, 40))
    want = call(f, x.copy(), backend=backend)
    assert_same_bits(call(f, x, out=work, backend=backend), want)


@named(REDUCTIONS)
def test_reduction_over_its_own_input(f, backend, dtype):
    for axis, place in ((1, np.s_[:, 0]), (1, np.s_[::-1, -1]), (1, np.s_[:, 17]), (0, np.s_[5]), (0, np.s_[0, ::-1])):
        x = data((30, 30), dtype)
        want = f(x.copy(), axis=axis, backend=backend)
        f(x, axis=axis, out=x[place], backend=backend)
        assert_same_bits(x[place], want)


def test_weights_under_out(backend, dtype):
    x, b = data((30, 30), dtype), abs(data((30, 30), dtype, 1))
    want = fsm.logsumexp(x, axis=1, b=b, backend=backend)
    fsm.logsumexp(x, axis=1, b=b, out=b[:, 3], backend=backend)
    assert_same_bits(b[:, 3], want)


@named(SHAPE_KEEPING)
@pytest.mark.parametrize("step", [2, 3, -1, -2, 7])
def test_bytes_between_strided_results_are_untouched(f, step, backend, dtype):
    for n in (1, 5, 33, 257):
        x = data((4, n), dtype)
        buffer = np.full((4, n * abs(step) + 70), 77, dtype)
        view = buffer[:, 32 : 32 + n * abs(step) : abs(step)]
        view = view[:, ::-1] if step < 0 else view
        call(f, x, out=view, backend=backend)
        assert_same_bits(view, call(f, x, backend=backend))
        view[...] = 77
        assert_array_equal(buffer, 77)


@named(SHAPE_KEEPING)
@pytest.mark.parametrize("n", [1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 63, 65, 127, 128, 129, 8193])
def test_bytes_around_a_result_are_untouched(f, n, backend, dtype):
    buffer = np.full(n + 128, 77, dtype)
    call(f, data(n, dtype), out=buffer[64 : 64 + n], backend=backend)
    assert_array_equal(buffer[:64], 77)
    assert_array_equal(buffer[64 + n :], 77)


@named(SHAPE_KEEPING)
def test_columns_of_out_between_others(f, backend, dtype):
    x, buffer = data((20, 9), dtype), np.full((20, 30), 77, dtype)
    call(f, x, 0, out=buffer[:, 10:19], backend=backend)
    assert_same_bits(buffer[:, 10:19], call(f, x, 0, backend=backend))
    buffer[:, 10:19] = 77
    assert_array_equal(buffer, 77)


@named(MAPS + ELEMENTWISE)
def test_unaligned_out(f, backend, dtype):
    x = data((4, 77), dtype)
    want = call(f, x, backend=backend)
    for out in (unaligned(np.zeros_like(x)), packed_field(np.zeros_like(x))):
        assert call(f, x, out=out, backend=backend) is out
        assert_same_bits(out, want)
    records = np.zeros(x.shape, [("before", "u1"), ("value", dtype), ("after", "u2")])
    records["before"], records["after"] = 0xAB, 0xCDEF
    call(f, x, out=records["value"], backend=backend)
    assert (records["before"] == 0xAB).all()
    assert (records["after"] == 0xCDEF).all()


@named(SHAPE_KEEPING)
def test_out_of_the_dtype_asked_for(f, backend):
    x = np.arange(12, dtype=np.int32).reshape(3, 4)
    out = np.empty((3, 4))
    call(f, x, out=out, backend=backend)
    assert_same_bits(out, call(f, x, backend=backend))
    half = data((3, 40), np.float16)
    assert_same_bits(call(f, half, out=half.copy(), backend=backend), call(f, half, backend=backend))
    work = half.copy()
    assert_same_bits(call(f, work, out=work, backend=backend), call(f, half, backend=backend))


def test_zero_dimensional_out(backend, dtype):
    out = np.empty((), dtype)
    assert fsm.softmax(np.array(3.0, dtype), out=out, backend=backend) is out
    assert out == 1
    assert fsm.sigmoid(np.array(0.0, dtype), out=out, backend=backend) is out
    assert out == 0.5
