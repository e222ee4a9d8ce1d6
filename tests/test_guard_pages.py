"""No byte outside an array is read or written, and no byte of an input is written."""

import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import BACKENDS, HERE


@pytest.mark.parametrize("backend", [*BACKENDS, None])
@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_between_forbidden_pages(kind, backend, python):
    """In its own process: what is tested for would kill it."""
    done = python(
        f"import guard_pages; guard_pages.faulthandler.enable(); print('ok', guard_pages.run({backend!r}, {kind!r}))"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    word, count = done.stdout.split()
    assert word == "ok"
    assert int(count) > 10_000


@pytest.mark.parametrize("access", ["pages[at - 1]", "pages[at + size]", "pages.__setitem__(at, 1)"])
def test_the_guards_do_guard(access):
    code = f"""
import guard_pages as g
memory = g.Guarded(100)
pages, at, size = memory._bytes, g.PAGE, memory.size
pages[at], pages[at + size - 1] = 1, 1
memory.freeze()
assert pages[at] == 1
{access}
"""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(HERE)!r})\n{code}"], capture_output=True
    )
    assert done.returncode in (-signal.SIGSEGV, -signal.SIGBUS), done.stderr


def test_arrays_end_where_the_page_ends():
    import guard_pages

    memory = guard_pages.Guarded(1000)
    raw = memory.at_end(48)
    assert raw.ctypes.data + 48 == memory.start + memory.size
    x = guard_pages.strided_view(raw, (3,), (20,), np.dtype("f8"), True)
    assert x.strides == (-20,)
    assert guard_pages.span((3,), (20,), 8) == 48
