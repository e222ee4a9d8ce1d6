"""What the documentation shows is what happens: doctests of the package, code blocks of README.md."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest
from test_import import FUNCTIONS

import fastsoftmax as fsm

ROOT = Path(__file__).parents[1]
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def modules():
    yield "fastsoftmax"
    for found in pkgutil.walk_packages(fsm.__path__, "fastsoftmax."):
        last = found.name.rpartition(".")[2]
        if last != "__main__" and "numba" not in last and not last.startswith("_fastsoftmax"):
            yield found.name


@pytest.mark.parametrize("name", sorted(set(modules())))
def test_doctests(name):
    with np.printoptions(legacy=False):
        try:
            module = importlib.import_module(name)
        except ImportError:
            if name.endswith(("._c", ".c")):
                pytest.skip("the C part is missing: build it with a C compiler")
            raise
        failures, _ = doctest.testmod(module, optionflags=FLAGS)
    assert failures == 0


def test_every_public_function_has_an_example():
    finder = doctest.DocTestFinder(recurse=False)
    without = [name for name in FUNCTIONS if not any(t.examples for t in finder.find(getattr(fsm, name), name))]
    assert not without


def blocks(text):
    return re.findall(r"^```(?:python|pycon|py)\n(.*?)^```", text, re.S | re.M)


def test_readme():
    text = (ROOT / "README.md").read_text()
    found = blocks(text)
    assert found, "README.md shows no Python"
    names = {}
    for block in found:
        if ">>>" in block:
            test = doctest.DocTestParser().get_doctest(block, names, "README.md", "README.md", 0)
            assert doctest.DocTestRunner(optionflags=FLAGS).run(test, clear_globs=False).failed == 0
            names = test.globs
        else:
            exec(compile(block, "README.md", "exec"), names)


# ---- The page of promises ----


def test_what_the_page_of_promises_names_exists():
    """Files, tests in them, and programs."""
    text = (ROOT / "tests/README.md").read_text()
    named = set(re.findall(r"(?:tests|c|bench|\.ci|fastsoftmax)/[\w./-]*\w(?:::\w+)?", text))
    assert len(named) > 50
    for name in sorted(named):
        file, _, test = name.partition("::")
        assert (ROOT / file).exists(), name
        assert not test or re.search(rf"^def {test}\(", (ROOT / file).read_text(), re.M), name
    for name in re.findall(r"\]\((\w[\w.]*)\)", text):
        assert (ROOT / "tests" / name).exists(), name


def test_every_test_file_is_named_on_the_page_of_promises():
    text = (ROOT / "tests/README.md").read_text()
    assert not [path.name for path in (ROOT / "tests").glob("test_*.py") if path.name not in text]
