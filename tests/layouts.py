"""Ways to lay the same numbers out in memory, shared by the tests of arrays, bits and properties."""

import numpy as np


def unaligned(x, offset=1):
    """A copy that starts at any byte."""
    raw = np.zeros(x.nbytes + 128, np.uint8)
    start = -raw.ctypes.data % 64 + offset
    y = raw[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    y[...] = x
    return y


def packed_field(x):
    """A field of packed records: odd strides, no element aligned."""
    records = np.zeros(x.shape, [("skip", "u1"), ("value", x.dtype), ("tail", "u2")])
    records["value"] = x
    return records["value"]


def stepped(x, steps):
    """A view with every `steps`-th element of something larger along each axis; the gaps hold NaN."""
    big = np.full([n * abs(s) + abs(s) for n, s in zip(x.shape, steps, strict=True)], np.nan, x.dtype)
    view = big[(*(slice(1, 1 + n * abs(s), abs(s)) for n, s in zip(x.shape, steps, strict=True)), ...)]
    view = view[(*(slice(None, None, -1) if s < 0 else slice(None) for s in steps), ...)]
    view[...] = x
    return view


def read_only(x):
    y = x.copy()
    y.flags.writeable = False
    return y


def spread(steps):
    """Like `stepped`, with the pattern of steps repeated over the axes."""
    return lambda x: stepped(x, np.resize(steps, x.ndim)) if x.ndim else x.copy()


LAYOUTS = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "every second": spread([2]),
    "every third": spread([1, 3]),
    "reversed": spread([-1]),
    "reversed, every second": spread([-2, 1]),
    "unaligned by 1": unaligned,
    "aligned to the element only": lambda x: unaligned(x, x.itemsize),
    "packed field": packed_field,
    "swapped bytes": lambda x: x.astype(x.dtype.newbyteorder()),
    "read-only": read_only,
    "bytes": lambda x: np.frombuffer(x.tobytes() or b"", x.dtype).reshape(x.shape) if x.size else x,
    "reversed axes": lambda x: x.transpose().copy().transpose(),
}


def bits(x):
    """The bytes of a result, for comparisons that tell -0 from 0 and NaN from NaN."""
    return np.ascontiguousarray(x).tobytes()


def assert_same_bits(got, want, what=""):
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    if bits(got) != bits(want):
        a, b = np.ascontiguousarray(got).ravel(), np.ascontiguousarray(want).ravel()
        size = f"u{a.itemsize}"
        differ = np.flatnonzero(a.view(size) != b.view(size))
        where = np.unravel_index(differ[0], got.shape) if got.ndim else ()
        raise AssertionError(
            f"{what}: {differ.size} of {a.size} differ, first at {where}: {a[differ[0]]!r}, {b[differ[0]]!r}"
        )
