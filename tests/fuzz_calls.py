"""Calls of every public function for fuzz_api.py, most of whose arguments fit each other."""

import contextlib
import math
from dataclasses import dataclass, field

import fuzz_arrays as fa
import numpy as np
from fuzz_arrays import broadcasting, numbers, often, operand, pick

import fastsoftmax as fsm

MAPS = ("softmax", "log_softmax", "softmin", "hardmax", "logcumsumexp")
REDUCTIONS = ("logsumexp", "logmeanexp")
ELEMENTWISE = ("sigmoid", "softplus")
LOSSES = ("cross_entropy", "token_logprobs", "nll_loss", "kl_div")
GRADIENTS = ("softmax_vjp", "log_softmax_vjp", "logsumexp_vjp")
REST = ("explain", "set_num_threads", "threads", "show_config")
NAMES = (*MAPS * 2, *("softmax", "log_softmax", "logsumexp", "cross_entropy") * 3, *REDUCTIONS * 2, *ELEMENTWISE * 2)
NAMES += (*LOSSES * 2, *GRADIENTS * 2, *REST)
WITHOUT_BACKEND = ("nll_loss", "kl_div", "set_num_threads", "threads", "show_config")


# ---- arguments that are no arrays ----


def axis_of(rng, ndim):
    good = [-1, 0, None, int(rng.integers(-ndim, ndim)) if ndim else -1, np.int64(-1), tuple(range(ndim)), ()]
    if ndim > 1:
        good += [tuple(int(i) for i in rng.permutation(ndim)[: int(rng.integers(1, ndim))])]
    bad = [7, -9, 2**70, -(2**63), 1.0, "0", b"0", [0], (0, 0), (0, -ndim), (None,), (0.0,), ((0,),), True, np.True_]
    bad += [fa.Number(), object(), np.array(0), np.array([0]), np.float32(0), {0}, Ellipsis, np.uint8(200)]
    return pick(rng, bad if often(rng, 0.08) else good)


def dtype_of(rng):
    good = ["f4", "f8", "f2", np.float32, np.dtype(">f8"), "float32", float, "g", fa.BFLOAT16, np.half, "=f4", "d"]
    bad = [
        "i4",
        ",",
        "nonsense",
        object,
        "f4,f4",
        "O",
        "M8[s]",
        5,
        [],
        {},
        "",
        (np.float32, 3),
        [("a", "f4")],
        "F",
        "V8",
    ]
    bad += [
        np.number,
        type,
        "f4,",
        {"names": ["a"]},
        fa.Number(),
        "S5",
        "\0",
        "(2,2)f4",
        "f99",
        bool,
        int,
        "m8",
        ",,",
        "(",
    ]
    return pick(rng, bad if often(rng, 0.15) else good)


def softcap_of(rng):
    bad = [0, -1.0, math.nan, math.inf, "5", True, [1.0], 1e-400, 10**400, 1j, np.array(1.0), fa.Number(), 1e-50]
    return pick(rng, bad if often(rng, 0.15) else [1.0, 30, np.float32(5), 0.5, np.int8(3)])


def number_of(rng):
    bad = [math.nan, math.inf, -0.5, 1.5, "0", None, True, [0.1], 10**400, 1j, fa.Number(), np.array([0.1]), np.False_]
    return pick(rng, bad if often(rng, 0.2) else [0, 0.0, 1, 0.1, np.float32(0.25), 1.0])


def index_of(rng):
    bad = [1.0, "1", None, True, [1], fa.Number(), object(), math.nan, np.array([1])]
    return pick(rng, bad if often(rng, 0.1) else [-100, 0, 1, -1, 2**63 - 1, -(2**63), 2**70, np.uint64(2**63), 7])


def reduction_of(rng):
    return pick(rng, [None, "avg", [], {}, b"mean", 0, "MEAN"] if often(rng, 0.1) else ["mean", "sum", "none"])


def flag(rng):
    return pick(rng, [True, True, True, False, 1, 0, "yes", None, []])


BAD_BACKENDS = ("cuda", "", 5, b"numpy", None.__class__, "c-", "numpy ", [], "\0", 1.5, {}, "c-c", ("numpy",))


# ---- calls ----


