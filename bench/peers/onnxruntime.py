"""ONNX Runtime with input and output bound."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import onnxruntime
from onnx import ModelProto, TensorProto, helper, numpy_helper

from . import DOUBLE, SINGLE, Job, Task
from .formula import formula

DISTRIBUTION = "onnxruntime"
THREADED = True
DTYPES = SINGLE + DOUBLE
GIVEN = ("temperature", "bias", "where", "target")
TYPES = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}


def setup(threads: int) -> None:
    """Threads are set for each session."""


class Graph:
    """ONNX nodes in the making; a value is known by its name."""

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self.nodes = []

    def node(self, kind: str, *inputs: str, **attributes: int | str) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [f"v{len(self.nodes)}"], **attributes))
        return self.nodes[-1].output[0]

    def max(self, x: str) -> str:
        return self.node("ReduceMax", x, "axes")

    def sum(self, x: str) -> str:
        return self.node("ReduceSum", x, "axes")

    def exp(self, x: str) -> str:
        return self.node("Exp", x)

    def log(self, x: str) -> str:
        return self.node("Log", x)

    def add(self, x: str, y: str) -> str:
        return self.node("Add", x, y)

    def sub(self, x: str, y: str) -> str:
        return self.node("Sub", x, y)

    def div(self, x: str, y: str) -> str:
        return self.node("Div", x, y)

    def modified(self, x: str, given: dict[str, Any]) -> str:
        """The names of what is given are those of initializers."""
        if "temperature" in given:
            return self.div(x, "temperature")
        if "bias" in given:
            return self.add(x, "bias")
        return self.node("Where", "where", x, "nothing") if "where" in given else x

    def operator(self, op: str, x: str) -> str:
        """ONNX's own."""
        if op == "logsumexp":
            return self.node("ReduceLogSumExp", x, "axes")
        if op == "cross_entropy":
            return self.node("SoftmaxCrossEntropyLoss", x, "target", reduction="none")
        return self.node({"softmax": "Softmax", "log_softmax": "LogSoftmax"}[op], x, axis=self.axis)

    def model(self, task: Task, result: str) -> ModelProto:
        kind = TYPES[task.x.dtype.name]
        shape = list(task.x.shape)
        x = helper.make_tensor_value_info("x", kind, shape)
        if task.op == "logsumexp":
            shape[self.axis] = 1
        elif task.op == "cross_entropy":
            del shape[self.axis]
        y = helper.make_tensor_value_info(result, kind, shape)
        constants = {"axes": np.array([self.axis]), "nothing": np.array(-np.inf, task.x.dtype)}
        for name, value in task.given.items():
            constants[name] = np.asarray(value, {"where": bool, "target": np.int64}.get(name, task.x.dtype))
        initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
        graph = helper.make_graph(self.nodes, task.op, [x], [y], initializers)
        return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])


def session(model: ModelProto, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def bound(task: Task, variant: str) -> Job:
    graph = Graph(task.axis)
    z = graph.modified("x", task.given)
    name = graph.operator(task.op, z) if variant == "operator" else formula(task.op, z, graph)
    run = session(graph.model(task, name), task.threads)
    if not task.out:
        call = partial(run.run, None, {"x": task.x})
        return Job(call, lambda: call()[0], variant)
    y = task.empty()
    if task.op == "logsumexp":
        y = np.expand_dims(y, task.axis)
    binding = run.io_binding()
    binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(task.x))
    binding.bind_output(name, "cpu", 0, y.dtype, y.shape, y.ctypes.data)
    return Job(partial(run.run_with_iobinding, binding), lambda: y, variant)


def jobs(task: Task) -> Iterator[Job]:
    if task.op == "cross_entropy_grad" or (task.op == "cross_entropy" and task.x.ndim == 1):
        return
    yield bound(task, "operator")
    if task.op == "logsumexp":
        yield bound(task, "composed")
