"""Which backend runs, how many threads, and how to say otherwise."""

import numpy as np
import pytest
from conftest import BACKENDS, FMA_BACKENDS
from layouts import assert_same_bits

import fastsoftmax as fsm

OPS = ["softmax", "log_softmax", "softmin", "hardmax", "logcumsumexp", "logsumexp", "logmeanexp", "sigmoid", "softplus"]
HAS_C = BACKENDS[0].startswith("c-")
needs_c = pytest.mark.skipif(not HAS_C, reason="the C part is not expected here: build it with a C compiler")


def test_every_expected_backend_is_there_and_no_other():
    assert fsm.backends() == BACKENDS


def test_show_config_as_dicts_and_as_text(capsys):
    report = fsm.show_config(mode="dicts")
    assert isinstance(report, dict)
    assert capsys.readouterr().out == ""
    assert fsm.show_config() is None
    text = capsys.readouterr().out
    for name in BACKENDS:
        assert name in text
        assert name in str(report)
    assert np.__version__ in text
    assert fsm.__version__ in text


def test_show_config_says_when_the_c_part_is_missing():
    if HAS_C:
        assert "pure Python" not in str(fsm.show_config(mode="dicts"))
    else:
        assert "pure Python" in str(fsm.show_config(mode="dicts"))


@pytest.mark.parametrize("op", OPS)
def test_explain_says_what_where_and_why(op, backend, dtype):
    choice = fsm.explain(np.zeros((3, 50), dtype), op=op, backend=backend)
    assert choice.backend == ("numpy" if op == "hardmax" else backend)  # hardmax is an argmax: nothing to compute
    assert choice.threads >= 1
    assert choice.reason
    assert choice.backend in str(choice)
    assert op in str(choice)