@dataclass
class Call:
    """A function by name; its arrays by position and by keyword, of which plain copies are made; and other keywords."""

    name: str
    given: list
    arrays: dict = field(default_factory=dict)
    others: dict = field(default_factory=dict)
    out: object = None
    wrong_out: bool = False

    def __str__(self):
        keywords = {**self.arrays, **self.others} | ({} if self.out is None else {self.out_name: self.out})
        parts = [shown(a) for a in self.given] + [f"{name}={shown(a)}" for name, a in keywords.items()]
        return f"{self.name}({', '.join(parts)})"

    @property
    def out_name(self):
        return "grad_out" if self.name == "cross_entropy" else "out"

    def run(self, given, arrays, backend, out=None):
        keywords = {**arrays, **self.others}
        if backend is not None and self.name not in WITHOUT_BACKEND:
            keywords.setdefault("backend", backend)
        if out is not None:
            keywords[self.out_name] = out
        result = getattr(fsm, self.name)(*given, **keywords)
        with result if self.name == "threads" else contextlib.nullcontext():
            return result


def shown(value):
    if isinstance(value, np.ndarray):
        order = "" if value.flags.c_contiguous else f" strides {value.strides}"
        text = f"<{type(value).__name__} {value.dtype}{value.shape}{order}"
        return text + (f" {value.tolist()}>" if 0 < value.size <= 12 else ">")
    with contextlib.suppress(Exception):
        return repr(value)[:100]
    return f"<{type(value).__name__}>"


def modifiers_of(rng, shape, axis):
    """Arrays and numbers by keyword, most of which fit."""
    row = [1] * len(shape)
    if type(axis) is int and -len(shape) <= axis < len(shape):
        row = [1 if i == axis % len(shape) else n for i, n in enumerate(shape)]
    arrays, others = {}, {}
    if often(rng, 0.4):
        bad = [0.0, -1.0, math.nan, math.inf, "1", None, True, 1j, 10**400, [], 1e-60]
        values = np.exp(np.clip(numbers(rng, broadcasting(rng, row), "f8"), -3, 3))
        good = [0.5, 2, 1.0, np.float16(3), values, fa.laid_out(rng, values.astype("f4"))]
        arrays["temperature"] = pick(rng, bad if often(rng, 0.1) else good)
    if often(rng, 0.35):
        arrays["bias"] = operand(rng, broadcasting(rng, shape), None if often(rng, 0.5) else "f4", 0.05)
    if often(rng, 0.35):
        arrays["where"] = operand(rng, broadcasting(rng, shape), "?", 0.05)
    if often(rng, 0.2):
        arrays["sink"] = pick(rng, [0.0, operand(rng, broadcasting(rng, row), "f8", 0.05), -math.inf])
    if often(rng, 0.15):
        others["softcap"] = softcap_of(rng)
    return arrays, others


def common(rng, call, *, dtype=0.2):
    if often(rng, dtype):
        call.others["dtype"] = dtype_of(rng)
    if often(rng, 0.01):
        call.others["backend"] = pick(rng, BAD_BACKENDS)
    return call


def make_rows(rng, name):
    shape = fa.shape_of(rng)
    call = Call(name, [operand(rng, shape)])
    axis = axis_of(rng, len(shape))
    if name not in ELEMENTWISE and often(rng, 0.7):
        call.others["axis"] = axis
    if name in ("softmax", "log_softmax", "logsumexp") and often(rng, 0.5):
        call.arrays, others = modifiers_of(rng, shape, call.others.get("axis", -1))
        call.others |= others
    if name in ("softmax", "log_softmax") and often(rng, 0.2):
        call.others["empty"] = pick(rng, ["nan", "zero", "uniform", "one", 0, [], None, b"nan"])
    if name in ("softmax", "log_softmax") and often(rng, 0.15):
        call.others["return_lse"] = flag(rng)
    if name in REDUCTIONS and often(rng, 0.3):
        call.others["keepdims"] = flag(rng)
    if name == "logsumexp" and often(rng, 0.25):
        call.arrays["b"] = operand(rng, broadcasting(rng, shape))
    if name == "logsumexp" and often(rng, 0.15):
        call.others["return_sign"] = flag(rng)
    if name == "softplus" and often(rng, 0.4):
        call.others["beta"] = pick(rng, [2.0, 1, 0.1, np.float32(3), 0, -1.0, math.nan, "1", None, [1.0], 10**400])
    return common(rng, call)


