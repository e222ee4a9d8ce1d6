"""Every public function, in every way that is a path of its own, as functions without arguments: for tests that ask
what a call does to the process, and not what it gives."""

import numpy as np

import fastsoftmax as fsm

#: Few elements; rows that lie side by side; a row in parts.
SHAPES = {"few": (3, 10), "rows": (300, 200), "long": (2, 40_000)}
SOFTCAP = 20.0


def calls(shape, dtype="f4", backend=None, special=()):
    """{name: function}. What they take is made once and never changes; what is computed in place is copied first.

    Of special numbers there is one in each row.
    """
    rng = np.random.default_rng(0)
    x, g = (rng.normal(0, 3, shape).astype(dtype) for _ in range(2))
    if len(special):
        x[range(len(x)), rng.integers(0, shape[1], len(x))] = np.resize(special, len(x))
    rows, n = shape
    target = rng.integers(0, n, rows)
    weight, mask = rng.uniform(0.5, 2, n).astype(dtype), rng.random(shape) < 0.7
    wide = np.repeat(x, 2, axis=1)[:, ::2]
    p, logs, q = fsm.softmax(x), fsm.log_softmax(x), fsm.softmax(g)
    modifiers = {"where": mask, "temperature": 0.7, "bias": g, "softcap": SOFTCAP}
    on = {"backend": backend}

    def in_place():
        y = x.copy()
        return fsm.softmax(y, out=y, **on)

    def gradient_in_place():
        y = x.copy()
        return fsm.cross_entropy(y, target, grad_out=y, **on)

    return {
        "softmax": lambda: fsm.softmax(x, **on),
        "softmax, columns": lambda: fsm.softmax(x, axis=0, **on),
        "softmax, apart": lambda: fsm.softmax(wide, **on),
        "softmax, in place": in_place,
        "softmax, half": lambda: fsm.softmax(x, dtype=np.float16, **on),
        "softmax, integers": lambda: fsm.softmax(target, **on),
        "log_softmax": lambda: fsm.log_softmax(x, **on),
        "softmin": lambda: fsm.softmin(x, **on),
        "hardmax": lambda: fsm.hardmax(x, **on),
        "logcumsumexp": lambda: fsm.logcumsumexp(x, **on),
        "logsumexp": lambda: fsm.logsumexp(x, axis=1, **on),
        "logsumexp of all": lambda: fsm.logsumexp(x, **on),
        "logsumexp, b": lambda: fsm.logsumexp(x, axis=1, b=weight, **on),
        "logsumexp, complex": lambda: fsm.logsumexp(x[:2] + 1j * g[:2], axis=1, **on),
        "logmeanexp": lambda: fsm.logmeanexp(x, axis=0, **on),
        "sigmoid": lambda: fsm.sigmoid(x, **on),
        "softplus": lambda: fsm.softplus(x, **on),
        "softplus, beta": lambda: fsm.softplus(x, beta=2.0, **on),
        "softmax, modified": lambda: fsm.softmax(x, **modifiers, **on),
        "softmax, sink": lambda: fsm.softmax(x, sink=0.5, return_lse=True, **on),
        "log_softmax, modified": lambda: fsm.log_softmax(x, return_lse=True, **modifiers, **on),
        "logsumexp, modified": lambda: fsm.logsumexp(x, axis=-1, **modifiers, **on),
        "softmax_vjp": lambda: fsm.softmax_vjp(g, p, **on),
        "log_softmax_vjp": lambda: fsm.log_softmax_vjp(g, logs, axis=0, **on),
        "logsumexp_vjp": lambda: fsm.logsumexp_vjp(g[:, 0], x, axis=1, **on),
        "cross_entropy": lambda: fsm.cross_entropy(x, target, **on),
        "cross_entropy, gradient": lambda: fsm.cross_entropy(x, target, return_grad=True, reduction="sum", **on),
        "cross_entropy, in place": gradient_in_place,
        "cross_entropy, weights": lambda: fsm.cross_entropy(
            x, target, weight=weight, label_smoothing=0.1, z_loss=0.01, return_lse=True, return_grad=True, **on
        ),
        "cross_entropy, probabilities": lambda: fsm.cross_entropy(x, q, reduction="none", return_grad=True, **on),
        "token_logprobs": lambda: fsm.token_logprobs(x, target, **on),
        "token_logprobs, temperature": lambda: fsm.token_logprobs(x, target, temperature=2.0, **on),
        "nll_loss": lambda: fsm.nll_loss(logs, target, weight=weight),
        "kl_div": lambda: fsm.kl_div(logs, q, reduction="none"),
        "kl_div, sum": lambda: fsm.kl_div(logs, q, reduction="batchmean"),
    }


def failing_calls(backend=None):
    """{name: (function, the error)}: what is refused early, late, and by what lies underneath."""
    x, ids, other = np.zeros((4, 50), "f4"), np.zeros(4, int), np.ones(3, "f4")
    objects, huge = np.array([None]), np.broadcast_to(np.float32(0), (1 << 30, 1 << 28))
    on = {"backend": backend}
    return {
        "axis": (lambda: fsm.softmax(x, axis=7, **on), ValueError),
        "out": (lambda: fsm.softmax(x, out=other, **on), ValueError),
        "dtype": (lambda: fsm.log_softmax(x, dtype="i4", **on), TypeError),
        "text": (lambda: fsm.sigmoid("text", **on), TypeError),
        "objects": (lambda: fsm.logsumexp(objects, **on), TypeError),
        "backend": (lambda: fsm.softmax(x, backend="cuda"), ValueError),
        "mask": (lambda: fsm.softmax(x, where=other > 0, **on), ValueError),
        "temperature": (lambda: fsm.softmax(x, temperature=-1.0, **on), ValueError),
        "target": (lambda: fsm.cross_entropy(x, ids + 50, **on), IndexError),
        "target's shape": (lambda: fsm.cross_entropy(x, ids[:2], return_grad=True, **on), ValueError),
        "ids": (lambda: fsm.token_logprobs(x, ids - 1, **on), IndexError),
        "gradient": (lambda: fsm.softmax_vjp(other, x, **on), ValueError),
        "weights": (lambda: fsm.logsumexp(x, b=other, **on), ValueError),
        "memory": (lambda: fsm.softmax(huge, **on), MemoryError),
    }


def bits(result):
    """What a call gave, for comparisons."""
    return tuple(np.asarray(part).tobytes() for part in (result if isinstance(result, tuple) else (result,)))
