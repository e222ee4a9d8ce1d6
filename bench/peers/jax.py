"""JAX on the CPU, jitted; it always makes its results anew."""

import os
from collections.abc import Iterator

import jax
import numpy as np

from . import DOUBLE, HALVES, SINGLE, Array, Job, Task

DISTRIBUTION = "jax"
THREADED = True
DTYPES = SINGLE + DOUBLE + HALVES
MODIFIES = True


def setup(threads: int) -> None:
    """XLA reads the environment when the first array is made; NPROC is the size of its pool."""
    os.environ["NPROC"] = str(threads)
    if threads == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)


def jobs(task: Task) -> Iterator[Job]:
    x = jax.numpy.asarray(task.x)
    given = {name: value if name == "temperature" else jax.numpy.asarray(value) for name, value in task.given.items()}

    @jax.jit
    def function(x: jax.Array) -> jax.Array:
        if "temperature" in given:
            x = x / given["temperature"]
        if "bias" in given:
            x = x + given["bias"]
        if "where" in given:
            x = jax.numpy.where(given["where"], x, -jax.numpy.inf)
        return getattr(jax.nn, task.op)(x, axis=task.axis)

    def call() -> jax.Array:
        return function(x).block_until_ready()

    def result() -> Array:
        return np.asarray(call())

    yield Job(call, result)
