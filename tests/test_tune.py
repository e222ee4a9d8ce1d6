"""The table of crossovers: how it is measured (by a clock that only the work moves), read, and followed."""

import copy
import json

import pytest
from conftest import BACKENDS

import fastsoftmax as fsm
from fastsoftmax import _dispatch, _tune
from fastsoftmax._backends import OPS, ROW_REDUCTIONS

SHIPPED = json.loads(_dispatch.SHIPPED.read_text())
NAMES = ("c-avx2", "numba", "numpy")
KEYS = [(section, op, dtype) for section in _dispatch.SECTIONS for op in OPS for dtype in _dispatch.DTYPES]


class Machine:
    """Backends that only move a clock. Work takes so many seconds an element, a second thread so many to wake."""

    def __init__(self, wake=10e-6, speedup=2.0, numpy=10.0, every=0, stall=0.0):
        self.now, self.calls, self.wake, self.speedup, self.numpy = 0.0, 0, wake, speedup, numpy
        self.every, self.stall = every, stall

    def load(self, name):
        machine = self

        class Fake:
            def run(self, op, x, y, outer, n, inner, threads):
                assert x.shape == (outer, n)
                assert y.shape == ((outer,) if op in ROW_REDUCTIONS else (outer, n))
                assert threads in (1, 2)
                seconds = x.size * x.itemsize * 0.25e-9 * (machine.numpy if name == "numpy" else 1)
                machine.now += seconds if threads == 1 else seconds / machine.speedup + machine.wake
                machine.calls += 1
                if machine.every and machine.calls % machine.every == 0:
                    machine.now += machine.stall

        return Fake()

    def tune(self, seconds=1000.0, names=NAMES, threads=2):
        return _tune.tune(seconds, names=names, threads=threads, load=self.load, clock=lambda: self.now)


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch):
    monkeypatch.setattr(_tune, "cpu_seconds_of_others", lambda: 0.0)


@pytest.mark.parametrize("least", [1024, 1025, 5000, 70_000, 131_072, 1 << 22])
def test_a_crossover_is_found_to_a_quarter(least):
    asked = []
    found = _tune.crossover(lambda size: asked.append(size) or size >= least)
    assert least <= found <= max(1024, 1.25 * least)
    assert len(asked) <= 25


def test_no_crossover():
    assert _tune.crossover(lambda size: False) is None
    assert _tune.crossover(lambda size: True) == _tune.LOW


def test_one_lucky_size_is_no_crossover():
    lucky = 4096
    found = _tune.crossover(lambda size: size == lucky or size >= 100_000)
    assert 100_000 <= found <= 125_000


def test_threads_where_they_gain_a_tenth():
    """t = 1.1 (t / 2 + wake) has the solution t = 2.44 wake; the sizes found take that, to a quarter."""
    wake = 200e-6
    table = Machine(wake=wake).tune()
    for section in ("c_threads", "numba_threads"):
        for op in OPS:
            for dtype, size in (("float32", 4), ("float64", 8)):
                seconds = table[section][op][dtype] * size * 0.25e-9
                assert 2.4444 * wake <= seconds <= 1.25 * max(2.4445 * wake, _tune.FLOOR[section])
    assert table["kept"] == []


def test_threads_never_for_less_than_the_floor():
    """However cheap waking is now: on a busy machine it is in vain."""
    table = Machine(wake=0.0).tune()
    for section, floor in _tune.FLOOR.items():
        assert floor <= table[section]["softmax"]["float32"] * 4 * 0.25e-9 <= 1.25 * floor


def test_threads_that_gain_less_than_the_margin_are_never_used():
    assert Machine(wake=0.0, speedup=1.08).tune()["c_threads"]["softmax"] == {"float32": None, "float64": None}
    assert Machine(wake=0.0, speedup=1.12).tune()["c_threads"]["softmax"]["float32"] is not None


def test_stalls_do_not_decide():
    quiet, stalled = Machine().tune(), Machine(every=7, stall=0.02).tune()
    assert [stalled[s][o][d] for s, o, d in KEYS] == [quiet[s][o][d] for s, o, d in KEYS]


def test_numba_where_it_earns_its_loading():
    table = Machine(numpy=10.0).tune()
    for dtype, size in (("float32", 4), ("float64", 8)):
        saved = table["numba"]["softmax"][dtype] * size * 0.25e-9 * 9
        assert _tune.WORTH <= saved <= 1.25 * _tune.WORTH
    assert Machine(numpy=0.9).tune()["numba"]["softmax"]["float32"] is None


@pytest.mark.parametrize(
    ("names", "threads", "measured"),
    [
        (NAMES, 2, {"c_threads", "numba_threads", "numba"}),
        (NAMES, 1, {"numba"}),
        (("numba", "numpy"), 2, {"numba_threads", "numba"}),
        (("c-avx2", "numpy"), 2, {"c_threads"}),
        (("numpy",), 2, set()),
    ],
)
def test_what_cannot_be_measured_is_as_shipped(names, threads, measured):
    table = Machine().tune(names=names, threads=threads)
    assert set(table["kept"]) == {".".join(key) for key in KEYS if key[0] not in measured}
    for section in set(_dispatch.SECTIONS) - measured:
        assert table[section] == SHIPPED[section]


