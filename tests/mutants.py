"""Does the suite notice? Deliberate defects, one after the other (mutants.toml), each in a copy of the whole tree.

    python tests/mutants.py [NAME or FILE ...] [--full]

A mutant is built and given to the tests that the table names; with --full, one that survives them to all others too. It
is killed by a test that fails, crashes or does not end. Whatever killed one is run on the sound tree at the end: what
fails there as well has killed nothing. Needs what `make test` has installed, CMake and a C compiler. Ends with 1 if any
mutant survives.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from fastsoftmax._backends import ISAS

ROOT = Path(__file__).parents[1]
TABLE = Path(__file__).with_name("mutants.toml")
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "build", "dist", "__pycache__", ".*_cache", ".hypothesis", "*.so")
PATIENCE = 300  # seconds without the end of a test
# Parts of rows.c; other headers are the kernels'.
ABOVE = ("job.h", "prepare.h", "target.h", "long.h", "cut.h", "modified.h", "fused.h")

LISTED = """if True:
    import numpy, fastsoftmax, fastsoftmax._dispatch as dispatch
    assert dispatch.direct["softmax"](numpy.ones(3), -1, None) is not None, "there are no direct calls to be tested"
    print(*fastsoftmax.backends())
"""


class Mutant(NamedTuple):
    """A defect: in `file`, `old` stands once; with `new` in its place one of the tests has to fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    how: frozenset[str]  # see mutants.toml

    @property
    def is_of_kernels(self) -> bool:
        """Whether it is compiled once per instruction set and type."""
        name = self.file.removeprefix("c/")
        return name != self.file and name not in ABOVE and name.endswith((".h", "kernels.c"))

    @property
    def is_of_numba(self) -> bool:
        return "numba" in Path(self.file).stem

    @property
    def dtypes(self) -> list[str]:
        """Whose kernels are built, and tested."""
        if not self.is_of_kernels and not self.is_of_numba:
            return ["float32", "float64"]
        return [dtype for dtype in ("float32", "float64") if dtype in self.how] or ["float64"]


def read_table() -> list[Mutant]:
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return [
        Mutant(name, file, old, new, tuple(f"tests/{test}" for test in tests.split()), frozenset(" ".join(how).split()))
        for file, mutants in table.items()
        for name, (old, new, tests, *how) in mutants.items()
    ]


