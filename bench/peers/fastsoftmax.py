"""Us."""

from collections.abc import Iterator
from functools import partial

import fastsoftmax

from . import DOUBLE, HALVES, SINGLE, Job, Task

DISTRIBUTION = "fastsoftmax"
THREADED = True
DTYPES = SINGLE + DOUBLE + HALVES
GIVEN = ("temperature", "bias", "where", "target")


def loss(task: Task) -> Job:
    call = partial(fastsoftmax.cross_entropy, task.x, task.given["target"], task.axis)
    if task.op == "cross_entropy":
        call = partial(call, reduction="none")
        return Job(call, call)
    y = task.empty()
    return Job(partial(call, reduction="sum", grad_out=y), lambda: y)


def setup(threads: int) -> None:
    fastsoftmax.set_num_threads(threads)


def jobs(task: Task) -> Iterator[Job]:
    if "target" in task.given:
        yield loss(task)
        return
    call = partial(getattr(fastsoftmax, task.op), task.x, axis=task.axis, **task.given)
    if task.out:
        y = task.empty()
        yield Job(partial(call, out=y), lambda: y)
    else:
        yield Job(call, call)
