"""Modifiers for backends whose kernels know none: tile by tile, in NumPy, into memory that stays in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from . import ROW_MAPS, Array, Modifiers

Tile = tuple[slice, slice]


def tiles(outer: int, n: int, inner: int, size: int) -> Iterator[Tile]:
    """Cuts of (outer, inner) that hold about `size` elements, at least one row."""
    rows = max(1, size // n)
    columns = min(inner, rows)
    depth = max(1, rows // columns)
    for o in range(0, outer, depth):
        for i in range(0, inner, columns):
            yield slice(o, o + depth), slice(i, i + columns)


def run_modified(
    run: Callable[[str, Array], Array], op: str, x: Array, y: Array, modifiers: Modifiers, todo: Iterable[Tile]
) -> None:
    """As Backend.run, for these tiles. run(op, z) gives the results of rows (rows, n), which may be in z itself."""
    rows_of_x = x.swapaxes(1, 2)
    modifiers = _rows_last(modifiers, x.shape)
    rows_of_y = y.swapaxes(1, 2) if op in ROW_MAPS else y
    for tile in todo:
        with np.errstate(all="ignore"):
            rows_of_y[tile] = _tile(run, op, rows_of_x[tile], modifiers, tile)


def _tile(run: Callable[[str, Array], Array], op: str, rows_of_x: Array, modifiers: Modifiers, tile: Tile) -> Array:
    """The results of a tile."""
    z = _modified(rows_of_x, modifiers, tile)
    rows = z.reshape(-1, z.shape[2])
    empty = None
    if op in ROW_MAPS and modifiers.empty is not None:
        empty = np.maximum.reduce(rows, axis=1) == -np.inf
    if modifiers.lse is not None:
        modifiers.lse[tile] = run("logsumexp", rows).reshape(*z.shape[:2], 1)
    values = run(op, rows)
    if empty is not None:
        values[empty] = modifiers.empty
    results = values.reshape(*z.shape[:2], -1)
    return results[..., : rows_of_x.shape[2]] if op in ROW_MAPS else results[..., 0]


def _rows_last(modifiers: Modifiers, shape: tuple[int, ...]) -> Modifiers:
    """With arrays (outer, inner, n), n being 1 where it was."""
    outer, _, inner = shape
    moved: dict[str, Any] = {
        name: (a if name == "lse" else np.broadcast_to(a, (outer, a.shape[1], inner))).swapaxes(1, 2)
        for name, a in zip(modifiers._fields, modifiers, strict=True)
        if isinstance(a, np.ndarray)
    }
    return modifiers._replace(**moved)


def _modified(rows: Array, modifiers: Modifiers, tile: Tile) -> Array:
    """A new array of rows (outer, inner, n), which are that tile of the array, as Modifiers says."""
    n = rows.shape[2]
    whole = np.empty((*rows.shape[:2], n + (modifiers.sink is not None)), rows.dtype)
    z = whole[..., :n]
    if modifiers.temperature is None:
        z[...] = rows
    else:
        np.divide(rows, modifiers.temperature[tile], out=z)
    if modifiers.softcap:
        cap = z.dtype.type(modifiers.softcap)
        np.divide(z, cap, out=z)
        np.multiply(np.tanh(z, out=z), cap, out=z)
    if modifiers.bias is not None:
        np.add(z, modifiers.bias[tile], out=z)
    if modifiers.where is not None:
        np.copyto(z, -np.inf, where=~modifiers.where[tile])
    if modifiers.sink is not None:
        whole[..., n:] = modifiers.sink[tile]
    return whole