def test_a_busy_machine_does_not_forbid_threads(monkeypatch):
    assert Machine(speedup=1.0).tune()["c_threads"]["softmax"]["float32"] is None
    seconds = iter((0.0, 1e9))
    monkeypatch.setattr(_tune, "cpu_seconds_of_others", lambda: next(seconds))
    table = Machine(speedup=1.0).tune()
    assert table["c_threads"] == SHIPPED["c_threads"]
    assert "c_threads.softmax.float32" in table["kept"]
    assert "busy" in _tune.text(table)


@pytest.mark.parametrize(("seconds", "enough"), [(0.01, False), (1.0, False), (100.0, True)])
def test_the_time_is_limited(seconds, enough):
    """Beyond it only the first calls of every search, which compile, and the pair of calls that is not interrupted."""
    machine = Machine(wake=0.01, speedup=1.0, numpy=0.9)  # nothing is ever found
    table = machine.tune(seconds)
    assert machine.now <= seconds + len(KEYS) * 0.0101 + 2 * 0.05
    assert (table["kept"] == []) == enough


def test_a_measured_table_can_be_read(tmp_path):
    table = Machine(speedup=1.0).tune()
    file = tmp_path / "a file.json"
    _tune.write(table, file)
    read = _dispatch.read(file, "it")
    assert [read.of(*key) for key in KEYS] == [table[s][o][d] for s, o, d in KEYS]
    assert read.of("c_threads", "softmax", "float32") is None
    text = _tune.text(table)
    for op in OPS:
        assert text.count(f"  {op} ") == 3
    assert "never" in text
    assert table["machine"]["cpu"] in text
    assert {"cpus", "numpy", "numba", "fastsoftmax", "backends"} <= set(table["machine"])


# The shipped table


def test_the_shipped_table_is_whole():
    table = _dispatch.read(_dispatch.SHIPPED, "it")
    for section, op, dtype in KEYS:
        assert table.of(section, op, dtype) >= 1 << 10
    assert SHIPPED["note"]
    assert SHIPPED["machine"]


def test_nobody_reads_it_before_it_is_needed(run_ok):
    run_ok("""
import fastsoftmax as f
from fastsoftmax import _dispatch
assert _dispatch.crossovers.cache_info().misses == 0
f.explain([1.], backend="numpy"); f.softmax([1.], backend="numpy")
assert _dispatch.crossovers.cache_info().misses == 0
for _ in range(3):
    f.explain([1.] * 10); f.softmax([1.] * 10)
assert _dispatch.crossovers.cache_info().misses <= 1
""")


# FASTSOFTMAX_CROSSOVERS


@pytest.fixture
def table_file(tmp_path):
    """Write a changed copy of the shipped table: {"section.op.dtype": entry}."""

    def write(changes):
        table = copy.deepcopy(SHIPPED)
        for key, entry in changes.items():
            section, op, dtype = key.split(".")
            table[section][op][dtype] = entry
        file = tmp_path / "mine.json"
        file.write_text(json.dumps(table))
        return file

    return write


EXPLAIN = """
import numpy as np, fastsoftmax as f
f.set_num_threads(4)
for op, dtype, n in (("softmax", "f4", 2999), ("softmin", "f4", 3000), ("softmax", "f4", 100_000),
                     ("softmax", "f8", 100_000), ("logsumexp", "f4", 3000), ("sigmoid", "f4", 3000)):
    c = f.explain(np.zeros(n, dtype), op=op, backend={backend!r})
    print(op, c.threads, c.reason, sep="|")
"""


@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "numpy"])
def test_threads_follow_the_file(name, table_file, run_ok):
    section = f"{name.partition('-')[0]}_threads"
    file = table_file({f"{section}.softmax.float32": 3000, f"{section}.softmax.float64": None})
    lines = [line.split("|") for line in run_ok(EXPLAIN.format(backend=name), FASTSOFTMAX_CROSSOVERS=file).splitlines()]
    assert [int(line[1]) for line in lines] == [1, 2, 4, 1, 1, 1]
    assert all(str(file) in line[2] for line in lines)
    assert "from 3000 elements" in lines[0][2]
    assert "at no size" in lines[3][2]
    assert "shipped" not in str(lines)
    default = run_ok(EXPLAIN.format(backend=name)).splitlines()
    assert all("shipped table" in line for line in default)
    assert f"from {SHIPPED[section]['softmax']['float32']} elements" in default[0]


