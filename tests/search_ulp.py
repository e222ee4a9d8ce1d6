"""Search for the rows with the largest errors: hill climbing from random rows, with restarts.

python tests/search_ulp.py [--minutes M] [--seed S] [--functions f,g] [--types t,u] [--record] [backend ...]

prints the worst error of each function and type with the row that reaches it, exact and ready to be pasted; long rows
as recipes (found_rows.py). --record keeps them in worst_rows.json, whence they are sets of the suite. Exits 1 if a row
is past its bound.
"""

import argparse
import sys
import time

import found_rows
import measured
import numpy as np
from found_rows import KINDS, Recipe, text_of

import fastsoftmax

CHILDREN, PARENTS, PATIENCE = 400, 40, 12
LENGTHS = (2, 2, 3, 4, 5, 7, 8, 10, 12, 16, 17, 20)
LONG_LENGTHS = (31, 33, 63, 65, 127, 129, 255, 257, 1000, 1025, 4096, 8191, 8192, 8193, 20_000)
WIDTH = {"float32": 104.0, "float64": 745.0}


def row_errors(function, x, backend):
    """The worst of each row's errors."""
    if x.shape[1] == 1:
        x = x[:, 0]
    with np.errstate(all="ignore"):
        error = measured.errors(function, measured.exactly_what(function, x), backend)[0]
    return error.reshape(len(x), -1).max(axis=1).astype(float)


# ---- Short rows: numbers ----


def random_rows(rng, rows, n, dtype, limit):
    """Ordinary, wide, nearly equal, with one above the others, and of all magnitudes."""
    size, width = np.exp2(rng.uniform(-6, 7, (rows, 1))), WIDTH[dtype]
    x = rng.normal(0, size, (rows, n))
    kind = rng.integers(0, 5, (rows, 1))
    x = np.where(kind == 1, rng.uniform(-width, 0, (rows, n)) + rng.normal(0, size), x)
    x = np.where(kind == 2, rng.normal(0, size) + rng.integers(-9, 10, (rows, n)) * 2.0**-20 * size, x)
    x = np.where((kind == 3) & (np.arange(n) == rng.integers(0, n, (rows, 1))), rng.uniform(0, 40, (rows, 1)), x)
    most = min(np.log2(limit), float(np.log2(np.finfo(dtype).max)) - 1)
    magnitudes = np.exp2(rng.uniform(-most, most, (rows, n))) * rng.choice([-1, 1], (rows, n))
    return np.where(kind == 4, magnitudes, x).astype(dtype)


def nudged(rng, x, most):
    """A few units in the last place away, on either side."""
    unsigned = x.view(f"u{x.itemsize}")
    steps = np.exp2(rng.uniform(0, most, x.shape)).astype(np.int64) * rng.choice([-1, 1], x.shape)
    return (unsigned + steps.astype(unsigned.dtype)).view(x.dtype)


def mutated(rng, x, limit):
    """Each row changed in one of six ways; what is no number or beyond the limit stays as it was."""
    rows, n = x.shape
    one = np.arange(n) == rng.integers(0, n, (rows, 1))
    bits = {4: 22, 8: 50}[x.itemsize]
    other = np.take_along_axis(x, rng.integers(0, n, (rows, 1)), 1)
    step = (rng.normal(0, 1, (rows, 1)) * np.exp2(rng.uniform(-bits, 3, (rows, 1)))).astype(x.dtype)
    changes = [
        np.where(one, nudged(rng, x, 4), x),
        np.where(one, nudged(rng, x, bits), x),
        np.where(rng.random((rows, n)) < 0.5, nudged(rng, x, 3), x),
        np.where(one, nudged(rng, other, 3), x),
        x + step,
        np.where(one, random_rows(rng, rows, n, x.dtype.name, limit), x),
    ]
    new = np.choose(rng.integers(0, len(changes), (rows, 1)), changes)
    return np.where(abs(new) < limit, new, x)


