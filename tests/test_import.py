"""What importing does, and above all does not do; and that imports inside the package go down only."""

import ast
import re
from pathlib import Path

import pytest
from conftest import BACKENDS

import fastsoftmax as fsm

PACKAGE = Path(fsm.__file__).parent
FUNCTIONS = ["softmax", "log_softmax", "softmin", "hardmax", "logcumsumexp", "logsumexp", "logmeanexp"]
FUNCTIONS += ["sigmoid", "softplus", "softmax_vjp", "log_softmax_vjp", "logsumexp_vjp"]
FUNCTIONS += ["cross_entropy", "nll_loss", "kl_div", "token_logprobs"]
NAMES = [*FUNCTIONS, "explain", "backends", "get_num_threads", "set_num_threads", "threads", "show_config"]
NAMES += ["register_with_threadpoolctl"]


def test_public_names():
    assert set(NAMES) <= set(fsm.__all__)
    assert sorted(set(fsm.__all__)) == sorted(fsm.__all__)
    for name in fsm.__all__:
        assert getattr(fsm, name) is not None
    public = {n for n, v in vars(fsm).items() if not n.startswith("_") and type(v).__name__ != "module"}
    assert public <= set(fsm.__all__)
    assert re.match(r"\d+\.\d+", fsm.__version__)


@pytest.mark.parametrize("name", NAMES)
def test_documented_and_introspectable(name):
    f = getattr(fsm, name)
    assert f.__doc__
    assert f.__module__.split(".")[0] == "fastsoftmax"


def test_import_is_light(run_ok):
    loaded = run_ok("import sys, fastsoftmax; print(*sys.modules)").split()
    heavy = {
        "numba",
        "llvmlite",
        "scipy",
        "torch",
        "pandas",
        "jax",
        "hypothesis",
        "pytest",
        "mpmath",
        "ml_dtypes",
        "threadpoolctl",
    }
    assert not heavy & set(loaded)


def test_a_call_is_light_where_c_is(run_ok):
    if not BACKENDS[0].startswith("c-"):
        pytest.skip("the C part is missing: build it with a C compiler")
    code = "import sys, numpy, fastsoftmax as f; f.softmax(numpy.ones((300, 3000), 'f4')); f.explain([1.])"
    code += "; print(*sys.modules)"
    assert not {"numba", "scipy"} & set(run_ok(code).split())


def test_small_arrays_never_wait_for_a_jit(run_ok):
    code = "import sys, numpy, fastsoftmax as f; f.softmax([1., 2.]); f.logsumexp([1., 2.]); print(*sys.modules)"
    assert not {"numba", "scipy"} & set(run_ok(code).split())


@pytest.mark.parametrize(
    "flags", [("-W", "error"), ("-W", "error", "-OO"), ("-W", "error", "-bb"), ("-X", "dev", "-W", "error")]
)
def test_import_is_silent(python, flags):
    code = "import fastsoftmax as f; assert f.softmax([1., 1.]).tolist() == [.5, .5]; f.logsumexp([[1, 2]], axis=0)"
    done = python(code, *flags)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_import_starts_no_thread(run_ok):
    code = """
import numpy, re, threading
def count():
    return int(re.search(r"Threads:\\s*(\\d+)", open("/proc/self/status").read()).group(1)), threading.active_count()
before = count()
import fastsoftmax
assert count() == before, (before, count())
fastsoftmax.softmax([1., 2., 3.]); fastsoftmax.logsumexp(numpy.ones((10, 10)))
assert count() == before, ("after small inputs", before, count())
"""
    run_ok(code)


def test_import_changes_nothing_of_the_process(run_ok):
    code = """
import ctypes, locale, os, random, signal, sys, warnings
import numpy as np
libm = ctypes.CDLL("libm.so.6")
def state():
    tiny = np.float32(1e-38) * np.float32(0.01) > 0, np.float64(1e-308) * 1e-10 > 0
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGSEGV)]
    generators = np.random.get_state()[1].tolist(), random.getstate()
    return [dict(os.environ), np.geterr(), generators, libm.fegetround(), tiny, handlers,
            list(warnings.filters), sys.getswitchinterval(), locale.setlocale(locale.LC_ALL), os.getcwd()]
before = state()
import fastsoftmax as f
assert state() == before
for backend in f.backends():
    f.softmax(np.ones((300, 400), "f4"), backend=backend); f.logsumexp(np.array([1., np.nan, np.inf]), backend=backend)
assert state()[:6] == before[:6]
"""
    run_ok(code)


def test_import_without_home_or_a_writable_place(run_ok, tmp_path):
    tmp_path.chmod(0o500)
    code = f"import os; os.chdir({str(tmp_path)!r}); import fastsoftmax as f"
    code += "; [f.softmax([1., 2.], backend=b) for b in f.backends()]"
    run_ok(code, HOME="/nonexistent", XDG_CACHE_HOME="/nonexistent/cache", NUMBA_CACHE_DIR=str(tmp_path / "no"))


@pytest.mark.parametrize("command", ["info", "check"])
def test_command_line(python, command):
    done = python(None, "-W", "error", "-m", "fastsoftmax", command)
    assert done.returncode == 0, done.stderr
    for name in BACKENDS:
        assert name in done.stdout


def test_command_line_refuses_what_it_does_not_know(python):
    done = python(None, "-m", "fastsoftmax", "no-such-command")
    assert done.returncode == 2
    assert "no-such-command" in done.stderr
    assert "Traceback" not in done.stderr


def imports(path):
    """Modules of the package that a file imports, as dotted names below `fastsoftmax`; and all top-level others."""
    inside, outside = set(), set()
    here = path.relative_to(PACKAGE).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            outside |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = (node.module or "").split(".") if node.module else []
            if node.level:
                base = [*here[: len(here) - node.level + 1], *base]
            elif base[0] == "fastsoftmax":
                base = base[1:]
            else:
                outside.add(base[0])
                continue
            inside |= {".".join([*base, a.name]) for a in node.names} | {".".join(base)}
    return inside, outside


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    inside, outside = imports(path)
    name = str(path.relative_to(PACKAGE))
    touches = {part.split(".")[0] for part in inside}
    if name.startswith("_backends/"):
        assert not touches & {"_api", "_dispatch", "__main__"}, "a backend knows neither dispatch nor API"
    if name.startswith("_dispatch"):
        assert "_api" not in touches, "dispatch knows no axes"
    if name != "__main__.py":
        assert "__main__" not in touches
    is_c = re.match(r"_backends/(c/|c\.py$|_c)", name)
    if not is_c:
        assert "cffi" not in outside, "only the C backend knows cffi"
        assert "_cffi_backend" not in outside
    if not (name.startswith("_backends/") and "numba" in name):
        assert "numba" not in outside, "only the Numba backend knows Numba"
    assert not outside & {"scipy", "torch", "pandas", "jax"}


def test_backends_do_not_know_each_other():
    names = ("numpy", "numba", "c")
    for path in SOURCES:
        relative = path.relative_to(PACKAGE).parts
        if relative[0] != "_backends" or path.stem not in names:
            continue
        others = {f"_backends.{n}" for n in names if n != path.stem}
        assert not others & imports(path)[0], f"{path.stem} imports another backend"
