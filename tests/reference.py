"""The one slow and obvious reference: long double, the input taken exactly, every sum compensated.

Row functions work on the last axis and return long double; `over` carries them to any axes. What each special
value gives is written out at the end of each function, from the truth table, not left to the arithmetic.
Checked against mpmath in test_reference.py to 0.002 ulp of float64.
"""

import numpy as np

LD = np.longdouble
if np.finfo(LD).nmant < 63:
    raise ImportError("the reference needs an 80-bit or 128-bit long double")

# name -> (precision in bits, exponent of the smallest normal number, exponent of the largest)
FORMATS = {
    "float16": (11, -14, 15),
    "bfloat16": (8, -126, 127),
    "float32": (24, -126, 127),
    "float64": (53, -1022, 1023),
}


def exactly(x):
    """x as long double, without rounding (bfloat16 has no direct way there)."""
    x = np.asarray(x)
    return (x.astype(np.float32) if x.dtype.name == "bfloat16" else x).astype(LD)


def two_sum(a, b):
    """a + b and its rounding error (0 where the sum is not finite)."""
    s = a + b
    t = s - a
    return s, np.where(np.isfinite(s), (a - (s - t)) + (b - t), 0)


def two_product(a, b):
    """a * b and its rounding error, for factors of at most 53 bits (|a|, |b| < 1e100)."""
    split = LD(2) ** 32 + 1
    high_a, high_b = (split * v - (split * v - v) for v in (a, b))
    low_a, low_b = a - high_a, b - high_b
    p = a * b
    error = ((high_a * high_b - p) + high_a * low_b + low_a * high_b) + low_a * low_b
    return p, np.where(np.isfinite(p), error, 0)


def exact_sum(terms):
    """Sum of the last axis: pairwise, with the rounding errors summed beside it."""
    error = LD(0)
    while terms.shape[-1] > 1:
        if terms.shape[-1] % 2:
            terms = np.concatenate([terms, np.zeros_like(terms[..., :1])], axis=-1)
        terms, lost = two_sum(terms[..., 0::2], terms[..., 1::2])
        error = error + lost.sum(axis=-1)
    return terms[..., 0] + error


def _shifted(x):
    """max, x - max as an unevaluated sum of two numbers, and e^(x - max)."""
    m = x.max(axis=-1, keepdims=True)
    high, low = two_sum(x, -m)
    return m, high, low, np.exp(high) * (1 + low)


def _excess(x):
    """L = lse - max >= 0, with the maxima counted apart from the others so that a tiny L keeps its digits."""
    m, _, _, e = _shifted(x)
    count = (x == m).sum(axis=-1).astype(LD)
    rest = exact_sum(np.where(x == m, 0, e))
    return np.log(count) + np.log1p(rest / count)


def _has_no_distribution(x):
    """Rows whose softmax is 0/0 or inf/inf: a NaN, a +inf, or nothing but -inf."""
    return np.isnan(x).any(-1) | (x == np.inf).any(-1) | (x == -np.inf).all(-1)


def softmax(x):
    x = exactly(x)
    if x.shape[-1] == 0:
        return x
    with np.errstate(all="ignore"):
        e = _shifted(x)[3]
        return np.where(_has_no_distribution(x)[..., None], np.nan, e / exact_sum(e)[..., None])


def log_softmax(x):
    x = exactly(x)
    if x.shape[-1] == 0:
        return x
    with np.errstate(all="ignore"):
        _, high, low, _ = _shifted(x)
        y = (high - _excess(x)[..., None]) + low
        return np.where(_has_no_distribution(x)[..., None], np.nan, y)


def softmin(x):
    return softmax(-exactly(x))


def hardmax(x):
    x = exactly(x)
    if x.shape[-1] == 0:
        return x
    first = np.arange(x.shape[-1]) == x.argmax(axis=-1)[..., None]
    return np.where((np.isnan(x).any(-1) | (x == -np.inf).all(-1))[..., None], np.nan, first.astype(LD))


def logsumexp(x):
    x = exactly(x)
    if x.shape[-1] == 0:
        return np.full(x.shape[:-1], -np.inf, LD)
    with np.errstate(all="ignore"):
        m = x.max(axis=-1)
        return np.where(np.isfinite(m), m + _excess(x), m)


def excess(x):
    """lse - max where that is finite, else 0: the conditioning term of the promise on logsumexp."""
    x = exactly(x)
    if x.shape[-1] == 0:
        return np.zeros(x.shape[:-1], LD)
    with np.errstate(all="ignore"):
        return np.where(np.isfinite(x.max(axis=-1)), _excess(x), 0)


