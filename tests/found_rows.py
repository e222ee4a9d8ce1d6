"""The worst rows that search_ulp.py has found, kept in worst_rows.json: short ones as they are, long ones as recipes.

Numbers are in hexadecimal, as float.hex() has them: exact, and ready to be pasted.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

FILE = Path(__file__).with_name("worst_rows.json")
KINDS = ("one above", "normal", "uniform", "ramp", "alternating", "blocks")


class Recipe(NamedTuple):
    """A long row by its structure."""

    kind: str
    n: int
    top: float
    low: float
    spread: float
    seed: int

    def row(self, dtype):
        rng, n = np.random.default_rng(self.seed), self.n
        place = np.arange(n)
        x = {
            "one above": lambda: np.full(n, self.low),
            "normal": lambda: rng.normal(self.low, abs(self.spread), n),
            "uniform": lambda: self.low + self.spread * rng.random(n),
            "ramp": lambda: self.low + self.spread * place / n,
            "alternating": lambda: np.where(place // (1 + self.seed % 40) % 2, self.low, self.low + self.spread),
            "blocks": lambda: np.where(place % 8192 < self.seed % 8192, self.low, self.low + self.spread),
        }[self.kind]()
        x[self.seed % n] = self.top
        return x.astype(dtype)

    def text(self):
        numbers = " ".join(number.hex() for number in (self.top, self.low, self.spread))
        return f"{self.kind}, n={self.n}, seed {self.seed}: {numbers}"


def read_recipe(text):
    head, numbers = text.split(": ")
    kind, n, seed = head.split(", ")
    return Recipe(kind, int(n[2:]), *map(float.fromhex, numbers.split()), int(seed[5:]))


def text_of(row):
    return " ".join(float(value).hex() for value in row)


def row_of(text, dtype):
    """The row that a text stands for."""
    if "seed" in text:
        return read_recipe(text).row(dtype)
    with np.errstate(over="ignore"):  # found for float64, cast to float32
        return np.array([float.fromhex(value) for value in text.split()]).astype(dtype)


def load():
    """[{function, dtype, backend, ulp, row}, ...]"""
    return json.loads(FILE.read_text()) if FILE.exists() else []


def texts(function, dtype):
    """The rows found for a function and a type, on any backend."""
    return [one["row"] for one in load() if (one["function"], one["dtype"]) == (function, dtype)]


def save(found):
    """Keep the worst of each function, type, backend and kind of row, of what is known and new; not those of a half."""
    worst = {}
    for one in sorted([*load(), *found], key=lambda one: one["ulp"]):
        if one["ulp"] > 0.51:
            worst[one["function"], one["dtype"], one["backend"], "seed" in one["row"]] = one
    kept = sorted(worst.values(), key=lambda one: [one[key] for key in ("function", "dtype", "backend", "row")])
    FILE.write_text(json.dumps(kept, indent=1) + "\n")


def by_length(limit=np.inf):
    """{n: texts}, of the rows whose numbers are all below the limit; single elements are of length 1."""
    groups = {}
    for text in sorted({one["row"] for one in load()}):
        row = row_of(text, "float64")
        if abs(row).max() < limit:
            groups.setdefault(row.size, []).append(text)
    return dict(sorted(groups.items()))
