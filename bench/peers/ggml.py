"""ggml: its CPU library from the libggml-python wheel, called through its C interface. It knows softmax alone."""

import ctypes
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from weakref import finalize

import libggml
import numpy as np

from . import SINGLE, Array, Job, Task

DISTRIBUTION = "libggml-python"
THREADED = True
DTYPES = SINGLE
GIVEN: tuple[str, ...] = ()
FLOAT32 = 0
POLLING = 50  # ggml's default for the threads of a pool


class InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class ThreadpoolParams(ctypes.Structure):
    _fields_ = (
        ("cpumask", ctypes.c_bool * 512),
        ("n_threads", ctypes.c_int),
        ("prio", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    )


class Plan(ctypes.Structure):
    _fields_ = (
        ("work_size", ctypes.c_size_t),
        ("work_data", ctypes.c_void_p),
        ("n_threads", ctypes.c_int),
        ("threadpool", ctypes.c_void_p),
        ("abort_callback", ctypes.c_void_p),
        ("abort_callback_data", ctypes.c_void_p),
        ("use_ref", ctypes.c_bool),
    )


def libraries() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    """The one with the tensors and the one that computes, with the types of what is called."""
    folder = Path(libggml.__path__[0]) / "lib64"
    base = ctypes.CDLL(str(folder / "libggml-base.so.0"), mode=ctypes.RTLD_GLOBAL)
    cpu = ctypes.CDLL(str(folder / "libggml-cpu.so.0"))
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    for library, name, result, *arguments in (
        (base, "ggml_init", pointer, InitParams),
        (base, "ggml_free", None, pointer),
        (base, "ggml_new_tensor_2d", pointer, pointer, ctypes.c_int, size, size),
        (base, "ggml_soft_max", pointer, pointer, pointer),
        (base, "ggml_get_data", pointer, pointer),
        (base, "ggml_new_graph", pointer, pointer),
        (base, "ggml_build_forward_expand", None, pointer, pointer),
        (cpu, "ggml_cpu_init", None),
        (cpu, "ggml_threadpool_new", pointer, ctypes.POINTER(ThreadpoolParams)),
        (cpu, "ggml_graph_plan", Plan, pointer, ctypes.c_int, pointer),
        (cpu, "ggml_graph_compute", ctypes.c_int, pointer, ctypes.POINTER(Plan)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return base, cpu


base, cpu = libraries()
pool = None


def setup(threads: int) -> None:
    global pool
    cpu.ggml_cpu_init()
    pool = cpu.ggml_threadpool_new(ThreadpoolParams(n_threads=threads, prio=0, poll=POLLING))


def jobs(task: Task) -> Iterator[Job]:
    if task.op != "softmax" or task.axis != -1 or not task.out:
        return
    rows = task.x.reshape(-1, task.x.shape[-1])
    context = base.ggml_init(InitParams(mem_size=2 * rows.nbytes + 2**20))
    x = base.ggml_new_tensor_2d(context, FLOAT32, rows.shape[1], rows.shape[0])
    y = base.ggml_soft_max(context, x)
    graph = base.ggml_new_graph(context)
    base.ggml_build_forward_expand(graph, y)
    plan = cpu.ggml_graph_plan(graph, task.threads, pool)
    work = ctypes.create_string_buffer(plan.work_size)
    plan.work_data = ctypes.addressof(work)
    ctypes.memmove(base.ggml_get_data(x), rows.ctypes.data, rows.nbytes)
    call = partial(cpu.ggml_graph_compute, graph, plan)

    def result() -> Array:
        data = ctypes.cast(base.ggml_get_data(y), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(data, task.x.shape).copy()

    job = Job(call, result)
    finalize(job, lambda kept: base.ggml_free(context), work)
    yield job