def test_explain_runs_nothing_and_takes_what_the_functions_take():
    x = np.zeros((4, 30, 5), "f4")
    for axis in (0, 1, -1, (0, 2), None):
        choice = fsm.explain(x, axis)
        n = x.size if axis is None else int(np.prod([x.shape[a] for a in np.atleast_1d(axis)]))
        assert (choice.rows, choice.n) == (x.size // n, n)
    assert fsm.explain([1, 2, 3]).dtype == "float64"
    assert fsm.explain([1, 2, 3], dtype="f4").dtype == "float32"
    fsm.explain(np.empty((0, 3)))
    fsm.explain(np.float32(1))


# (elements in a row, rows): what must be chosen of the kinds that are there, and whether threads may be used
TABLE = [
    ((1, 1), "small", False),
    ((10, 5), "small", False),
    ((1000, 10), "small", False),
    ((1000, 16_000), "large", True),
    ((16_777_216, 1), "large", True),
    ((10, 1_000_000), "large", True),
]


@pytest.mark.parametrize(("size", "kind", "threaded"), TABLE)
@pytest.mark.parametrize("op", ["softmax", "log_softmax", "logsumexp"])
def test_choice_by_size(size, kind, threaded, op, dtype):
    n, rows = size
    x = np.broadcast_to(np.zeros((), dtype), (rows, n))
    with fsm.threads(2):
        choice = fsm.explain(x, op=op)
    best = BACKENDS[0]
    assert choice.backend == (best if HAS_C else "numpy" if kind == "small" else best)
    assert choice.threads == (2 if threaded and choice.backend != "numpy" else 1)
    with fsm.threads(1):
        assert fsm.explain(x, op=op).threads == 1


@pytest.mark.parametrize("kind", ["float16", "longdouble"])
def test_what_only_numpy_computes_still_runs_anywhere(kind):
    x = np.array([1, 2, 3], kind)
    for name in (*BACKENDS, None):
        assert fsm.softmax(x, backend=name).dtype == x.dtype


@needs_c
def test_c_is_the_best_of_its_kind():
    assert fsm.explain([1.0], backend="c").backend == BACKENDS[0]
    assert "c" not in fsm.backends()


@pytest.mark.parametrize("chosen", BACKENDS)
def test_environment_chooses_the_backend(chosen, run_ok):
    code = """
import numpy as np, fastsoftmax as f
for x in (np.ones(3), np.ones((1000, 3000), "f4")):
    print(f.explain(x).backend, f.explain(x, backend="numpy").backend, f.softmax(x).ravel()[0])
"""
    for line in run_ok(code, FASTSOFTMAX_BACKEND=chosen).splitlines():
        assert line.split()[:2] == [chosen, "numpy"]


@needs_c
@pytest.mark.parametrize("chosen", [name for name in BACKENDS if name.startswith("c-")])
def test_environment_forces_an_isa(chosen, run_ok):
    code = "import fastsoftmax as f; print(f.backends()[0], f.explain([1.]).backend); f.show_config()"
    out = run_ok(code, FASTSOFTMAX_ISA=chosen.removeprefix("c-"))
    assert out.split()[:2] == [chosen, chosen]
    run_ok("import fastsoftmax as f; assert f.explain([1.]).backend == " + repr(chosen), FASTSOFTMAX_ISA=chosen[2:])


@pytest.mark.parametrize("variable", ["FASTSOFTMAX_BACKEND", "FASTSOFTMAX_ISA"])
def test_environment_with_an_unknown_name_is_an_error(variable, python):
    done = python("import fastsoftmax as f; f.softmax([1.])", **{variable: "altivec"})
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError")
    assert variable in last
    assert "altivec" in last
    assert "unknown" in last


def test_environment_with_an_isa_that_this_machine_lacks(python):
    lacking = sorted({"c-avx512", "c-avx2", "c-neon"} - set(BACKENDS))[0]
    done = python("import fastsoftmax as f; f.softmax([1.])", FASTSOFTMAX_ISA=lacking[2:])
    assert done.returncode == 1
    assert "ValueError" in done.stderr.strip().splitlines()[-1]
    assert lacking[2:] in done.stderr.strip().splitlines()[-1]
    done = python("import fastsoftmax as f; f.softmax([1.])", FASTSOFTMAX_BACKEND=lacking)
    assert done.returncode == 1
    assert "ValueError" in done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("env", "count"),
    [
        ({"FASTSOFTMAX_NUM_THREADS": "1"}, 1),
        ({"FASTSOFTMAX_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "3,2"}, 3),
        ({"FASTSOFTMAX_NUM_THREADS": "2", "OMP_NUM_THREADS": "1"}, 2),
        ({"FASTSOFTMAX_NUM_THREADS": "", "OMP_NUM_THREADS": ""}, None),
    ],
)
def test_environment_sets_the_threads(env, count, run_ok):
    code = "import os, fastsoftmax as f; print(f.get_num_threads(), len(os.sched_getaffinity(0)))"
    got, cpus = map(int, run_ok(code, **env).split())
    assert got == count if count else 1 <= got <= cpus


@pytest.mark.parametrize("bad", ["0", "-1", "two", "1.5", "1e3"])
def test_a_bad_thread_count_in_the_environment_never_crashes(bad, python):
    code = "import fastsoftmax as f; assert f.get_num_threads() >= 1; f.softmax([1.])"
    done = python(code, FASTSOFTMAX_NUM_THREADS=bad)
    assert done.returncode == 0
    assert "FASTSOFTMAX_NUM_THREADS" in done.stderr


def test_affinity_limits_the_threads(run_ok):
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import fastsoftmax as f"
    assert run_ok(code + "; print(f.get_num_threads())", OMP_NUM_THREADS="").split() == ["1"]


def test_one_thread_means_one(run_ok):
    """With FASTSOFTMAX_NUM_THREADS=1 no thread is ever started, however large the input."""
    for name in [n for n in BACKENDS if n != "numba"]:
        code = f"""
import re, numpy as np
def count(): return int(re.search(r"Threads:\\s*(\\d+)", open("/proc/self/status").read()).group(1))
import fastsoftmax as f
before = count()
f.softmax(np.ones((100, 100_000), "f4"), backend={name!r})
assert count() == before
"""
        run_ok(code, FASTSOFTMAX_NUM_THREADS="1")


def test_the_choice_is_what_runs(dtype):
    for shape in ((3,), (7, 100), (300, 3000)):
        x = np.random.default_rng(0).normal(size=shape).astype(dtype)
        chosen = fsm.explain(x).backend
        assert_same_bits(fsm.softmax(x), fsm.softmax(x, backend=chosen))


def test_the_matrix_has_something_to_compare():
    if HAS_C:
        assert len(FMA_BACKENDS) >= 2 or BACKENDS[0] == "c-scalar"
