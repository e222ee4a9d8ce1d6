"""The table of deliberate defects fits the sources. What becomes of them: `python tests/mutants.py`."""

import functools
import re
from collections import Counter

import mutants
from conftest import HERE

from fastsoftmax._backends import ISAS

TABLE = mutants.read_table()
HOW = {"float32", "float64", "c", "numba", "numpy", "all", *ISAS}


def test_names_are_unique_and_there_are_enough():
    assert [name for name, count in Counter(m.name for m in TABLE).items() if count > 1] == []
    assert len(TABLE) >= 60


@functools.cache
def text_of(path):
    return path.read_text(encoding="utf-8")


def test_there_is_one_place_for_each():
    wrong = {m.name: count for m in TABLE if (count := text_of(mutants.ROOT / m.file).count(m.old)) != 1}
    assert not wrong, "how often the text to be replaced is there"
    assert not [m.name for m in TABLE if m.new == m.old or m.how - HOW]


def test_their_tests_exist():
    for m in TABLE:
        assert m.tests, m.name
        for test in m.tests:
            file, _, function = test.partition("[")[0].partition("::")
            assert re.search(rf"^def {function or 'test_'}", text_of(HERE.parent / file), re.MULTILINE), m.name
