"""The reference against mpmath at 700 digits, and the ulp measure against cases done by hand."""

import mpmath
import numpy as np
import pytest
import reference as ref
from numpy.testing import assert_array_equal

LD = ref.LD
mpmath.mp.dps = 700
CLOSE = 0.002  # ulp of float64

ROWS = {
    "normal": np.random.default_rng(1).normal(0, 3, 41),
    "wide": np.random.default_rng(2).uniform(-744, 0, 33) + 0.3,
    "far": np.random.default_rng(3).uniform(-744, 0, 33) - 1000.3,
    "tiny excess": np.array([0.0, -40.0, -300.5]),
    "cancels": np.array([-0.6931471805599453, -0.6931471805599453]),
    "subnormal": np.array([5e-324, 1e-310, -3e-320]),
    "ties": np.array([7.1, 7.1, 7.1, 3.3]),
    "huge": np.array([1.7e308, -1.7e308, 1.69e308]),
    "one": np.array([-3.7]),
}


def exact(value):
    return mpmath.mpf(float(value))


def exact_longdouble(value):
    fraction, exponent = np.frexp(LD(value))
    high = float(fraction)
    return mpmath.ldexp(mpmath.mpf(high) + mpmath.mpf(float(fraction - LD(high))), int(exponent))


def assert_close(got, want, at_least=0):
    for g, w in zip(np.ravel(got), want, strict=True):
        size = max(abs(w), abs(mpmath.mpf(at_least)), mpmath.mpf(2) ** -1022)
        unit = mpmath.ldexp(1, int(mpmath.floor(mpmath.log(size, 2))) - 52)
        assert abs(exact_longdouble(g) - w) <= CLOSE * unit, (g, w)


@pytest.mark.parametrize("name", ROWS)
def test_against_mpmath(name):
    x = ROWS[name]
    v = [exact(e) for e in x]
    m = max(v)
    s = mpmath.fsum(mpmath.exp(e - m) for e in v)
    excess = mpmath.log(s)
    assert_close(ref.softmax(x), [mpmath.exp(e - m) / s for e in v])
    assert_close(ref.log_softmax(x), [e - m - excess for e in v])
    assert_close(ref.logsumexp(x), [m + excess], at_least=excess)
    assert_close(ref.excess(x), [excess])
    assert_close(ref.logmeanexp(x), [m + excess - mpmath.log(len(v))], at_least=float(np.log(max(len(v), 2))))
    assert_close(ref.sigmoid(x), [1 / (1 + mpmath.exp(-e)) for e in v])
    for beta in (1.0, 0.5, 3.7):
        if name == "huge":
            assert_close(ref.softplus(x, beta), [max(e, 0) for e in v])
        else:
            assert_close(ref.softplus(x, beta), [mpmath.log(1 + mpmath.exp(beta * e)) / mpmath.mpf(beta) for e in v])
    for i, got in enumerate(ref.logcumsumexp(x)):
        prefix = v[: i + 1]
        excess = mpmath.log(mpmath.fsum(mpmath.exp(e - max(prefix)) for e in prefix))
        assert_close(got, [max(prefix) + excess], at_least=excess)


def test_signed_against_mpmath():
    rng = np.random.default_rng(5)
    for _ in range(20):
        x, b = rng.normal(0, 5, 17), rng.normal(0, 1, 17)
        total = mpmath.fsum(exact(w) * mpmath.exp(exact(e)) for e, w in zip(x, b, strict=True))
        value, sign = ref.signed_logsumexp(x, b)
        assert sign == mpmath.sign(total)
        assert abs(exact_longdouble(value) - mpmath.log(abs(total))) < 1e-16
    x = np.array([0.0, -40.0])
    assert_array_equal(ref.signed_logsumexp(x, np.ones(2))[0], ref.logsumexp(x))


def test_sum_is_exact_where_plain_addition_is_not():
    x = np.array([[1, LD(2) ** -80, -1, LD(2) ** -80, 0]], LD)
    assert ref.exact_sum(x) == LD(2) ** -79
    assert ref.exact_sum(np.full((1, 10**6), LD("0.1"))) == LD("0.1") * 10**6


