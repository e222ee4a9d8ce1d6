"""Fit the constants of the kernels and write the two generated files that hold them.

    python c/fit.py           write c/coefficients.h and _backends/coefficients.py
    python c/fit.py --check   exit with an error if they are not what it would write

Exponential, |r| <= ln(2)/2:
    e^r = 1 + (r + r^2 q(r)),                       q = C2 + C3 r + C4 r^2 + ...
Logarithm, sqrt(1/2) <= 1+f <= sqrt(2), with s = f/(2+f), w = s^2:
    log(1+f) = f - (f^2/2 - s (f^2/2 + R(w))),      R = w (C1 + C2 w + ...)

Both are minimax fits of the relative error of the whole.  Coefficients are rounded from
the lowest up, and after each the rest are fitted again, to make up for its rounding.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from mpmath import atanh, cos, exp, ln2, lu_solve, matrix, mp, mpf, pi, polyval, sqrt

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "c" / "coefficients.h"
MODULE = ROOT / "fastsoftmax" / "_backends" / "coefficients.py"
Points = Sequence[mpf]
Function = Callable[[mpf], mpf]

POINTS = 600  # of the grid; even, so that a symmetric one leaves out zero
MARGIN = 1 + mpf(2) ** -14  # the reduction may miss the nearest multiple of ln 2


class Format(NamedTuple):
    """A floating-point type and the size of its polynomials."""

    name: str
    suffix: str  # of a C literal
    bits: int  # of the significand
    multiple_bits: int  # n * LN2_HI_NOFMA is exact for |n| < 2**multiple_bits
    exp_degree: int
    log_terms: int


FORMATS = (
    Format("F32", "f", 24, 9, exp_degree=6, log_terms=4),
    Format("F64", "", 53, 12, exp_degree=11, log_terms=7),
)


class Constants(NamedTuple):
    """All that is written for one type."""

    form: Format
    scalars: dict[str, mpf]
    polynomials: dict[str, list[mpf]]  # lowest coefficient first
    notes: list[str]


def rounded(x: mpf, bits: int) -> mpf:
    """Return x rounded to nearest with so many bits."""
    return mpf(x, prec=bits, rounding="n")


def chebyshev(low: mpf, high: mpf) -> list[mpf]:
    """Return the Chebyshev points of the second kind on [low, high], ascending."""
    angles = (pi * i / (POINTS - 1) for i in range(POINTS))
    return [(low + high - (high - low) * cos(a)) / 2 for a in angles]


def remez(xs: Points, target: Points, weight: Points, terms: int) -> list[mpf]:
    """Return the polynomial least in max |weight * (polynomial - target)| over xs."""
    at = [(len(xs) - 1) * (2 * i + 1) // (2 * terms + 2) for i in range(terms + 1)]
    while True:
        rows = [[*(xs[i] ** j for j in range(terms)), 1 / weight[i]] for i in at]
        for row in rows[1::2]:
            row[-1] *= -1
        solution = lu_solve(matrix(rows), matrix([target[i] for i in at]))
        poly, level = list(solution[:-1]), solution[terms]
        values = (polyval(poly[::-1], x) for x in xs)
        errors = [w * (v - t) for v, t, w in zip(values, target, weight, strict=True)]
        worst = max(range(len(xs)), key=lambda i: abs(errors[i]))
        if abs(errors[worst]) <= abs(level) * (1 + mpf(10) ** -30):
            return poly
        # Let the worst point in for a neighbour of its sign, or else for the far end.
        k = sum(i < worst for i in at)
        near = [j for j in at[max(k - 1, 0) : k + 1] if errors[j] * errors[worst] > 0]
        at.remove(near[0] if near else at[-1 if k == 0 else 0])
        at = sorted([*at, worst])


def fit(xs: Points, target: Function, weight: Function, terms: int, bits: int) -> tuple[list[mpf], str]:
    """Fit target under weight with rounded coefficients; return them and a note."""
    found: list[mpf] = []
    errors = [-target(x) for x in xs]
    weights = [abs(weight(x)) for x in xs]
    for k in range(terms):
        rest = [-e / x**k for x, e in zip(xs, errors, strict=True)]
        size = [w * abs(x) ** k for x, w in zip(xs, weights, strict=True)]
        found.append(rounded(remez(xs, rest, size, terms - k)[0], bits))
        errors = [e + found[k] * x**k for x, e in zip(xs, errors, strict=True)]
    zipped = zip(xs, errors, weights, strict=True)
    error, x = (float(v) for v in max((abs(w * e) * 2**bits, x) for x, e, w in zipped))
    return found, f"relative approximation error {error:.4f} * 2^-{bits} at {x:.6f}"


def constants(form: Format) -> Constants:
    """Compute all constants of one type."""
    hi, short = (rounded(+ln2, form.bits - n) for n in (0, form.multiple_bits))
    scalars = {"LOG2E": rounded(1 / ln2, form.bits), "LN2": hi, "LN2_HI": hi}
    scalars |= {"LN2_LO": rounded(ln2 - hi, form.bits), "LN2_HI_NOFMA": short}
    scalars |= {"LN2_LO_NOFMA": rounded(ln2 - short, form.bits)}
    exp_c, exp_note = fit(  # in r
        chebyshev(-ln2 / 2 * MARGIN, ln2 / 2 * MARGIN),
        lambda r: (exp(r) - 1 - r) / r**2,
        lambda r: r**2 / exp(r),
        *(form.exp_degree - 1, form.bits),
    )
    log_c, log_note = fit(  # in w = s^2; log(1+f) = 2 atanh(s); s <= (sqrt(2) - 1)^2
        chebyshev(mpf(0), (sqrt(2) - 1) ** 4 * MARGIN)[1:],
        lambda w: (2 * atanh(sqrt(w)) / sqrt(w) - 2) / w,
        lambda w: w * sqrt(w) / (2 * atanh(sqrt(w))),
        *(form.log_terms, form.bits),
    )
    notes = [f"{form.name} EXP: degree {form.exp_degree}, {exp_note} (r)"]
    notes += [f"{form.name} LOG: {form.log_terms} terms, {log_note} (w)"]
    return Constants(form, scalars, {"EXP": exp_c, "LOG": log_c}, notes)


def literal(x: mpf) -> str:
    """Return x in hexadecimal, without trailing zeros."""
    return re.sub(r"\.?0+p", "p", float(x).hex())


def header(results: Sequence[Constants]) -> str:
    """Return the text of the C header; polynomials are initialisers, lowest first."""
    lines = ["/* written by c/fit.py; do not edit */", "#ifndef FSM_COEFFICIENTS_H"]
    lines += ["#define FSM_COEFFICIENTS_H"]
    for form, scalars, polynomials, notes in results:
        define = f"#define FSM_{form.name}_"
        lines += ["", *(f"/* {note} */" for note in notes)]
        lines += [f"{define}{name} {literal(c)}{form.suffix}" for name, c in scalars.items()]
        for name, poly in polynomials.items():
            values = ",".join(f" \\\n    {literal(c)}{form.suffix}" for c in poly)
            lines += [f"{define}{name} {{{values}}}"]
    return "\n".join([*lines, "", "#endif", ""])


MODULE_HEAD = '''\
# written by c/fit.py; do not edit
"""Constants of the kernels, the same bits as in c/coefficients.h."""

from typing import NamedTuple


class Constants(NamedTuple):
    """Constants of a type; EXP starts at r**2, LOG at s**2."""
'''


def module(results: Sequence[Constants]) -> str:
    """Return the text of the Python module."""
    lines = [MODULE_HEAD, *(f"    {name}: float" for name in results[0].scalars)]
    lines += [f"    {name}: tuple[float, ...]" for name in results[0].polynomials] + [""]
    for form, scalars, polynomials, notes in results:
        lines += ["", *(f"# {note}" for note in notes), f"{form.name} = Constants("]
        for name, c in scalars.items():
            lines += [f'    {name}=float.fromhex("{literal(c)}"),']
        for name, poly in polynomials.items():
            values = (f'        float.fromhex("{literal(c)}"),' for c in poly)
            lines += [f"    {name}=(", *values, "    ),"]
        lines += [")"]
    return "\n".join([*lines, ""])


def main() -> None:
    """Write the files, or check them."""
    parser = argparse.ArgumentParser(description="Fit the constants of the kernels.")
    parser.add_argument("--check", action="store_true", help="compare, do not write")
    check = parser.parse_args().check
    mp.prec = 300
    results = [constants(form) for form in FORMATS]
    print(*(note for found in results for note in found.notes), sep="\n")
    for path, text in (HEADER, header(results)), (MODULE, module(results)):
        if not check:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"{path} is out of date: run python c/fit.py")


if __name__ == "__main__":
    main()