def climb(function, dtype, backend, rng, limit):
    """From random rows of some length, or from known ones, to a worst one: (error, row)."""
    is_element = measured.FUNCTIONS[function].set_names is measured.ELEMENTS
    known = [found_rows.row_of(text, dtype) for text in found_rows.texts(function, dtype) if "seed" not in text]
    if known and rng.random() < 0.3:  # on from what was found before
        start = known[rng.integers(len(known))]
        x = mutated(rng, np.repeat(start[None], CHILDREN, axis=0), limit)
    else:
        x = random_rows(rng, CHILDREN, 1 if is_element else int(rng.choice(LENGTHS)), dtype, limit)
    best, stale = -1.0, 0
    while stale < PATIENCE:
        error = row_errors(function, x, backend)
        order = np.argsort(-error)[:PARENTS]
        stale = 0 if error[order[0]] > best else stale + 1
        best, parents = float(error[order[0]]), x[order]
        children = mutated(rng, np.repeat(parents, CHILDREN // PARENTS, axis=0), limit)
        x = np.concatenate([parents, children])
    return best, text_of(parents[0])


# ---- Long rows: recipes ----


def random_recipe(rng, dtype, n):
    low = rng.normal(0, 2.0 ** rng.integers(-3, 8))
    spread = rng.choice([1, 10, WIDTH[dtype]]) * rng.normal()
    top = low + rng.choice([0.0, 2.0 ** rng.integers(-20, 6), WIDTH[dtype] * rng.random()])
    return Recipe(str(rng.choice(KINDS)), n, float(top), float(low), float(spread), int(rng.integers(1 << 30)))


def changed_recipe(rng, recipe):
    name = rng.choice(["top", "low", "spread", "seed"])
    if name == "seed":
        return recipe._replace(seed=int(rng.integers(1 << 30)))
    step = rng.normal() * 2.0 ** rng.integers(-22, 3)
    return recipe._replace(**{name: float(getattr(recipe, name) + step)})


def climb_long(function, dtype, backend, rng):
    """The same for the numbers of a recipe."""
    n = int(rng.choice(LONG_LENGTHS))
    many = int(np.clip(40_000 // n, 6, 60))
    recipes, best, stale = [random_recipe(rng, dtype, n) for _ in range(many)], -1.0, 0
    while stale < PATIENCE // 2:
        error = row_errors(function, np.stack([recipe.row(dtype) for recipe in recipes]), backend)
        order = np.argsort(-error)[: max(2, many // 6)]
        stale = 0 if error[order[0]] > best else stale + 1
        best, parents = float(error[order[0]]), [recipes[i] for i in order]
        recipes = parents + [changed_recipe(rng, parents[i % len(parents)]) for i in range(many - len(parents))]
    return best, parents[0].text()


# ---- All of it ----


def search(function, dtype, backend, rng, seconds):
    """The worst short row and the worst long one, as {function, dtype, backend, ulp, row}."""
    names = measured.FUNCTIONS[function].set_names
    limit = 1e4 if names is measured.sets.ORDINARY_SETS else np.inf
    kinds = [lambda: climb(function, dtype, backend, rng, limit)]
    if names not in (measured.ELEMENTS, measured.sets.CUMULATIVE_SETS):
        kinds.append(lambda: climb_long(function, dtype, backend, rng))
    for kind in kinds:
        end, best = time.monotonic() + seconds / len(kinds), (-1.0, "")
        while time.monotonic() < end or best[0] < 0:
            best = max(best, kind())
        what = {"function": function, "dtype": dtype, "backend": backend}
        yield what | {"ulp": round(best[0], 4), "row": best[1]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--functions", default=",".join(measured.FUNCTIONS))
    parser.add_argument("--types", default="float32,float64")
    parser.add_argument("--record", action="store_true", help="keep what is worse than before in worst_rows.json")
    there = fastsoftmax.backends()
    parser.add_argument("backends", nargs="*", default=[n for n in there if n in (there[0], "c-scalar", "numpy")])
    given = parser.parse_args()
    functions, types = given.functions.split(","), given.types.split(",")
    seconds = 60 * given.minutes / (len(functions) * len(types) * len(given.backends))
    found, beyond = [], 0
    for backend in given.backends:
        for function in functions:
            for dtype in types:
                rng = np.random.default_rng([given.seed, *function.encode(), *dtype.encode()])
                for one in search(function, dtype, backend, rng, seconds):
                    bound = measured.FUNCTIONS[function].bounds[dtype]
                    past = one["ulp"] > bound
                    beyond += past
                    found.append(one)
                    print(f"{function} {dtype} {backend} {one['ulp']:.4f} of {bound}{' PAST' * past}: {one['row']}")
                    sys.stdout.flush()
        if given.record:
            found_rows.save(found)
    sys.exit(beyond > 0)


if __name__ == "__main__":
    main()
