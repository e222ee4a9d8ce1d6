"""Bad surroundings: tuning files, settings, caches and folders that are damaged, hostile or gone. What costs speed
alone is a warning that names it, and a safe default; what was asked for by name and cannot be had is an error."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BACKENDS

from fastsoftmax import _dispatch

needs_numba = pytest.mark.skipif("numba" not in BACKENDS, reason="numba is not installed")
ALL = "import numpy as np, fastsoftmax as f; print([float(f.softmax(np.ones(4), backend=b)[0]) for b in f.backends()])"
NUMBA = "import numpy as np, fastsoftmax as f; print(f.sigmoid(np.zeros(4, 'f4'), backend='numba').tolist())"


# ---- tuning files ----


def make_missing(path):
    pass


def make_loop(path):
    path.symlink_to(path)


def make_huge(path):
    with path.open("wb") as file:
        file.truncate(3 << 30)


BAD_FILES = {
    "missing": make_missing,
    "a directory": Path.mkdir,
    "a pipe, which nobody writes to": os.mkfifo,
    "without an end": lambda path: path.symlink_to("/dev/zero"),
    "a loop": make_loop,
    "huge": make_huge,
    "empty": Path.touch,
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 10),
    "not a table": lambda path: path.write_text("[1, 2]"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "a number of digits": lambda path: path.write_text("9" * 5000),
    "too large a number": lambda path: path.write_text(_dispatch.SHIPPED.read_text().replace("131072", "9" * 30)),
}

USE = """
import sys, warnings, numpy as np, fastsoftmax as f
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    y = f.softmax(np.ones((4, 100_000), "f4")), f.logsumexp([1., 2.]), f.cross_entropy(np.ones((2, 3)), [0, 1])
    assert "shipped table" in f.explain(np.ones(5)).reason
assert float(y[0][0, 0]) == float(np.float32(1e-5))
print(*[str(w.message) for w in caught], sep="\\n")
"""


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_tuning_file_is_one_warning_that_names_it(kind, tmp_path, python):
    file = tmp_path / "table.json"
    BAD_FILES[kind](file)
    done = python(USE, timeout=60, FASTSOFTMAX_CROSSOVERS=str(file), FASTSOFTMAX_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr
    (said,) = done.stdout.splitlines()
    assert said.startswith(f"FASTSOFTMAX_CROSSOVERS={file}: ")
    assert said.endswith("the shipped table is used")


def test_the_file_is_named_where_warnings_are_errors(tmp_path, python):
    done = python(ALL + "; f.softmax([1., 2.])", "-W", "error", FASTSOFTMAX_CROSSOVERS=str(tmp_path / "no.json"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"UserWarning: FASTSOFTMAX_CROSSOVERS={tmp_path / 'no.json'}: ")


def write_table(file, entry):
    entries = {op: dict.fromkeys(_dispatch.DTYPES, entry) for op in _dispatch._backends.OPS}
    file.write_text(json.dumps(dict.fromkeys(_dispatch.SECTIONS, entries)))


@pytest.mark.skipif(not BACKENDS[0].startswith("c-"), reason="without the C part it chooses NumPy or Numba, too")
def test_a_hostile_table_costs_time_alone(tmp_path, run_ok):
    """Threads for everything, and for nothing: the bits are the same."""
    code = """
import hashlib, numpy as np, fastsoftmax as f
f.set_num_threads(1_000_000)
rng, h = np.random.default_rng(0), hashlib.sha256()
for shape in ((3,), (2, 50), (700, 33), (2, 70_000)):
    for x in (rng.normal(0, 3, shape), rng.normal(0, 3, shape).astype("f4").T):
        for g in (f.softmax, f.log_softmax, f.logsumexp, f.logcumsumexp, f.sigmoid):
            h.update(g(x).tobytes())
