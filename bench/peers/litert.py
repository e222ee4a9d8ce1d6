"""LiteRT (TensorFlow Lite) with XNNPACK, on models put together here."""

from collections.abc import Iterator

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from . import SINGLE, Job, Task
from .formula import formula

DISTRIBUTION = "ai-edge-litert"
THREADED = True
DTYPES = SINGLE
GIVEN: tuple[str, ...] = ()
CODES = schema.BuiltinOperator


def setup(threads: int) -> None:
    """Threads are set for each interpreter."""


def options(kind: str, **settings: object) -> tuple[int, object]:
    """The options of an operator, with the number of their kind."""
    made = getattr(schema, f"{kind}T")()
    for name, value in settings.items():
        setattr(made, name, value)
    return getattr(schema.BuiltinOptions, kind), made


class Graph:
    """A model in the making; a value is known by its number among the tensors."""

    def __init__(self, shape: tuple[int, ...], axis: int) -> None:
        self.model = schema.ModelT(version=3, buffers=[schema.BufferT(data=[])], operatorCodes=[])
        self.graph = schema.SubGraphT(tensors=[], operators=[])
        self.shape = list(shape)
        self.reduced = [1 if i == axis % len(shape) else n for i, n in enumerate(shape)]
        self.x = self.tensor(self.shape)
        self.model.buffers.append(schema.BufferT(data=np.array([axis], np.int32).view(np.uint8)))
        self.axis = self.tensor([1], schema.TensorType.INT32, buffer=1)

    def tensor(self, shape: list[int], kind: int = schema.TensorType.FLOAT32, buffer: int = 0) -> int:
        tensors = self.graph.tensors
        tensors.append(schema.TensorT(shape=shape, type=kind, buffer=buffer, name=f"t{len(tensors)}"))
        return len(tensors) - 1

    def operator(self, code: int, inputs: list[int], shape: list[int], chosen: tuple[int, object]) -> int:
        y = self.tensor(shape)
        kind, made = chosen
        self.model.operatorCodes.append(
            schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=min(code, 127), version=1)
        )
        self.graph.operators.append(
            schema.OperatorT(
                opcodeIndex=len(self.model.operatorCodes) - 1,
                inputs=inputs,
                outputs=[y],
                builtinOptionsType=kind,
                builtinOptions=made,
            )
        )
        return y

    def reduce(self, code: int, x: int) -> int:
        return self.operator(code, [x, self.axis], self.reduced, options("ReducerOptions", keepDims=True))

    def map(self, code: int, kind: str, *inputs: int) -> int:
        whole = any(self.graph.tensors[i].shape == self.shape for i in inputs)
        return self.operator(code, list(inputs), self.shape if whole else self.reduced, options(kind))

    def max(self, x: int) -> int:
        return self.reduce(CODES.REDUCE_MAX, x)

    def sum(self, x: int) -> int:
        return self.reduce(CODES.SUM, x)

    def exp(self, x: int) -> int:
        return self.map(CODES.EXP, "ExpOptions", x)

    def log(self, x: int) -> int:
        y = self.map(CODES.LOG, "ExpOptions", x)
        self.graph.operators[-1].builtinOptionsType, self.graph.operators[-1].builtinOptions = 0, None
        return y

    def add(self, x: int, y: int) -> int:
        return self.map(CODES.ADD, "AddOptions", x, y)

    def sub(self, x: int, y: int) -> int:
        return self.map(CODES.SUB, "SubOptions", x, y)

    def div(self, x: int, y: int) -> int:
        return self.map(CODES.DIV, "DivOptions", x, y)

    def own(self, op: str) -> int:
        """LiteRT's own softmax and log_softmax, of the last axis."""
        if op == "softmax":
            return self.operator(CODES.SOFTMAX, [self.x], self.shape, options("SoftmaxOptions", beta=1.0))
        return self.map(CODES.LOG_SOFTMAX, "LogSoftmaxOptions", self.x)

    def finish(self, y: int) -> bytes:
        self.graph.inputs, self.graph.outputs = [self.x], [y]
        self.model.subgraphs = [self.graph]
        builder = flatbuffers.Builder()
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def job(task: Task, variant: str) -> Job:
    graph = Graph(task.x.shape, task.axis)
    y = graph.own(task.op) if variant == "operator" else formula(task.op, graph.x, graph)
    interpreter = Interpreter(model_content=graph.finish(y), num_threads=task.threads)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], task.x)
    result = interpreter.get_output_details()[0]["index"]
    return Job(interpreter.invoke, lambda: interpreter.get_tensor(result), variant)


def jobs(task: Task) -> Iterator[Job]:
    if not task.out:
        return
    if task.axis == -1 and task.op != "logsumexp":
        yield job(task, "operator")
    if task.axis != -1 or task.op != "softmax":
        yield job(task, "composed")
