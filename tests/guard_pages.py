"""Memory that faults on the first byte before or after it, and a program that runs every function on such memory.

`python tests/guard_pages.py BACKEND DTYPE` prints "ok" and the number of calls; a stray access kills it, and the
traceback says at which call.
"""

import ctypes
import faulthandler
import mmap
import sys

import numpy as np

import fastsoftmax as fsm

PAGE = mmap.PAGESIZE
NONE, READ, WRITE = 0, 1, 2  # PROT_*
_libc = ctypes.CDLL(None, use_errno=True)


def _protect(address, size, protection):
    if _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), protection):
        raise OSError(ctypes.get_errno(), "mprotect")


class Guarded:
    """Pages between two forbidden pages. Arrays sit flush against either end, or in between."""

    def __init__(self, capacity):
        self.size = -(-capacity // PAGE) * PAGE
        self._map = mmap.mmap(-1, self.size + 2 * PAGE)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self.start = self._bytes.ctypes.data + PAGE
        _protect(self.start - PAGE, PAGE, NONE)
        _protect(self.start + self.size, PAGE, NONE)

    def at_start(self, nbytes, offset=0):
        return self._bytes[PAGE + offset : PAGE + offset + nbytes]

    def at_end(self, nbytes, offset=0):
        stop = PAGE + self.size - offset
        return self._bytes[stop - nbytes : stop]

    def freeze(self):
        _protect(self.start, self.size, READ)

    def thaw(self):
        _protect(self.start, self.size, READ | WRITE)


BYTES, BIAS, GRADIENT, TARGETS = Guarded(2**17), Guarded(2**19), Guarded(2**19), Guarded(2**12)


def strided_view(raw, shape, strides, dtype, reverse=False):
    """An array over exactly these bytes, its last element ending where they end."""
    y = np.ndarray(shape, dtype, raw, strides=strides)
    return y[..., ::-1] if reverse else y


def span(shape, strides, itemsize):
    return sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + itemsize if all(shape) else 0


def shapes(itemsize):
    """(name, shape, strides, axis, reversed) of every array to be tried."""
    s = itemsize
    for n in [*range(1, 70), 95, 127, 128, 129, 255, 257, 1000, 4099, 8191, 8192, 8193, 16_385]:
        yield "row", (n,), (s,), -1, False
        yield "rows", (3, n), (n * s, s), -1, False
        yield "columns", (n, 3), (3 * s, s), 0, False
        if n <= 300:
            yield "every second", (n,), (2 * s,), -1, False
            yield "every third, reversed", (n,), (3 * s,), -1, True
            yield "reversed", (n,), (s,), -1, True
            yield "rows apart", (3, n), ((n + 5) * s, s), -1, False
            yield "columns apart", (n, 7), (19 * s, s), 0, False
            yield "many columns", (5, n), (n * s, s), 0, False
            yield "middle", (2, n, 3), (3 * n * s, 3 * s, s), 1, False
            yield "F order", (n, 4), (s, n * s), -1, False


def calls(fsm, x, axis, out, backend, reductions):
    for f in (fsm.softmax, fsm.log_softmax, fsm.logcumsumexp, fsm.softmin, fsm.hardmax):
        yield f.__name__, lambda f=f: f(x, axis=axis, out=out, backend=backend)
    for f in (fsm.sigmoid, fsm.softplus):
        yield f.__name__, lambda f=f: f(x, out=out, backend=backend)
    for f in (fsm.logsumexp, fsm.logmeanexp):
        yield f.__name__, lambda f=f: f(x, axis=axis, out=reductions, backend=backend)
    for name, given in modified(x, axis):
        yield f"softmax, {name}", lambda given=given: fsm.softmax(x, axis=axis, out=out, backend=backend, **given)
        yield (
            f"logsumexp, {name}",
            lambda given=given: fsm.logsumexp(x, axis=axis, out=reductions, backend=backend, **given),
        )
    g = GRADIENT.at_end(x.nbytes).view(x.dtype).reshape(x.shape)
    g[...] = 0.5
    yield "softmax_vjp", lambda: fsm.softmax_vjp(g, x, axis=axis, out=out, backend=backend)
    yield "log_softmax_vjp", lambda: fsm.log_softmax_vjp(g, x, axis=axis, out=out, backend=backend)
    if reductions is not None:
        yield "logsumexp_vjp", lambda: fsm.logsumexp_vjp(reductions, x, axis=axis, out=out, backend=backend)
    target = TARGETS.at_end(8 * (x.size // x.shape[axis])).view(np.int64)
    target = target.reshape([n for i, n in enumerate(x.shape) if i != axis % x.ndim])
    target[...] = x.shape[axis] - 1
    for name, given in (("classes", target), ("probabilities", g)):
        yield f"loss of {name}", lambda given=given: fsm.cross_entropy(x, given, axis, grad_out=out, backend=backend)
    yield "token_logprobs", lambda: fsm.token_logprobs(x, target, axis, backend=backend)
    yield "logsumexp b", lambda: fsm.logsumexp(x, axis=axis, b=x, backend=backend)


def modified(x, axis):
    """Modifiers; all that are arrays end where their pages do."""
    row = tuple(n if i == axis % x.ndim else 1 for i, n in enumerate(x.shape))
    for name, shape in (("each", x.shape), ("a row", row)):
        count = int(np.prod(shape))
        if count * x.itemsize <= BIAS.size:
            where = BYTES.at_end(count).view(bool).reshape(shape)
            where[...] = np.arange(count).reshape(shape) % 3 != 1
            bias = BIAS.at_end(count * x.itemsize).view(x.dtype).reshape(shape)
            bias[...] = 0.5
            yield f"a bias and a mask for {name}", {"bias": bias, "where": where}
    yield "a temperature", {"temperature": 3.0}
    yield "a sink", {"sink": 1.0, "softcap": 5.0}


def run(backend, dtype):
    dtype = np.dtype(dtype)
    source, target, small = Guarded(2**19), Guarded(2**19), Guarded(2**12)
    rng = np.random.default_rng(0)
    count = 0
    for name, shape, strides, axis, reverse in shapes(dtype.itemsize):
        nbytes = span(shape, strides, dtype.itemsize)
        reduced = tuple(n for i, n in enumerate(shape) if i != axis % len(shape))
        places = [("at_end", 0), ("at_start", 0), ("at_end", 1), ("at_start", 3)]
        for place, offset in places if nbytes < 2000 else places[:2]:
            source.thaw()
            x = strided_view(getattr(source, place)(nbytes, offset), shape, strides, dtype, reverse)
            x[...] = rng.normal(0, 3, shape)
            out = strided_view(getattr(target, place)(nbytes, offset), shape, strides, dtype, reverse)
            reductions = None
            reduced_bytes = int(np.prod(reduced)) * dtype.itemsize
            if reduced_bytes <= small.size:
                raw = getattr(small, place)(reduced_bytes, offset)
                reductions = np.ndarray(reduced, dtype, raw)
            source.freeze()  # the input is on read-only pages
            for function, go in calls(fsm, x, axis, out, backend, reductions):
                try:
                    go()
                except BaseException:
                    print(f"at {function}, {name} {shape}, {place} + {offset}", file=sys.stderr)
                    raise
                count += 1
            fsm.softmax(out, axis=axis, out=out, backend=backend)  # in place between the guards
    return count


if __name__ == "__main__":
    faulthandler.enable()
    print("ok", run(*sys.argv[1:]))