def test_special_values_of_the_reference():
    inf, nan = np.inf, np.nan
    assert_array_equal(ref.softmax([[0, nan], [0, inf], [-inf, -inf]]), np.full((3, 2), nan))
    assert_array_equal(ref.log_softmax([[0, nan], [0, inf], [-inf, -inf]]), np.full((3, 2), nan))
    assert_array_equal(ref.softmax([[3, -inf]]), [[1, 0]])
    assert_array_equal(ref.log_softmax([[3, -inf]]), [[0, -inf]])
    assert_array_equal(ref.logsumexp([[0, nan], [0, inf], [-inf, -inf], [inf, nan]]), [nan, inf, -inf, nan])
    assert_array_equal(ref.logcumsumexp([-inf, 1, inf, 3, nan, 3]), [-inf, 1, inf, inf, nan, nan])
    assert_array_equal(ref.hardmax([[1, 3, 3], [1, nan, 2], [-inf, -inf, -inf], [inf, 0, inf]])[0], [0, 1, 0])
    assert_array_equal(ref.signed_logsumexp([[1.0, nan], [1.0, inf], [1.0, 1.0]], [1, 0])[0], [1, 1, 1])
    assert_array_equal(ref.signed_logsumexp([1.0, 1.0], [1, -1]), (-inf, 0))
    assert_array_equal(ref.sigmoid([inf, -inf, nan]), [1, 0, nan])
    assert_array_equal(ref.softplus([inf, -inf, nan], 2.0), [inf, 0, nan])


@pytest.mark.parametrize(
    ("got", "want", "kind", "ulps"),
    [
        (1.0, LD(1), "float32", 0),
        (1.0, LD(1) + LD(2) ** -23, "float32", 1),
        (1.0, LD(1) - LD(2) ** -24, "float32", 1),  # below a power of two the unit is half
        (1.0, LD(1) + LD(2) ** -53, "float64", 0.5),
        (0.0, LD(2) ** -149, "float32", 1),  # subnormals: one unit for all
        (2.0**-149, LD(0), "float32", 1),
        (0.0, LD(2) ** -151, "float32", 0.25),
        (2.0**-126, LD(2) ** -126 + LD(2) ** -149, "float32", 1),
        (5e-324, LD(0), "float64", 1),
        (-0.0, LD(0), "float64", 0),
        (np.inf, LD(np.inf), "float32", 0),
        (-np.inf, LD(np.inf), "float32", np.inf),
        (np.inf, LD(2) ** 128, "float32", 0),
        (np.inf, LD(2) ** 128 - LD(2) ** 104, "float32", 1),
        (float(np.finfo("f4").max), LD(2) ** 128 - LD(2) ** 104, "float32", 0),
        (np.nan, LD(np.nan), "float64", 0),
        (np.nan, LD(1), "float64", np.inf),
        (1.0, LD(np.nan), "float64", np.inf),
        (1.0, LD(np.inf), "float64", np.inf),
        (1.0, LD(1) + LD(2) ** -10, "float16", 1),
        (2.0**-24, LD(0), "float16", 1),
    ],
)
def test_ulp_error(got, want, kind, ulps):
    assert ref.ulp_error(np.array(got, kind), want) == ulps


def test_ulp_error_in_the_unit_of_something_larger():
    assert ref.ulp_error(np.float32(2**-20), LD(0), at_least=LD(1)) == LD(2) ** -20 / LD(2) ** -23


def test_over_axes():
    x = np.random.default_rng(0).normal(size=(2, 3, 4))
    assert_array_equal(ref.over(ref.softmax, x, 1)[1, :, 2], ref.softmax(x[1, :, 2]))
    assert_array_equal(ref.over(ref.softmax, x, (0, -1))[:, 1], ref.softmax(x[:, 1].ravel()).reshape(2, 4))
    assert ref.over(ref.logsumexp, x, (0, 2), reduces=True).shape == (3,)
    assert ref.over(ref.logsumexp, x, None, reduces=True) == ref.logsumexp(x.ravel())
    assert ref.over(ref.softmax, np.array(3.0), -1) == 1
