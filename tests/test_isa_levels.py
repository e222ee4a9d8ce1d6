"""Each C level of this machine, forced by FASTSOFTMAX_ISA: it is reported, and what is called without naming a backend
is within the bounds and the same as if it were named. (That levels are refused: test_dispatch.py, test_emulated.py.)"""

import pytest
from conftest import BACKENDS, HERE

LEVELS = [name for name in BACKENDS if name.startswith("c-")]
pytestmark = [
    pytest.mark.skipif(not LEVELS, reason="the C part is not expected here: build it with a C compiler"),
    pytest.mark.parametrize("level", LEVELS),
]
# Sets that are not found by searching: those are worst, and test_accuracy.py has them for each backend.
ACCURACY = """
import measured, numpy as np, worst_ulp
names = ("N(0,10) n=10", "[0,-k]", "subnormal results", "around the shift", "U(-40,40)", "every x in [x,5.5]")
checked = 0
for function, how in measured.FUNCTIONS.items():
    for dtype in ("float32", "float64", "float16"):
        for name in set(names) & set(measured.set_names(function, dtype)):
            worst, _, say = worst_ulp.measure(function, dtype, name, None)
            assert worst <= how.bounds[dtype], say
            checked += 1
print(checked)
"""


@pytest.fixture
def forced(level):
    """The environment."""
    return {"FASTSOFTMAX_ISA": level.removeprefix("c-"), "FASTSOFTMAX_EXPECT": f"{level},numba,numpy"}


def test_show_config_reports_it(level, forced, run_ok):
    code = "import fastsoftmax as f; print(f.show_config(mode='dicts')['backends']['selected']); f.show_config()"
    lines = run_ok(code, **forced).splitlines()
    assert lines[0] == level
    assert f"  available: {level}, numba, numpy" in lines
    assert f"  selected: {level}" in lines
    assert f"  FASTSOFTMAX_ISA: {forced['FASTSOFTMAX_ISA']}" in lines


def test_accuracy_of_calls_that_name_no_backend(level, forced, run_ok):
    assert int(run_ok(ACCURACY, **forced)) > 60


def test_the_tests_of_direct_calls(level, forced, run_ok):
    file = str(HERE / "test_direct_calls.py")
    out = run_ok(None, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "taken_with", file, **forced)
    assert " passed" in out
    assert "skipped" not in out