def signed_logsumexp(x, b):
    """(log|sum b e^x|, sign); a term whose weight is zero is dropped, whatever x is there."""
    x, b = np.broadcast_arrays(exactly(x), exactly(b))
    if x.shape[-1] == 0:
        return np.full(x.shape[:-1], -np.inf, LD), np.zeros(x.shape[:-1], LD)
    x = np.where(b == 0, -np.inf, x)
    with np.errstate(all="ignore"):
        m = x.max(axis=-1)
        shift = np.where(np.isfinite(m), m, 0)[..., None]
        high, low = two_sum(x, -shift)
        e = np.where(x == -np.inf, 0, np.exp(high) * (1 + low))
        # inf * 0 only where the weight is infinite and the term is e^-inf: that is a NaN
        terms = np.where(b == 0, 0, b * e)
        finite = np.isfinite(terms).all(-1)
        total = np.where(finite, exact_sum(terms), terms.sum(axis=-1))
        near_one = exact_sum(np.concatenate([terms, np.full_like(terms[..., :1], -1)], axis=-1))
        size = np.where(finite & (abs(near_one) < 0.5), np.log1p(near_one), np.log(abs(total)))
        return size + shift[..., 0], np.sign(total)


def logmeanexp(x):
    n = np.shape(x)[-1]
    if n == 0:
        return np.full(np.shape(x)[:-1], np.nan, LD)
    return logsumexp(x) - np.log(LD(n))


def cumulative_parts(x):
    """Running (maximum, excess) of every prefix, one element at a time."""
    x = exactly(x)
    m, c, r = np.full(x.shape[:-1], -np.inf, LD), np.zeros(x.shape[:-1], LD), np.zeros(x.shape[:-1], LD)
    maxima, excesses = np.empty_like(x), np.empty_like(x)
    with np.errstate(all="ignore"):
        for i in range(x.shape[-1]):
            v = x[..., i]
            grows = v > m
            r = np.where(grows, np.where(c > 0, (c + r) * np.exp(m - v), 0), np.where(v < m, r + np.exp(v - m), r))
            c = np.where(grows, 1, np.where(v == m, c + 1, c))
            m = np.where(np.isnan(m) | np.isnan(v), np.nan, np.maximum(m, v))
            maxima[..., i] = m
            excesses[..., i] = np.where(np.isfinite(m), np.log(c) + np.log1p(r / c), 0)
    return maxima, excesses


def logcumsumexp(x):
    m, excesses = cumulative_parts(x)
    return np.where(np.isfinite(m), m + excesses, m)


def sigmoid(x):
    x = exactly(x)
    e = np.exp(-abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def softplus(x, beta=1.0):
    x = exactly(x)
    with np.errstate(all="ignore"):
        high, low = (x, LD(0)) if beta == 1 else two_product(x, LD(beta))
        e = np.exp(-abs(high)) * (1 - np.sign(high) * low)
        y = (np.maximum(high, 0) + np.log1p(e)) / LD(beta)
        # beta * x overflowing two_product's split (only |x| > 1e100): the logarithm is nothing there
        huge = abs(x) > 1e100
        return np.where(huge, np.where(x > 0, x, 0), y)


def over(function, x, axis, reduces=False):
    """Carry a row function to `axis` (int, tuple or None) of x by plain copying."""
    x = np.asarray(x)
    axes = range(x.ndim) if axis is None else (axis if isinstance(axis, tuple) else (axis,))
    axes = sorted(a % max(x.ndim, 1) for a in axes) if x.ndim else []
    kept = [a for a in range(x.ndim) if a not in axes]
    moved = x.transpose(kept + axes)
    n = int(np.prod([x.shape[a] for a in axes], dtype=int))
    y = function(moved.reshape([*moved.shape[: len(kept)], n]))
    return y if reduces else y.reshape(moved.shape).transpose(np.argsort(kept + axes))


def ulp(value, dtype):
    """The distance between neighbours of `value` in the format: constant below the smallest normal number."""
    precision, smallest, _ = FORMATS[np.dtype(dtype).name]
    value = abs(np.asarray(value, LD))
    exponent = np.where(value > 0, np.frexp(value)[1] - 1, smallest)
    return np.ldexp(LD(1), np.maximum(exponent, smallest) - (precision - 1))


def ulp_error(got, exact, dtype=None, at_least=0):
    """|got - exact| in units in the last place of max(|exact|, at_least), elementwise, as long double.

    Right for subnormal results (the unit stops shrinking), for zero, and at the top: +-inf counts as the number
    that would follow the largest finite one. NaN against anything but NaN is infinitely wrong.
    """
    got = np.asarray(got)
    dtype = np.dtype(dtype or got.dtype)
    precision, _, largest = FORMATS[dtype.name]
    got, exact = np.broadcast_arrays(exactly(got), np.asarray(exact, LD))
    overflow = LD(2) ** (largest + 1)
    limit = overflow - LD(2) ** (largest - precision)  # from here on, inf is the right rounding
    with np.errstate(all="ignore"):
        rounds_to_inf = abs(exact) >= limit
        right_inf = np.isinf(got) & rounds_to_inf & (np.sign(got) == np.sign(exact))
        finite_got = np.where(np.isinf(got), np.sign(got) * overflow, got)
        unit = ulp(np.minimum(np.maximum(abs(exact), at_least), overflow / 2), dtype)
        error = abs(finite_got - exact) / unit
    wrong_nan = np.isnan(got) != np.isnan(exact)
    error = np.where(right_inf | (np.isnan(got) & np.isnan(exact)), 0, error)
    error = np.where(wrong_nan | (np.isinf(exact) & ~right_inf & ~np.isnan(got)), np.inf, error)
    return error
