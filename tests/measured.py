"""What is measured: each function with what it takes from a row, the exact result, the unit, and the promised bound.

worst_ulp.py takes these over sets of rows, search_ulp.py looks for the worst rows, test_accuracy.py asserts the bounds.
"""

from functools import partial
from typing import NamedTuple

import accuracy_sets as sets
import numpy as np
import reference as ref

import fastsoftmax as fsm


class Measured(NamedTuple):
    """How one function is called, what it should have given, and in whose unit the error is counted."""

    call: object  # (*inputs, backend=)
    exact: object  # (*inputs), in long double
    at_least: object  # the error is in ulp of max(|exact|, this(*inputs)); None: of the result alone
    bounds: dict
    set_names: list
    half_sets: tuple = tuple(sets.HALF_SETS)
    inputs: object = lambda x: (x,)  # from rows to what the function takes


def _bounds(single, double):
    return {"float32": single, "float64": double, "float16": 0.51, "bfloat16": 0.51}


ROWS = list(sets.ROW_SETS)
ELEMENTS = list(sets.ELEMENT_SETS)


# ---- Losses ----

SMOOTHING = 0.1


def _with_target(x):
    """A class a row, which depends on that row alone: of every third the largest."""
    bits = np.ascontiguousarray(x).view(f"u{x.itemsize}").astype(np.uint64)
    key = np.bitwise_xor.reduce(bits * np.uint64(0x9E3779B97F4A7C15), axis=-1) >> np.uint64(40)
    return x, np.where(key % 3 == 0, ref.exactly(x).argmax(-1), (key // 3 % x.shape[-1]).astype(int))


def _weights(x):
    return np.random.default_rng(x.shape[-1]).uniform(0.1, 3, x.shape[-1]).astype(x.dtype)


def _log_prob(x, target):
    return np.take_along_axis(ref.log_softmax(x), target[:, None], -1)[:, 0]


def _smoothed_loss(x, target):
    """(1 - e) w[t] (-log p[t]) + e / n sum of w (-log p)"""
    y, w, e = -ref.log_softmax(x), ref.exactly(_weights(x)), ref.LD(SMOOTHING)
    return (1 - e) * w[target] * np.take_along_axis(y, target[:, None], -1)[:, 0] + e / len(w) * ref.exact_sum(w * y)


def _losses(x, target, backend, **options):
    return fsm.cross_entropy(x, target, reduction="none", backend=backend, **options)


def _smoothed(x, target, backend):
    return _losses(x, target, backend, weight=_weights(x), label_smoothing=SMOOTHING)


# ---- Gradients ----


def _pull(forward):
    """The first half of a row is the gradient of the result, that of the second half."""

    def inputs(x):
        n = x.shape[-1] // 2
        return x[:, :n].copy(), forward(x[:, n : 2 * n]).astype(x.dtype)

    return inputs


def _softmax_vjp(g, y):
    g, y = ref.exactly(g), ref.exactly(y)
    return y * (g - ref.exact_sum(g * y)[:, None])


def _softmax_vjp_unit(g, y):
    g, y = ref.exactly(g), ref.exactly(y)
    return np.maximum(abs(y * g), abs(y * ref.exact_sum(g * y)[:, None]))


def _log_softmax_vjp(g, y):
    g, y = ref.exactly(g), ref.exactly(y)
    return g - np.exp(y) * ref.exact_sum(g)[:, None]


def _log_softmax_vjp_unit(g, y):
    g, y = ref.exactly(g), ref.exactly(y)
    return np.maximum(abs(g), abs(np.exp(y) * ref.exact_sum(g)[:, None]))


def _logsumexp_vjp(g, x):
    return ref.exactly(g)[:, None] * ref.softmax(x)


def _logsumexp_vjp_unit(g, x):
    """The softmax that g multiplies may be subnormal."""
    return abs(ref.exactly(g))[:, None] * float(np.finfo(x.dtype).tiny)


# ---- Modifiers ----

TEMPERATURE = 0.7


def _divided(x):
    with np.errstate(all="ignore"):
        return x / x.dtype.type(TEMPERATURE)


def _last_is_sink(x):
    return x[:, :-1].copy(), x[:, -1:].copy()


def _first_half_is_bias(x):
    n = x.shape[-1] // 2
    return x[:, n : 2 * n].copy(), x[:, :n].copy()


def _with_sink(x, sink):
    return ref.softmax(np.concatenate([x, sink], axis=-1))[:, :-1]


def _biased(x, bias):
    with np.errstate(all="ignore"):
        return ref.softmax(_divided(x) + bias)


def _all_modifiers(x, bias, backend):
    return fsm.softmax(x, temperature=x.dtype.type(TEMPERATURE), bias=bias, backend=backend)


def _softcap(cap):
    """Of rows of one element logsumexp is that element, capped. Where x / cap is subnormal, it has lost digits."""
    return Measured(
        lambda x, backend: fsm.logsumexp(x[:, None], 1, softcap=cap, backend=backend),
        lambda x: ref.LD(cap) * np.tanh(ref.exactly(x) / ref.LD(cap)),
        lambda x: cap * float(np.finfo(x.dtype).tiny),
        _bounds(4, 4),
        ELEMENTS,
        (),
    )


def _softplus(beta):
    call, exact = partial(fsm.softplus, beta=beta), partial(ref.softplus, beta=beta)
    return Measured(call, exact, None, _bounds(3.0, 3.0), ELEMENTS)


def _log_of_length(x):
    return np.log(ref.LD(x.shape[-1]))


FUNCTIONS = {
    "softmax": Measured(fsm.softmax, ref.softmax, None, _bounds(3.0, 3.5), ROWS),
    "softmin": Measured(fsm.softmin, ref.softmin, None, _bounds(3.0, 3.5), ROWS),
    "log_softmax": Measured(fsm.log_softmax, ref.log_softmax, None, _bounds(2.0, 2.5), ROWS),
    "logsumexp": Measured(partial(fsm.logsumexp, axis=-1), ref.logsumexp, ref.excess, _bounds(1.5, 2.0), ROWS),
    # one more subtraction, and the same conditioning: log n is the largest that L can be
    "logmeanexp": Measured(partial(fsm.logmeanexp, axis=-1), ref.logmeanexp, _log_of_length, _bounds(2.0, 2.5), ROWS),
    # like logsumexp, a third more for the running rescaling
    "logcumsumexp": Measured(
        fsm.logcumsumexp,
        ref.logcumsumexp,
        lambda x: ref.cumulative_parts(x)[1],
        _bounds(2.0, 2.66),
        sets.CUMULATIVE_SETS,
    ),
    "sigmoid": Measured(fsm.sigmoid, ref.sigmoid, None, _bounds(3.0, 3.0), ELEMENTS),
    "softplus": _softplus(1.0),
    "softplus(beta=0.5)": _softplus(0.5),
    "softplus(beta=3.25)": _softplus(3.25),
    "softcap=30": _softcap(30.0),
    "softcap=0.5": _softcap(0.5),
    "softmax(sink=)": Measured(
        lambda x, sink, backend: fsm.softmax(x, sink=sink, backend=backend),
        _with_sink,
        None,
        _bounds(3.0, 3.5),
        sets.SHORT_SETS,
        (),
        _last_is_sink,
    ),
    "softmax(temperature=)": Measured(
        _all_modifiers, _biased, None, _bounds(3.0, 3.5), sets.ORDINARY_SETS, (), _first_half_is_bias
    ),
    "cross_entropy": Measured(
        _losses, lambda *given: -_log_prob(*given), None, _bounds(2.5, 3.0), sets.SHORT_SETS, inputs=_with_target
    ),
    "cross_entropy(weight=)": Measured(
        _smoothed, _smoothed_loss, None, _bounds(4, 4), sets.ORDINARY_SETS, (), _with_target
    ),
    "token_logprobs": Measured(
        fsm.token_logprobs, _log_prob, None, _bounds(2.0, 2.5), sets.ORDINARY_SETS, inputs=_with_target
    ),
    "softmax_vjp": Measured(
        fsm.softmax_vjp,
        _softmax_vjp,
        _softmax_vjp_unit,
        _bounds(4, 4),
        sets.ORDINARY_SETS,
        (),
        _pull(ref.softmax),
    ),
    "log_softmax_vjp": Measured(
        fsm.log_softmax_vjp,
        _log_softmax_vjp,
        _log_softmax_vjp_unit,
        _bounds(4, 4),
        sets.ORDINARY_SETS,
        (),
        _pull(ref.log_softmax),
    ),
    "logsumexp_vjp": Measured(
        lambda g, x, backend: fsm.logsumexp_vjp(g, x, -1, backend=backend),
        _logsumexp_vjp,
        _logsumexp_vjp_unit,
        _bounds(5, 5),
        sets.ORDINARY_SETS,
        (),
        lambda x: (x[:, 0].copy(), x[:, 1:].copy()),
    ),
}


#: (float32, float64) for rows that were looked for, where that is more than the bound. Two terms eight apart are added
#: in the type itself, after e^x was rounded by up to 1.01 ulp, and the result may lie in the binade below. These are
#: the worst known, rounded up, and no promise met: the bounds above hold on all other sets.
SEARCHED = {
    "softmax": (3.3, 3.5),
    "softmax(sink=)": (3.3, 3.5),
    "log_softmax": (2.6, 3.2),
    "token_logprobs": (2.6, 3.2),
    "logsumexp": (2.5, 2.9),
    "cross_entropy": (2.6, 3.0),
    "softcap=30": (4.2, 4.2),
}


def bound(function, dtype, set_name):
    kind = np.dtype(dtype).name
    if set_name in sets.SEARCHED and function in SEARCHED:
        return dict(zip(("float32", "float64"), SEARCHED[function], strict=True))[kind]
    return FUNCTIONS[function].bounds[kind]


def set_names(function, dtype):
    measured = FUNCTIONS[function]
    return measured.half_sets if np.dtype(dtype).itemsize == 2 else measured.set_names


def exactly_what(function, x):
    """(inputs, exact result, floor of the unit)"""
    measured = FUNCTIONS[function]
    inputs = measured.inputs(x)
    with np.errstate(all="ignore"):
        return inputs, measured.exact(*inputs), measured.at_least(*inputs) if measured.at_least else 0


def errors(function, problem, backend):
    """(error of each result in ulp, results)"""
    inputs, exact, floor = problem
    got = FUNCTIONS[function].call(*inputs, backend=backend)
    assert got.dtype == inputs[0].dtype
    assert got.shape == exact.shape
    return ref.ulp_error(got, exact, at_least=floor), got
