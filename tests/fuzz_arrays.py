"""Hostile values for fuzz_api.py: arrays of every dtype, layout and class, objects that lie, and what is none of these.

Everything is drawn from a generator, so that a seed makes the same values again.
"""

import array
import ctypes
import math
import tempfile

import ml_dtypes
import numpy as np
from layouts import LAYOUTS

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = [np.dtype(t) for t in ("f4", "f8", "f2")] + [BFLOAT16]
INTEGERS = [np.dtype(t) for t in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")]
OTHERS = [np.dtype(t) for t in ("?", "g", "F", "D", "G")]
SPECIAL = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, -1e-310, 5e-324, 65504.0, -7e4, 3.4e38, -1.7e308, 1e30)
MOST_DIMS = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32


class LieError(Exception):
    """What an object raises on its own account: it may come through, whatever it is."""


def pick(rng, values):
    return values[int(rng.integers(len(values)))]


def often(rng, chance):
    return rng.random() < chance


# ---- numbers ----


def shape_of(rng):
    kind = rng.random()
    if kind < 0.03:
        return tuple(int(n) for n in rng.choice([1, 1, 1, 1, 1, 2], int(rng.integers(8, MOST_DIMS + 1))))[:MOST_DIMS]
    if kind < 0.05:
        return (int(rng.integers(200, 9000)),)
    shape = [int(n) for n in rng.integers(1, 7, int(rng.integers(0, 5)))]
    if shape and often(rng, 0.2):
        shape[int(rng.integers(len(shape)))] = int(rng.integers(0, 70))
    while math.prod(shape) > 20_000:
        shape.pop()
    return tuple(shape)


def numbers(rng, shape, dtype):
    """An array in C order: ordinary numbers, with special ones among them, or nothing else, or any bits."""
    dtype = np.dtype(dtype)
    with np.errstate(all="ignore"):
        if dtype.kind == "b":
            return rng.random(shape) < 0.5
        if dtype.kind in "iu":
            info = np.iinfo(dtype)
            low, high = (info.min, info.max) if often(rng, 0.2) else (max(info.min, -20), 20)
            return rng.integers(low, high, shape, dtype, endpoint=True)
        x = np.asarray(rng.normal(0, pick(rng, [1, 10, 10, 300]), shape))
        if often(rng, 0.4):
            x = np.where(rng.random(shape) < pick(rng, [0.05, 0.5, 1]), rng.choice(SPECIAL, shape), x)
        if often(rng, 0.1):
            x = np.full(shape, pick(rng, SPECIAL))
        if dtype.kind == "c":
            x = x + 1j * rng.normal(0, 3, shape)
        elif dtype.itemsize < 16 and often(rng, 0.05):
            x = np.frombuffer(rng.bytes(x.size * dtype.itemsize), dtype).reshape(shape)
        return x.astype(dtype).reshape(shape)


def float_dtype(rng):
    return pick(rng, [*FLOATS, FLOATS[0], FLOATS[0], FLOATS[1]])


def any_dtype(rng):
    kind = rng.random()
    return float_dtype(rng) if kind < 0.8 else pick(rng, INTEGERS) if kind < 0.93 else pick(rng, OTHERS)


# ---- layouts and classes ----


def windows(x, rng):
    """Rows that overlap each other, over memory of that size."""
    if x.ndim < 2 or x.size < 4:
        return x
    steps = [int(rng.integers(0, 3)) * x.itemsize for _ in x.shape]
    reach = sum((n - 1) * s for n, s in zip(x.shape, steps, strict=True)) // x.itemsize
    return np.lib.stride_tricks.as_strided(x.ravel()[: reach + 1], x.shape, steps) if reach < x.size else x


def spread_out(x, rng):
    return np.broadcast_to(x[:1] if x.ndim and x.size else x, x.shape)


