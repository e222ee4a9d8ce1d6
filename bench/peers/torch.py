"""PyTorch on the CPU."""

from collections.abc import Iterator
from functools import partial

import ml_dtypes
import numpy as np
import torch

from . import DOUBLE, HALVES, SINGLE, Array, Job, Task

DISTRIBUTION = "torch"
THREADED = True
DTYPES = SINGLE + DOUBLE + HALVES
GIVEN = ("temperature", "bias", "where", "target")


def setup(threads: int) -> None:
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)


def tensor(x: Array) -> torch.Tensor:
    """The array as a tensor, its memory as it is."""
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def array(x: torch.Tensor) -> Array:
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()


def composed_logsumexp(task: Task, x: torch.Tensor) -> Job:
    """On two threads faster than torch.logsumexp."""
    m = torch.amax(x, task.axis, keepdim=True)
    s, e = torch.empty_like(m), torch.empty_like(x)

    def call() -> None:
        torch.amax(x, task.axis, keepdim=True, out=m)
        torch.sub(x, m, out=e).exp_()
        torch.sum(e, task.axis, keepdim=True, out=s).log_().add_(m)

    return Job(call, lambda: array(s), "composed")


def modified(task: Task) -> Iterator[Job]:
    """A step, and softmax of what it gives; a mask also as a bias."""
    x, y = tensor(task.x), task.empty()
    z, out, softmax = torch.empty_like(x), tensor(y), getattr(torch, task.op)
    if "temperature" in task.given:
        steps = {"": partial(torch.div, x, task.given["temperature"], out=z)}
    elif "bias" in task.given:
        steps = {"": partial(torch.add, x, tensor(task.given["bias"]), out=z)}
    else:
        where, nothing = torch.from_numpy(task.given["where"]), torch.tensor(-torch.inf, dtype=x.dtype)
        bias = torch.zeros(where.shape, dtype=x.dtype).masked_fill_(~where, -torch.inf)
        steps = {"where": partial(torch.where, where, x, nothing, out=z), "bias": partial(torch.add, x, bias, out=z)}
    for variant, step in steps.items():

        def call(step: partial = step) -> None:
            step()
            softmax(z, task.axis, out=out)

        yield Job(call, lambda: y, variant)


def loss(task: Task) -> Job:
    x, target = tensor(task.x), torch.from_numpy(np.asarray(task.given["target"]))
    if task.op == "cross_entropy":
        call = partial(torch.nn.functional.cross_entropy, x, target, reduction="none")
        return Job(call, lambda: array(call()))
    leaf = x.detach().requires_grad_()

    def gradient() -> torch.Tensor:
        with torch.enable_grad():
            value = torch.nn.functional.cross_entropy(leaf, target, reduction="sum")
            return torch.autograd.grad(value, leaf)[0]

    return Job(gradient, lambda: array(gradient()))


def jobs(task: Task) -> Iterator[Job]:
    if "target" in task.given:
        yield loss(task)
        return
    if task.given:
        yield from modified(task)
        return
    x = tensor(task.x)
    call = partial(getattr(torch, task.op), x, task.axis)
    if not task.out:
        yield Job(call, lambda: array(call()))
        return
    y = task.empty()
    yield Job(partial(call, out=tensor(y)), lambda: y)
    if task.op == "logsumexp":
        yield composed_logsumexp(task, x)
