"""Modifiers for backends whose kernels know none: tile by tile, in NumPy, into memory that stays in the cache."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from . import LOG_PROB, LOSS_GRAD, ONE_A_ROW, ROW_MAPS, Array, Modifiers

EXP, EXPM1 = "exp", "expm1"  # e^x and e^x - 1 for x <= 0: what run() does besides the ops of the backends
SHORT = 64  # elements of rows whose maxima NumPy finds up to eight times as fast column by column
Tile = tuple[slice, slice]
#: What `modify_in_numpy` does, which see.
Modify = Callable[[Array, Array, Array | None, Array | None, Array | None], None]


def tiles(outer: int, n: int, inner: int, size: int) -> Iterator[Tile]:
    """Cuts of (outer, inner) that hold about `size` elements, at least one row."""
    rows = max(1, size // n)
    columns = min(inner, rows)
    depth = max(1, rows // columns)
    for o in range(0, outer, depth):
        for i in range(0, inner, columns):
            yield slice(o, o + depth), slice(i, i + columns)


def run_modified(
    run: Callable[[str, Array], Array],
    op: str,
    x: Array,
    y: Array,
    modifiers: Modifiers,
    todo: Iterable[Tile],
    modify: Modify,
) -> None:
    """As Backend.run, for these tiles. run(op, z) gives the results of rows (rows, n), which may be in z itself."""
    rows_of_x = x.swapaxes(1, 2)
    modifiers = _rows_last(modifiers, x.shape)
    reduces = op in ONE_A_ROW
    rows_of_y = y if reduces else y.swapaxes(1, 2)
    in_y = not reduces and modifiers.sink is None and rows_of_y.flags.c_contiguous
    tile_of = _loss_tile if op in (LOG_PROB, LOSS_GRAD) else _tile
    room = np.empty(0, x.dtype)
    for tile in todo:
        with np.errstate(all="ignore"):
            rows = rows_of_x[tile]
            if in_y:
                z = rows_of_y[tile]
            else:
                shape = (*rows.shape[:2], rows.shape[2] + (modifiers.sink is not None))
                room = room if room.size >= math.prod(shape) else np.empty(math.prod(shape), x.dtype)
                z = room[: math.prod(shape)].reshape(shape)
            _bring(rows, z, modifiers, tile, modify)
            as_rows = z.reshape(-1, z.shape[2])
            results = tile_of(run, op, as_rows, modifiers, tile)
            if in_y and results is as_rows:
                continue
            results = results.reshape(*z.shape[:2], -1)
            rows_of_y[tile] = results[..., 0] if reduces else results[..., : x.shape[1]]


def _tile(run: Callable[[str, Array], Array], op: str, rows: Array, modifiers: Modifiers, tile: Tile) -> Array:
    """The results of a tile."""
    empty = None
    if op in ROW_MAPS and modifiers.empty is not None:
        short = rows.shape[1] <= SHORT
        empty = (functools.reduce(np.maximum, rows.T) if short else np.maximum.reduce(rows, axis=1)) == -np.inf
    _put(modifiers.lse, tile, lambda: run("logsumexp", rows))
    values = run(op, rows)
    if empty is not None:
        values[empty] = modifiers.empty
    return values


def _put(results: Array | None, tile: Tile, values: Callable[[], Array]) -> None:
    """One number a row, if it is wanted."""
    if results is not None:
        results[tile] = values().reshape(results[tile].shape)


def _loss_tile(run: Callable[[str, Array], Array], op: str, rows: Array, modifiers: Modifiers, tile: Tile) -> Array:
    """Log-probabilities of the targets, or gradients: p less 1 at the target is expm1(log p), where nothing cancels."""
    assert modifiers.target is not None
    target = modifiers.target[tile].reshape(-1, 1)
    ignored = target == modifiers.ignored
    target = np.where(ignored, 0, target)
    lse = np.zeros((len(rows), 1), rows.dtype)
    if modifiers.lse is not None or modifiers.lse_scale:
        lse = run("logsumexp", rows).reshape(-1, 1).astype(rows.dtype)
    _put(modifiers.lse, tile, lambda: lse)
    logs = run("log_softmax", rows if op == LOG_PROB else rows.copy())
    log_prob = np.take_along_axis(logs, target, axis=1)
    log_prob[ignored] = 0
    _put(modifiers.log_prob, tile, lambda: log_prob)
    if op == LOG_PROB:
        return log_prob
    one = np.ones((1, 1), rows.dtype)
    scale, temperature = (
        one if a is None else a[tile].reshape(-1, 1) for a in (modifiers.scale, modifiers.temperature)
    )
    by_loss, by_lse = scale / temperature, one * 0
    if modifiers.lse_scale:
        by_lse = rows.dtype.type(modifiers.lse_scale) * lse / temperature
    p, less = (run(op, log_prob.astype(rows.dtype).T).T for op in (EXP, EXPM1))
    gradients = run("softmax", rows)
    gradients *= by_loss + by_lse
    np.put_along_axis(gradients, target, by_loss * less + by_lse * p, axis=1)
    nothing = ignored | ((by_loss == 0) & (by_lse == 0))
    gradients[nothing[:, 0]] = 0
    return gradients


def _rows_last(modifiers: Modifiers, shape: tuple[int, ...]) -> Modifiers:
    """With arrays (outer, inner, n), n being 1 where it was."""
    outer, _, inner = shape
    moved: dict[str, Any] = {
        name: (a if name in ("lse", "log_prob") else np.broadcast_to(a, (outer, a.shape[1], inner))).swapaxes(1, 2)
        for name, a in zip(modifiers._fields, modifiers, strict=True)
        if isinstance(a, np.ndarray)
    }
    return modifiers._replace(**moved)


def _bring(rows: Array, whole: Array, modifiers: Modifiers, tile: Tile, modify: Modify) -> None:
    """Rows (outer, inner, n), which are that tile of the array, to where they are worked on, as Modifiers says."""
    z = whole[..., : rows.shape[2]]
    temperature, bias, where = (
        a if a is None else a[tile] for a in (modifiers.temperature, modifiers.bias, modifiers.where)
    )
    if modifiers.softcap:
        cap = z.dtype.type(modifiers.softcap)
        modify(rows, z, temperature, None, None)
        np.divide(z, cap, out=z)
        np.multiply(np.tanh(z, out=z), cap, out=z)
        rows, temperature = z, None
    modify(rows, z, temperature, bias, where)
    if modifiers.sink is not None:
        whole[..., -1] = modifiers.sink[tile][..., 0]


def modify_in_numpy(rows: Array, z: Array, temperature: Array | None, bias: Array | None, where: Array | None) -> None:
    """Rows (outer, inner, n), which may be z itself, divided by the temperature, biased and masked, into z."""
    if temperature is not None:
        np.divide(rows, temperature, out=z)
    elif rows is not z:
        z[...] = rows
    if bias is not None:
        np.add(z, bias, out=z)
    if where is not None:
        np.copyto(z, -np.inf, where=~where)
