"""Us."""

from collections.abc import Iterator
from functools import partial

import fastsoftmax

from . import DOUBLE, HALVES, SINGLE, Job, Task

DISTRIBUTION = "fastsoftmax"
THREADED = True
DTYPES = SINGLE + DOUBLE + HALVES
MODIFIES = True


def setup(threads: int) -> None:
    fastsoftmax.set_num_threads(threads)


def jobs(task: Task) -> Iterator[Job]:
    call = partial(getattr(fastsoftmax, task.op), task.x, axis=task.axis, **task.given)
    if task.out:
        y = task.empty()
        yield Job(partial(call, out=y), lambda: y)
    else:
        yield Job(call, call)
