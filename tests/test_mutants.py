"""The table of deliberate defects fits the sources. What becomes of them: `python tests/mutants.py`."""

import ast
from collections import Counter

import mutants
import pytest
from conftest import HERE

TABLE = mutants.read_table()


def test_names_are_unique_and_there_are_enough():
    assert [name for name, count in Counter(m.name for m in TABLE).items() if count > 1] == []
    assert len(TABLE) >= 60


@pytest.mark.parametrize("mutant", TABLE, ids=lambda m: m.name)
def test_fits(mutant):
    text = (mutants.ROOT / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1
    assert mutant.new != mutant.old
    assert mutant.how <= {"float32", "float64", "c", "numba", "numpy", "all"}
    assert mutant.tests
    for test in mutant.tests:
        file, _, function = test.partition("[")[0].partition("::")
        tree = ast.parse((HERE.parent / file).read_text(encoding="utf-8"))
        assert not function or function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
