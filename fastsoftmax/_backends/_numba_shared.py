# What is jitted or staged is not Python to a type checker: Numba types it, from the arguments.
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-untyped-calls=False
# mypy: check-untyped-defs=False
"""Huge rows, one after another, whose blocks threads share: maxima, sums, and the last pass.

All threads run the same function with the same `work` and `claims`. work holds four numbers a block: the maximum, the
sum (high and low) and the count. claims counts, for each row and step, the blocks that were claimed and those that are
done; nobody goes on before all are. Sums are added in order, whoever made them.
"""

from __future__ import annotations

import numpy as np

from fastsoftmax._backends._numba_lanes import added, jit, rounded, seen
from fastsoftmax._backends._numba_rows import (
    block_sum,
    largest,
    lower,
    mask_far,
    mask_near,
    scale,
    store_far,
    store_near,
    with_block,
)
from fastsoftmax._backends._numba_sums import (
    BLOCK,
    HIGH,
    ROOM,
    clear,
    close_log_softmax,
    close_log_sum_exp,
    close_softmax,
    enter,
)

STEPS = 3
PATIENCE = 1 << 14  # looks at what others have done before it is better to sleep: they may need this processor


@jit
def all_done(claims, slot, blocks):
    looks = 0
    while seen(claims, slot + 1) < blocks and looks < PATIENCE:
        looks += 1
    return looks < PATIENCE


@jit
def span(block, n):
    """From which to which element."""
    return block * BLOCK, min((block + 1) * BLOCK, n)


@jit
def maxima(x, n, work, claims, slot):
    b = added(claims, slot, 1)
    while b < work.shape[1]:
        work[0, b] = largest(x, *span(b, n))
        added(claims, slot + 1, 1)
        b = added(claims, slot, 1)
    return all_done(claims, slot, work.shape[1])


@jit
def maximum_of(x, work):
    """The row's maximum, in x's type."""
    m = -np.inf
    for b in range(work.shape[1]):
        m = max(m, work[0, b])
    return rounded(m, x)


@jit
def sums(near, far, x, y, n, work, claims, slot):
    m = maximum_of(x, work)
    b = added(claims, slot, 1)
    while b < work.shape[1]:
        work[1, b], work[2, b], work[3, b] = block_sum(near, far, x, y, *span(b, n), m)
        added(claims, slot + 1, 1)
        b = added(claims, slot, 1)
    return all_done(claims, slot, work.shape[1])


@jit
def enter_row(x, work, narrow, wide):
    """What the blocks have found, as the ledger's first row."""
    clear(narrow, wide)
    total, total_low, count = 0.0, 0.0, 0.0
    for b in range(work.shape[1]):
        total, total_low = with_block(total, total_low, work[1, b], work[2, b])
        count += work[3, b]
    narrow[0] = maximum_of(x, work)
    enter(wide, 0, total, total_low, count)


@jit
def last_pass(change, x, y, n, work, claims, slot, narrow):
    b = added(claims, slot, 1)
    while b < work.shape[1]:
        change(x, y, *span(b, n), narrow, 0)
        added(claims, slot + 1, 1)
        b = added(claims, slot, 1)
    return all_done(claims, slot, work.shape[1])


@jit
def scale_to(x, y, begin, end, narrow, k):
    scale(y, begin, end, narrow, k)


@jit
def shared_softmax(x, y, n, work, claims, slot, narrow, wide, _):
    if not maxima(x, n, work, claims, slot) or not sums(store_near, store_far, x, y, n, work, claims, slot + 2):
        return False
    enter_row(x, work, narrow, wide)
    close_softmax(narrow, wide, 0)
    return last_pass(scale_to, x, y, n, work, claims, slot + 4, narrow)


@jit
def shared_log_softmax(x, y, n, work, claims, slot, narrow, wide, _):
    if not maxima(x, n, work, claims, slot) or not sums(mask_near, mask_far, x, x, n, work, claims, slot + 2):
        return False
    enter_row(x, work, narrow, wide)
    close_log_softmax(narrow, wide, 0)
    return last_pass(lower, x, y, n, work, claims, slot + 4, narrow)


@jit
def shared_log_sum_exp(x, y, n, work, claims, slot, narrow, wide, log_n):
    if not maxima(x, n, work, claims, slot) or not sums(mask_near, mask_far, x, x, n, work, claims, slot + 2):
        return False
    enter_row(x, work, narrow, wide)
    close_log_sum_exp(narrow, wide, 0, log_n)
    if added(claims, slot + 4, 1) == 0:
        y[0] = narrow[HIGH * ROOM]
        added(claims, slot + 5, 1)
    return all_done(claims, slot + 4, 1)