class Workshop:
    """A copy of the tree with an environment of its own, whose extension is built once and then in part."""

    def __init__(self, folder: Path) -> None:
        self.tree, self.build, self.venv = folder / "tree", folder / "build", folder / "venv"
        shutil.copytree(ROOT, self.tree, ignore=LEFT_OUT)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.venv], check=True)
        # What is installed here, but for this tree: folders that are named in such a file are not searched for others.
        (site,) = self.venv.glob("lib/python*/site-packages")
        (site / "mutants.pth").write_text(f"{self.tree}\n{sysconfig.get_paths()['purelib']}\n")
        self.python = self.venv / "bin" / "python"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FASTSOFTMAX_")}
        self.environment = kept | {"NUMBA_CACHE_DIR": str(folder / "numba")}
        binding = self.tree / "fastsoftmax" / "_backends"
        options = {
            "SKBUILD": "ON",
            "FSM_OPTIMIZE": "-O0",  # the kernels; with -O1 one takes two to three times as long to compile
            "CMAKE_C_FLAGS_RELEASE": "-O1",
            "CMAKE_C_FLAGS": "-DPy_LIMITED_API=0x030b0000",  # as in a wheel: direct calls need it
            "Python_EXECUTABLE": self.python,
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": binding,
        }
        configure = ["cmake", "-S", self.tree / "c", "-B", self.build, "-G", "Unix Makefiles"]
        configure += [f"-D{name}={value}" for name, value in options.items()]
        for command in (configure, self._make()):
            subprocess.run(command, env=self.environment, check=True, stdout=subprocess.DEVNULL)
        self.objects = sorted(self.build.rglob("*.o"))
        made = [*self.objects, *self.build.glob("*.a"), *binding.glob("*.so")]  # in the order in which they are made
        self.sound = {path: path.read_bytes() for path in made}
        given: dict[str, Any] = {"cwd": self.tree, "env": self.environment, "stdout": subprocess.PIPE, "text": True}
        self.backends = subprocess.run([self.python, "-c", LISTED], check=True, **given).stdout.split()
        assert self.backends[0].startswith("c-")

    def _make(self) -> list[str | Path]:
        return ["cmake", "--build", self.build, "--parallel", "2"]

    def isa(self, mutant: Mutant) -> str:
        """Whose kernels are built: those of one instruction set are enough."""
        named = {Path(mutant.file).stem, *mutant.how} & set(ISAS)
        return named.pop() if named else self.backends[0].removeprefix("c-")

    def put_in(self, mutant: Mutant) -> bool:
        """False if it does not compile."""
        path = self.tree / mutant.file
        path.write_text(path.read_text(encoding="utf-8").replace(mutant.old, mutant.new), encoding="utf-8")
        if path.suffix == ".py":
            return True
        for kernels in (o for o in self.objects if "kernels_" in str(o)):
            wanted = [f"kernels_{self.isa(mutant)}_f{dtype[-2:]}." for dtype in mutant.dtypes if mutant.is_of_kernels]
            if not any(name in str(kernels) for name in wanted):
                os.utime(kernels)  # as if it were built
        return subprocess.run(self._make(), env=self.environment, capture_output=True).returncode == 0

    def take_out(self, mutant: Mutant) -> None:
        shutil.copy2(ROOT / mutant.file, self.tree / mutant.file)  # as old as it was: caches look at that
        if not mutant.file.endswith(".py"):
            for path, content in self.sound.items():
                path.write_bytes(content)

    def settings(self, mutant: Mutant) -> dict[str, str]:
        """For whom the tests are: for what is mutated and, if the table says so, what it is compared with."""
        if "all" in mutant.how:
            return {}
        own = "numba" if mutant.is_of_numba else "numpy" if Path(mutant.file).stem in ("numpy", "_tilewise") else "c"
        one = {"FASTSOFTMAX_ISA": self.isa(mutant)} if mutant.is_of_kernels else {}
        c = f"c-{self.isa(mutant)}"
        named = [name for name in (c, "numba", "numpy") if name.partition("-")[0] in {own} | mutant.how]
        return one | {"FASTSOFTMAX_EXPECT": ",".join(named)}

    def test(self, settings: dict[str, str], arguments: list[str]) -> tuple[int | None, str]:
        """pytest's exit status, None if it did not end, and what it printed."""
        command = [self.python, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--color=no", *arguments]
        with tempfile.TemporaryFile("w+", errors="replace") as log:
            child = subprocess.Popen(
                command, cwd=self.tree, env=self.environment | settings, stdout=log, stderr=log, start_new_session=True
            )
            size, since = 0, time.monotonic()
            try:
                while (status := child.poll()) is None and time.monotonic() - since < PATIENCE:
                    time.sleep(0.1)
                    if (now := os.fstat(log.fileno()).st_size) != size:
                        size, since = now, time.monotonic()
            finally:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
            log.seek(0)
            return status, log.read()


TEST = r"tests/\S+?\.py::[\w:]+(?:\[.*?\](?= |$))?"


def killer(status: int | None, log: str) -> str:
    """The test that killed, from what pytest printed: that which failed, or else the last one that was begun."""
    lines = re.findall(rf"^({TEST})(?: (\w+))?", log, re.MULTILINE)
    failed = [test for test, outcome in lines if outcome in ("FAILED", "ERROR")]
    broken = re.findall(r"^ERROR (tests/\S+)", log, re.MULTILINE)  # a file that cannot even be read
    begun = [test for test, _ in lines]
    return [*failed, *broken, *reversed(begun), "?"][0]


def try_one(shop: Workshop, mutant: Mutant, full: bool) -> tuple[bool, str, str | None]:
    """Whether it is dead, in words how, and by which test."""
    start = time.monotonic()
    try:
        if not shop.put_in(mutant):
            return False, "DOES NOT COMPILE", None
        other = [dtype for dtype in ("float32", "float64") if dtype not in mutant.dtypes]
        only = ["-k", f"not {other[0]}"] if other else []
        status, log = shop.test(shop.settings(mutant), ["-x", *only, *mutant.tests])
        if status == 0 and full:
            status, log = shop.test({}, ["-x", "tests"])
    finally:
        shop.take_out(mutant)
    seconds = time.monotonic() - start
    if status == 0:
        return False, f"SURVIVED ({seconds:.0f} s)", None
    if status in (4, 5):
        return False, "NO SUCH TEST", None
    how = "a time-out" if status is None else "a crash" if status < 0 else "failure"
    test = killer(status, log)
    return True, f"killed by {how} of {test} in {seconds:.0f} s", test


def false_alarms(shop: Workshop, kills: dict[str, tuple[Mutant, str]]) -> list[str]:
    """The names of mutants that were killed by tests that fail on the sound tree."""
    groups: dict[tuple[tuple[str, str], ...], dict[str, list[str]]] = {}
    for name, (mutant, test) in kills.items():
        key = tuple(sorted(shop.settings(mutant).items()))
        groups.setdefault(key, {}).setdefault(test, []).append(name)
    wrong = []
    for key, tests in groups.items():
        status, log = shop.test(dict(key), list(tests))
        if status != 0:
            passed = set(re.findall(rf"^({TEST}) PASSED", log, re.MULTILINE))
            failed = [test for test in tests if not any(p == test or p.startswith(f"{test}::") for p in passed)]
            wrong += [name for test in failed for name in tests[test]]
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of mutants, or files; all without any")
    parser.add_argument("--full", action="store_true", help="give what survives its tests to all of them")
    given = parser.parse_args()
    mutants = [m for m in read_table() if not given.names or {m.name, m.file} & set(given.names)]
    if unknown := set(given.names) - {word for m in mutants for word in (m.name, m.file)}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")

    start, alive = time.monotonic(), []
    kills: dict[str, tuple[Mutant, str]] = {}
    with tempfile.TemporaryDirectory(prefix="fastsoftmax-mutants-") as folder:
        shop = Workshop(Path(folder))
        for mutant in mutants:
            if mutant.is_of_kernels and f"c-{shop.isa(mutant)}" not in shop.backends:
                print(f"{mutant.name}: left out, {shop.isa(mutant)} cannot run here", flush=True)
                continue
            dead, words, test = try_one(shop, mutant, given.full)
            print(f"{mutant.name}: {words}", flush=True)
            if dead and test is not None:
                kills[mutant.name] = mutant, test
            else:
                alive.append(mutant.name)
        for name in false_alarms(shop, kills):
            print(f"{name}: SURVIVED, {kills[name][1]} fails without it, too", flush=True)
            alive.append(name)
            del kills[name]
    print(f"{len(mutants)} mutants, {len(kills)} killed, {len(alive)} alive, {time.monotonic() - start:.0f} s")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