print(h.hexdigest())
"""
    found = set()
    for entry in (1, None, sys.maxsize):
        file = tmp_path / f"{entry}.json"
        write_table(file, entry)
        found.add(run_ok(code, "-W", "error", FASTSOFTMAX_CROSSOVERS=str(file)))
    assert len(found) == 1


def test_a_table_that_cannot_be_written(tmp_path, python):
    """A folder is refused before measuring; what fails then comes after the table is shown."""
    for output, status in ((tmp_path, 2), (Path("/dev/full"), 1)):
        done = python(None, "-m", "fastsoftmax", "tune", "--quick", "--output", str(output), timeout=100)
        assert done.returncode == status
        assert done.stderr.startswith(f"--output: {output}")
        assert "Traceback" not in done.stderr
        assert ("softmax" in done.stdout) == (status == 1)


# ---- settings ----


@pytest.mark.parametrize("text", ["9" * 5000, "1e3", "-1", "0", "two", "٣", "²", "\x01", "00"])
def test_a_number_of_threads_that_is_none(text, python):
    code = "import fastsoftmax as f; print(f.softmax([1., 1.]).tolist(), f.get_num_threads() >= 1)"
    for variable in ("FASTSOFTMAX_NUM_THREADS", "OMP_NUM_THREADS"):
        done = python(code, **{variable: text})
        assert (done.returncode, done.stdout) == (0, "[0.5, 0.5] True\n"), done.stderr
        assert f"{variable}=" in done.stderr
        assert len(done.stderr) < 1000


THREADS = """
import os, threading, numpy as np, fastsoftmax as f
x = np.ones((32, 30_000), "f4")
f.softmax(x[:1, :8], backend={backend!r})
before = len(os.listdir("/proc/self/task"))
f.softmax(x, backend={backend!r}); f.logsumexp(x, backend={backend!r}); f.softmax(x[:, ::2], backend={backend!r})
f.cross_entropy(x, np.zeros(32, int), return_grad=True, backend={backend!r})
print(len(os.listdir("/proc/self/task")) - before, f.explain(x, backend={backend!r}).threads)
"""


def test_one_thread_is_one(backend, run_ok, tmp_path):
    """Where the sizes are for threads."""
    file = tmp_path / "table.json"
    write_table(file, 1)
    env = {name: {name: "1"} for name in ("FASTSOFTMAX_NUM_THREADS", "OMP_NUM_THREADS")}
    if backend == "numba":
        env["NUMBA_NUM_THREADS"] = {"FASTSOFTMAX_NUM_THREADS": "3", "NUMBA_NUM_THREADS": "1"}
    for variable, setting in env.items():
        setting["FASTSOFTMAX_CROSSOVERS"] = str(file)
        assert run_ok(THREADS.format(backend=backend), **setting).split() == ["0", "1"], variable


# ---- Numba's cache ----


def fill(folder, run_ok):
    run_ok(NUMBA, NUMBA_CACHE_DIR=str(folder))
    (index,), (code,) = folder.rglob("*.nbi"), folder.rglob("*.nbc")
    return index, code


DAMAGE = {
    "an empty index": lambda index, code: index.write_bytes(b""),
    "half a file": lambda index, code: os.truncate(code, code.stat().st_size // 2),
    "a directory for a file": lambda index, code: (code.unlink(), code.mkdir()),
}


@needs_numba
def test_a_damaged_cache_is_not_used(tmp_path, run_ok):
    index, code = fill(tmp_path / "good", run_ok)
    for what, damage in DAMAGE.items():
        folder = tmp_path / what
        shutil.copytree(tmp_path / "good", folder)
        damage(*(folder / path.relative_to(tmp_path / "good") for path in (index, code)))
        assert run_ok(NUMBA, "-W", "error", NUMBA_CACHE_DIR=str(folder)) == "[0.5, 0.5, 0.5, 0.5]\n", what


@needs_numba
def test_no_folder_for_a_cache(tmp_path, run_ok):
    file = tmp_path / "file"
    file.touch()
    env = {"NUMBA_CACHE_DIR": str(file / "below"), "HOME": "/nonexistent", "XDG_CACHE_HOME": str(file)}
    assert run_ok(NUMBA, "-W", "error", **env) == "[0.5, 0.5, 0.5, 0.5]\n"


@needs_numba
def test_four_cold_processes_at_once(tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith("FASTSOFTMAX_")}
    env |= {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(_dispatch.SHIPPED.parents[1])}
    command = [sys.executable, "-W", "error", "-c", NUMBA]
    four = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    for process in four:
        out, err = process.communicate(timeout=200)
        assert (process.returncode, out, err) == (0, b"[0.5, 0.5, 0.5, 0.5]\n", b"")


# ---- folders ----


@pytest.mark.parametrize("flags", [("-W", "error"), ("-I",), ("-OO", "-W", "error")])
def test_in_a_directory_that_is_gone(flags, tmp_path, run_ok):
    gone = "import os, tempfile; folder = tempfile.mkdtemp(); os.chdir(folder); os.rmdir(folder); "
    assert run_ok(gone + ALL, *flags).strip("[]\n").split(", ") == ["0.25"] * (len(BACKENDS) - ("numba" in BACKENDS))
    if "numba" in BACKENDS:
        said = run_ok(gone + "import fastsoftmax as f\ntry: f.softmax([1.], backend='numba')\n"
                      "except ValueError as error: print(error)", *flags)  # fmt: skip
        assert "a directory that is gone" in said


@pytest.mark.parametrize("flags", [("-I",), ("-I", "-OO", "-bb", "-W", "error")])
def test_flags_of_python(flags, run_ok):
    assert run_ok(ALL, *flags).strip("[]\n").split(", ") == ["0.25"] * len(BACKENDS)


def test_on_a_mount_that_is_read_only(tmp_path):
    """The package, its caches and the temporary files."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-m", "true"], capture_output=True).returncode:
        pytest.skip("cannot mount here: needs root in the container")
    package = str(_dispatch.SHIPPED.parents[1])
    mounts = [f"mount --bind {p} {p} && mount -o remount,bind,ro {p}" for p in (package, str(tmp_path))]
    script = (
        f"{' && '.join(mounts)} && ! touch {package}/made 2>/dev/null && exec {sys.executable} -W error -c '{NUMBA}'"
    )
    env = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR" and not k.startswith("FASTSOFTMAX_")}
    env |= {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": package}
    script = script.replace("'numba'", '"numba"').replace("'f4'", '"f4"')
    done = subprocess.run([unshare, "-m", "sh", "-c", script], env=env, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[0.5, 0.5, 0.5, 0.5]\n", "")


# ---- subinterpreters ----


SUBINTERPRETER = """
import sys, warnings
try:
    import _xxsubinterpreters as interpreters
except ImportError:
    print("none"); sys.exit()
one = interpreters.create()
{before}
try:
    interpreters.run_string(one, '''
import warnings; warnings.simplefilter("ignore")  # NumPy's own about subinterpreters
import numpy as np, fastsoftmax as f
assert "numba" not in f.backends()
x = np.ones((200, 5000), "f4")
f.set_num_threads(2)
for b in (None, *f.backends()):
    assert f.softmax(x, backend=b)[0, 0] == np.float32(2e-4)
    assert f.softmax(x[:3, :4], backend=b)[0, 0] == 0.25
    f.cross_entropy(x, np.zeros(200, int), return_grad=True, backend=b)
''')
    print("right")
except interpreters.RunFailedError as error:
    print("refused", error)
interpreters.destroy(one)
{after}
"""


def test_in_a_subinterpreter(python):
    """Where NumPy can be loaded C and NumPy give what they should; Numba, which would hang, is not there."""
    done = python(SUBINTERPRETER.format(before="", after=""), timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout in ("right\n", "none\n") or "numpy" in done.stdout


def test_in_a_second_interpreter(python):
    """NumPy refuses to be loaded twice; the first interpreter is not harmed."""
    use = "import numpy as np, fastsoftmax as f; assert f.softmax(np.ones(4))[0] == 0.25"
    done = python(
        SUBINTERPRETER.format(before=use, after="for _ in range(100): assert f.logsumexp(np.zeros(1)) == 0"), timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "none\n" or done.stdout.startswith("refused") or done.stdout == "right\n"