def far_apart(x, rng):
    """Elements thousands of bytes from each other."""
    if x.size > 200 or not x.ndim:
        return x
    big = np.zeros((x.size, 5000 // x.itemsize), x.dtype)
    big[:, 0] = x.ravel()
    return big[:, 0].reshape(x.shape)


def turned(x, rng):
    order = rng.permutation(x.ndim)
    return x.transpose(order).copy().transpose(np.argsort(order))


def laid_out(rng, x, repeated=True):
    """x somewhere in memory; with other numbers, if elements may be repeated."""
    x = np.asarray(x)
    if often(rng, 0.3):
        return x
    if often(rng, 0.25):
        return pick(rng, [far_apart, turned, *[windows, spread_out] * repeated])(x, rng)
    name = pick(rng, list(LAYOUTS))
    if (x.dtype == BFLOAT16 and name == "swapped bytes") or (x.ndim > 6 and ("every" in name or "reversed" in name)):
        return x  # there is no such dtype; far too large
    y = LAYOUTS[name](x)
    return y if y.shape == x.shape else x


class Plain(np.ndarray):
    """A subclass without any behaviour of its own."""


def memmapped(x):
    if not x.size:
        return x
    with tempfile.TemporaryFile() as file:  # the memory outlives it
        y = np.memmap(file, x.dtype, "w+", shape=x.shape)
    y[...] = x
    return y


CLASSES = (
    lambda x: x.view(Plain),
    lambda x: np.matrix(x) if x.ndim == 2 else x,
    lambda x: np.ma.masked_invalid(x) if x.ndim <= 32 else x,  # more it cannot mask
    np.ma.asarray,
    memmapped,
    lambda x: x.view(np.recarray),
    lambda x: x.tolist(),
    lambda x: tuple(x.tolist()) if x.ndim else x[()],
    lambda x: memoryview(np.ascontiguousarray(x)) if x.dtype.kind in "fiu" and x.dtype.char not in "g" else x,
    lambda x: array.array("d", x.astype("f8").ravel().tolist()) if x.dtype.kind in "iu" else x,
    lambda x: (ctypes.c_float * x.size)(*range(x.size)),
    lambda x: Giver(lambda: x),
)


# ---- objects that lie ----


class Giver:
    """Its __array__ does what it was given."""

    def __init__(self, give):
        self.give = give

    def __array__(self, dtype=None, copy=None):
        return self.give()


class Interface:
    """Its __array_interface__ is what it was given."""

    def __init__(self, interface):
        self.__array_interface__ = interface


class Sequence:
    """It has that length, and elements up to where it raises."""

    def __init__(self, length, stop, error):
        self.length, self.stop, self.error = length, stop, error

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        if i >= self.stop:
            raise self.error
        return float(i)


class Number:
    """A number that is none: what asks for its value gets an exception."""

    def __float__(self):
        raise LieError("no float")

    __index__ = __int__ = __bool__ = __float__


def raising(error):
    def give():
        raise error

    return give


def interface(**changes):
    memory = np.zeros(16)
    given = {"version": 3, "typestr": "<f8", "shape": (4, 4), "data": (memory.ctypes.data, False)} | changes
    lie = Interface({name: value for name, value in given.items() if value is not None})
    lie.memory = memory
    return lie


LIES = (
    *(
        lambda error=error: Giver(raising(error))
        for error in (LieError("no"), ValueError("no"), TypeError("no"), MemoryError("no memory"))
    ),
    *(lambda value=value: Giver(lambda: value) for value in (None, 5, [1.0, 2.0], "array", LieError)),
    lambda: Giver(lambda: np.ma.masked_array([1.0, 2.0], [True, False])),
    lambda: interface(shape=(-1, 4)),
    lambda: interface(shape=(2**62, 8)),
    lambda: interface(shape=(2**40, 2**40)),
    lambda: interface(shape=(2**70,)),
    lambda: interface(shape=4),
    lambda: interface(shape=("4",)),
    lambda: interface(shape=None),
    lambda: interface(shape=(1,) * 100),
    lambda: interface(typestr="<f3"),
    lambda: interface(typestr="nonsense"),
    lambda: interface(typestr=None),
    lambda: interface(typestr="|O8"),
    lambda: interface(version=None),
    lambda: interface(version=-1),
    lambda: interface(strides=(8,)),
    lambda: interface(strides=(8, 8, 8)),
    lambda: interface(strides="8"),
    lambda: interface(strides=(16, 8), shape=(2, 2)),
    lambda: interface(data="no memory"),
    lambda: interface(data=5),
    lambda: Interface([]),
    lambda: Interface(None),
    lambda: Sequence(4, 2, LieError("in the middle")),
    lambda: Sequence(4, 2, ValueError("in the middle")),
    lambda: Sequence(2**62, 0, IndexError("nothing")),
    lambda: Sequence(-1, 4, IndexError("end")),
    lambda: Sequence(4, 3, IndexError("shorter than it says")),
    Number,
    lambda: [Number(), 1.0],
    lambda: released(memoryview(bytearray(8))),
)


def released(view):
    view.release()
    return view


NONSENSE = (
    lambda: np.array([1.0, None], object),
    lambda: np.array([1.0, 2.0], object),
    lambda: np.array([10**400, 1], object),
    lambda: np.array(["a", "b"]),
    lambda: np.array([b"a"]),
    lambda: np.array(["2020-01-01"], "M8[D]"),
    lambda: np.array([1, 2], "m8[s]"),
    lambda: np.zeros(3, [("a", "f4"), ("b", "i2")]),
    lambda: np.zeros(3, "V4"),
    lambda: None,
    lambda: {"a": 1},
    lambda: {1.0},
    lambda: "abc",
    lambda: b"12345678",
    lambda: [[1.0], [1.0, 2.0]],
    lambda: [1.0, "a"],
    lambda: 10**400,
    lambda: [2**64, 1],
    lambda: [2**63, -1],
    lambda: object(),
    lambda: Ellipsis,
    lambda: (i for i in range(3)),
    lambda: range(5),
    lambda: np.float32,
    lambda: slice(3),
    lambda: np.array(1.0)[()],
)


def operand(rng, shape, dtype=None, hostile=0.12):
    """An array of that shape, somehow; or, now and then, something else."""
    kind = rng.random()
    if kind < hostile / 3:
        return pick(rng, LIES)()
    if kind < hostile / 2:
        return pick(rng, NONSENSE)()
    x = laid_out(rng, numbers(rng, shape, any_dtype(rng) if dtype is None else dtype))
    return pick(rng, CLASSES)(x) if kind < hostile * 1.5 else x


def broadcasting(rng, shape, chance=0.95):
    """A shape that broadcasts to that one, most of the time."""
    if not often(rng, chance):
        return shape_of(rng)
    kept = tuple(1 if often(rng, 0.4) else n for n in shape)
    return kept[int(rng.integers(len(kept) + 1)) :] if often(rng, 0.3) else kept