def test_without_c_numba_follows_the_file(table_file, run_ok):
    if "numba" not in BACKENDS:
        pytest.skip("numba is not installed: it is a dependence, but the package works without it")
    file = table_file({"numba.softmax.float32": 2000, "numba.logsumexp.float32": None})
    code = """
import numpy as np, fastsoftmax as f
from fastsoftmax import _config
_config.backends = lambda: ("numba", "numpy")
for op, n in (("softmax", 1999), ("softmax", 2000), ("logsumexp", 1 << 20)):
    c = f.explain(np.zeros(n, "f4"), op=op)
    print(c.backend, c.reason, sep="|")
"""
    lines = [line.split("|") for line in run_ok(code, FASTSOFTMAX_CROSSOVERS=file).splitlines()]
    assert [line[0] for line in lines] == ["numpy", "numba", "numpy"]
    assert all(str(file) in line[1] for line in lines)
    assert "from 2000 elements" in lines[0][1]


def test_direct_calls_ask_for_threads_where_these_begin(table_file, run_ok):
    if not BACKENDS[0].startswith("c-"):
        pytest.skip("only the C part has direct calls")
    file = table_file({"c_threads.softmax.float64": 700, "c_threads.sigmoid.float32": None})
    code = """
import numpy as np, fastsoftmax as f
from fastsoftmax import _dispatch
asked = []
choose = _dispatch.choose
for op, n in (("softmax", 699), ("softmax", 700), ("sigmoid", 699), ("logsumexp", 699)):
    x = np.ones(n)
    getattr(f, op)(x)  # makes the function
    _dispatch.choose = lambda *key: asked.append(key[:4]) or choose(*key)
    assert _dispatch.direct[op](x, None, None) is not None
    _dispatch.choose = choose
print(asked == [("softmax", np.dtype(float), 1, 700)], f.explain(np.ones(700)).threads)
"""
    threads = {"FASTSOFTMAX_NUM_THREADS": "2", "FASTSOFTMAX_CROSSOVERS": str(file)}
    assert run_ok(code, **threads).split() == ["True", "2"]


def broken(change):
    table = copy.deepcopy(SHIPPED)
    change(table)
    return json.dumps(table)


BAD = {
    "empty": ("", "JSON"),
    "cut off": (json.dumps(SHIPPED)[:300], "JSON"),
    "not UTF-8": (b"\xff\xfe{}", "JSON"),
    "a list": ("[1, 2]", "no entry c_threads"),
    "no section": (broken(lambda t: t.pop("numba")), "no entry numba.softmax.float32"),
    "no operation": (broken(lambda t: t["c_threads"].pop("sigmoid")), "no entry c_threads.sigmoid.float32"),
    "no dtype": (broken(lambda t: t["numba"]["softplus"].pop("float64")), "no entry numba.softplus.float64"),
    "a number for a dict": (broken(lambda t: t["numba"].update(softmax=5)), "no entry numba.softmax.float32"),
    "text": (broken(lambda t: t["numba"]["softmax"].update(float32="9")), "numba.softmax.float32: .*'9'"),
    "a float": (broken(lambda t: t["numba"]["softmax"].update(float32=1.5)), "numba.softmax.float32: .*1.5"),
    "a bool": (broken(lambda t: t["numba"]["softmax"].update(float32=True)), "numba.softmax.float32: .*True"),
    "more than fits": (broken(lambda t: t["c_threads"]["softmax"].update(float32=1 << 63)), "softmax.float32: .*9223"),
    "deep": ("[" * 100_000, "JSON"),
    "long": (" " * (1 << 20) + json.dumps(SHIPPED), "bytes"),
    "zero": (broken(lambda t: t["c_threads"]["softmax"].update(float32=0)), "c_threads.softmax.float32: .*0"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_an_error_that_names_it(case, tmp_path):
    content, message = BAD[case]
    file = tmp_path / "bad.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"^here: .*{message}"):
        _dispatch.read(file, "here")


# python -m fastsoftmax tune


def test_command_line(python, tmp_path):
    file = tmp_path / "table.json"
    # the file need not be there yet when the variable is set already
    done = python(None, "-W", "error", "-m", "fastsoftmax", "tune", "--quick", "--output", str(file),
                  FASTSOFTMAX_CROSSOVERS=str(file))  # fmt: skip
    assert done.returncode == 0, done.stderr
    for op in OPS:
        assert op in done.stdout
    assert f"FASTSOFTMAX_CROSSOVERS={file}" in done.stdout
    table = json.loads(file.read_text())
    assert table["machine"]["backends"] == list(fsm.backends())
    _dispatch.read(file, "it")
    done = python("import fastsoftmax as f; f.softmax([1.]); f.show_config()", FASTSOFTMAX_CROSSOVERS=str(file))
    assert done.returncode == 0, done.stderr
    assert str(file) in done.stdout


def test_command_line_looks_for_the_folder_first(python, tmp_path):
    done = python(None, "-m", "fastsoftmax", "tune", "--output", str(tmp_path / "no" / "table.json"), timeout=20)
    assert done.returncode == 2
    assert str(tmp_path / "no") in done.stderr
    assert "Traceback" not in done.stderr
