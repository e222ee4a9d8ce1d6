"""SciPy: scipy.special, which has no out=."""

from collections.abc import Iterator
from functools import partial

import scipy.special

from . import DOUBLE, SINGLE, Job, Task

DISTRIBUTION = "scipy"
THREADED = False
DTYPES = SINGLE + DOUBLE
GIVEN: tuple[str, ...] = ()


def setup(threads: int) -> None:
    """SciPy computes all of this on one thread."""


def jobs(task: Task) -> Iterator[Job]:
    call = partial(getattr(scipy.special, task.op), task.x, axis=task.axis)
    yield Job(call, call)
