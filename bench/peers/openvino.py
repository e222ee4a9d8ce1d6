"""OpenVINO with input and output set beforehand, in one stream."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import openvino
from openvino import Node
from openvino import opset13 as ops

from . import SINGLE, Job, Task
from .formula import formula

DISTRIBUTION = "openvino"
THREADED = True
DTYPES = SINGLE
GIVEN: tuple[str, ...] = ()


def setup(threads: int) -> None:
    """Threads are set for each model."""


class Graph:
    """OpenVINO's primitives along one axis."""

    def __init__(self, axis: int) -> None:
        self.axis = np.array([axis])

    def max(self, x: Node) -> Node:
        return ops.reduce_max(x, self.axis, keep_dims=True)

    def sum(self, x: Node) -> Node:
        return ops.reduce_sum(x, self.axis, keep_dims=True)

    exp, log = staticmethod(ops.exp), staticmethod(ops.log)
    add, sub, div = staticmethod(ops.add), staticmethod(ops.subtract), staticmethod(ops.divide)


def compiled(task: Task) -> openvino.CompiledModel:
    x = ops.parameter(task.x.shape, np.float32)
    if task.op == "logsumexp":
        y = formula(task.op, x, Graph(task.axis))
    else:
        y = getattr(ops, task.op)(x, task.axis % task.x.ndim)
    settings = {
        "INFERENCE_NUM_THREADS": task.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    return openvino.Core().compile_model(openvino.Model([y], [x]), "CPU", settings)


def jobs(task: Task) -> Iterator[Job]:
    if not task.out:
        return
    y = task.empty()
    if task.op == "logsumexp":
        y = np.expand_dims(y, task.axis)
    request = compiled(task).create_infer_request()
    request.set_input_tensor(openvino.Tensor(task.x, shared_memory=True))
    request.set_output_tensor(openvino.Tensor(y, shared_memory=True))
    yield Job(partial(request.infer, share_outputs=True), lambda: y)
