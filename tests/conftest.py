"""Fixtures over the tables: every backend the machine must have, the types, the thread counts.

Environment:
  FASTSOFTMAX_EXPECT_C=0        the suite runs without the C part: only numba and numpy are expected
  FASTSOFTMAX_EXPECT=a,b,...    exactly these backends are expected (emulators, whose /proc/cpuinfo is the host's)
  FASTSOFTMAX_TEST_EXAMPLES=n   hypothesis examples a property (default 100)
"""

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
# One JIT cache for this process and all the processes it starts: the numba backend is compiled once.
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"fastsoftmax-tests-numba-{os.getuid()}"))

from hypothesis import HealthCheck, settings  # noqa: E402

settings.register_profile(
    "fastsoftmax",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=int(os.environ.get("FASTSOFTMAX_TEST_EXAMPLES", "100")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fastsoftmax")


def cpu_flags():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return set(next((line.split(":")[1] for line in lines if line.startswith("flags")), "").split())


def expected_backends():
    """What backends() must return on this machine, best first; derived from the CPU, not from the package."""
    if exact := os.environ.get("FASTSOFTMAX_EXPECT"):
        return tuple(exact.split(","))
    names = []
    if os.environ.get("FASTSOFTMAX_EXPECT_C", "1") != "0":
        machine, flags = platform.machine(), cpu_flags()
        avx2 = {"avx2", "fma", "f16c"} <= flags
        if machine == "x86_64" and avx2 and {"avx512f", "avx512dq", "avx512bw", "avx512vl"} <= flags:
            names.append("c-avx512")
        if machine == "x86_64" and avx2:
            names.append("c-avx2")
        if machine == "aarch64":
            names.append("c-neon")
        names.append("c-scalar")
    return (*names, "numba", "numpy")


BACKENDS = expected_backends()
FMA_BACKENDS = tuple(name for name in BACKENDS if name not in ("c-scalar", "numpy"))


def pytest_configure(config):
    # No RuntimeWarning, no DeprecationWarning, ever: the promise holds for every test.
    config.addinivalue_line("filterwarnings", "error")
    config.addinivalue_line("filterwarnings", "ignore:Passing a non-Collection iterable")  # in SciPy's test classes
    for name in ("skip_xp_backends", "xfail_xp_backends", "array_api_backends", "uses_xp_capabilities"):
        config.addinivalue_line("markers", f"{name}: comes with SciPy's own test classes")


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc):
    # Last, so that the backend varies fastest and a cached reference serves all of them.
    tables = {"dtype": ["float32", "float64"], "backend": BACKENDS, "fma_backend": FMA_BACKENDS}
    own = {name for mark in metafunc.definition.iter_markers("parametrize") for name in np.atleast_1d(mark.args[0])}
    for name, values in tables.items():
        if name in metafunc.fixturenames and name not in own:
            metafunc.parametrize(name, values)


@pytest.fixture(params=[1, 2, 3])
def thread_count(request):
    import fastsoftmax

    with fastsoftmax.threads(request.param):
        yield request.param


@pytest.fixture
def split_early(monkeypatch):
    """Threads from sizes that tests can afford, for what the shipped table would give to one thread."""
    from fastsoftmax import _dispatch

    shipped = _dispatch.read(_dispatch.SHIPPED, "the shipped table")
    early = {op: dict.fromkeys(_dispatch.DTYPES, 1 << 14) for op in shipped.table["c_threads"]}
    table = _dispatch.Crossovers("a test", shipped.table | {"c_threads": early, "numba_threads": early})
    monkeypatch.setattr(_dispatch, "crossovers", lambda: table)
    _dispatch.choose.cache_clear()
    yield
    _dispatch.choose.cache_clear()


@pytest.fixture
def bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="bfloat16 needs `pip install ml_dtypes`")
    return ml_dtypes.bfloat16


@pytest.fixture
def python():
    """Run a piece of Python in a fresh process; returns the finished process, with text output."""

    def run(code, *flags, timeout=300, **env):
        # The package that is under test here, wherever it was imported from.
        import fastsoftmax

        path = os.pathsep.join([str(Path(fastsoftmax.__file__).parents[1]), str(HERE)])
        full = {k: v for k, v in os.environ.items() if not k.startswith("FASTSOFTMAX_") or k in env}
        full |= {"PYTHONPATH": path + os.pathsep + os.environ.get("PYTHONPATH", "")} | env
        command = [sys.executable, *flags, *([] if code is None else ["-c", code])]
        return subprocess.run(command, env=full, capture_output=True, text=True, timeout=timeout)

    return run


@pytest.fixture
def run_ok(python):
    """The same, asserting success; returns what was printed."""

    def run(code, *flags, **env):
        done = python(code, *flags, **env)
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run