def classes_of(rng, shape, n):
    """The class of each row: all of them classes, most of the time."""
    dtype = pick(rng, fa.INTEGERS)
    classes = rng.integers(0, min(max(n, 1), 100), shape).astype(dtype)
    if classes.size and often(rng, 0.15):
        place = tuple(int(rng.integers(m)) for m in shape)
        wrong = [n, -1, -100, 2**63 - 1, 2**64 - 1, -(2**63)]
        with contextlib.suppress(OverflowError):
            classes[place] = pick(rng, wrong)
    if often(rng, 0.1):
        return operand(rng, shape)
    return fa.laid_out(rng, classes) if often(rng, 0.8) else pick(rng, fa.CLASSES)(classes)


def make_loss(rng, name):
    shape = fa.shape_of(rng) or (3,)
    axis = int(rng.integers(-len(shape), len(shape)))
    rows = tuple(n for i, n in enumerate(shape) if i != axis % len(shape))
    n = shape[axis]
    target = classes_of(rng, rows, n)
    if name == "cross_entropy" and often(rng, 0.2):
        target = operand(rng, shape, fa.float_dtype(rng))
    call = Call(
        name, [operand(rng, shape), target], others={"axis": axis_of(rng, len(shape)) if often(rng, 0.1) else axis}
    )
    if name != "nll_loss" and often(rng, 0.2):
        kept = [1 if i == axis % len(shape) else m for i, m in enumerate(shape)]
        call.arrays["temperature"] = pick(
            rng, [2.0, 0.0, "1", np.exp(numbers(rng, broadcasting(rng, kept), "f2").clip(-3, 3))]
        )
    if name == "token_logprobs":
        return call
    if often(rng, 0.25):
        call.arrays["weight"] = operand(rng, (n,), pick(rng, [None, "f4", "f8"]), 0.05)
    for option, values, chance in (("ignore_index", index_of, 0.3), ("reduction", reduction_of, 0.6)):
        if often(rng, chance):
            call.others[option] = values(rng)
    if name == "cross_entropy":
        for option, values in (
            ("label_smoothing", number_of),
            ("z_loss", number_of),
            ("return_lse", flag),
            ("return_grad", flag),
        ):
            if often(rng, 0.25):
                call.others[option] = values(rng)
    return call


def make_kl_div(rng, name):
    shape = fa.shape_of(rng)
    call = Call(name, [operand(rng, shape), operand(rng, broadcasting(rng, shape))])
    call.others["reduction"] = "batchmean" if often(rng, 0.3) else reduction_of(rng)
    if often(rng, 0.4):
        call.others["log_target"] = flag(rng)
    return call


def make_gradient(rng, name):
    shape = fa.shape_of(rng)
    axis = axis_of(rng, len(shape))
    row = [1 if type(axis) is int and i == axis % len(shape) else n for i, n in enumerate(shape)]
    g = operand(rng, broadcasting(rng, row if name == "logsumexp_vjp" else shape))
    return common(rng, Call(name, [g, operand(rng, shape)], others={"axis": axis}), dtype=0)


def make_explain(rng, name):
    call = Call(name, [operand(rng, fa.shape_of(rng))], others={"axis": axis_of(rng, 2)})
    call.others["op"] = pick(rng, ["softmax", "logsumexp", "hardmax", "no such", None, [], 5, "softmin", "sigmoid"])
    return common(rng, call)


def make_setting(rng, name):
    """Only what is refused, or changes nothing for others."""
    bad = [0, -1, -(2**70), 1.5, "two", None, [], True, fa.Number(), math.nan, np.float32(1), np.array([1])]
    return Call(name, [pick(rng, bad)])


def make(rng):
    name = pick(rng, NAMES)
    makers = {"kl_div": make_kl_div, "explain": make_explain} | dict.fromkeys(GRADIENTS, make_gradient)
    makers |= dict.fromkeys(REST[1:], make_setting)
    makers |= dict.fromkeys(("cross_entropy", "token_logprobs", "nll_loss"), make_loss)
    return makers.get(name, make_rows)(rng, name)
