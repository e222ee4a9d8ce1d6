"""JAX on the CPU, jitted; it always makes its results anew."""

import os
from collections.abc import Iterator

import jax
import numpy as np

from . import DOUBLE, HALVES, SINGLE, Array, Job, Task

DISTRIBUTION = "jax"
THREADED = True
DTYPES = SINGLE + DOUBLE + HALVES
GIVEN = ("temperature", "bias", "where", "target")


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
        if "target" not in given:
            return getattr(jax.nn, task.op)(x, axis=task.axis)
        return losses(x) if task.op == "cross_entropy" else jax.value_and_grad(lambda x: losses(x).sum())(x)[1]

    def losses(x: jax.Array) -> jax.Array:
        """As optax has it."""
        index = jax.numpy.expand_dims(given["target"], task.axis)
        picked = jax.numpy.take_along_axis(x, index, task.axis).squeeze(task.axis)
        return jax.nn.logsumexp(x, axis=task.axis) - picked

    def call() -> jax.Array:
        return function(x).block_until_ready()

    def result() -> Array:
        return np.asarray(call())

    yield Job(call, result)
