"""The same package on other CPUs, by qemu-user: older x86 machines take the right ISA and give the right bits."""

import hashlib
import os
import shutil
import subprocess
import sys

import pytest
from conftest import BACKENDS, HERE

QEMU = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
pytestmark = [
    pytest.mark.skipif(QEMU is None, reason="other CPUs need an emulator: `apt-get install qemu-user`"),
    pytest.mark.skipif(
        "c-scalar" not in BACKENDS, reason="the C part is not expected here: build it with a C compiler"
    ),
    pytest.mark.skipif("c-neon" in BACKENDS, reason="emulating x86 here needs an x86-64 Python"),
]
MODELS = {
    "Nehalem": "c-scalar",
    "SandyBridge": "c-scalar",
    "IvyBridge": "c-scalar",
    "Haswell": "c-avx2",
    "EPYC": "c-avx2",
    "max": "c-avx2",
}
RESULTS = """
import numpy as np, fastsoftmax as f
def results(backend):
    for dtype in ("f4", "f8"):
        for n in [*range(1, 140), 1000, 8193, 16390]:
            x = np.random.default_rng(n).normal(0, 5, (3, n)).astype(dtype)
            for g in (f.softmax, f.log_softmax, f.logcumsumexp):
                yield g(x, backend=backend)
            yield f.logsumexp(x, axis=1, backend=backend)
            yield f.sigmoid(x, backend=backend); yield f.softplus(x, backend=backend)
            yield np.ascontiguousarray(f.softmax(np.ascontiguousarray(x.T), axis=0, backend=backend))
"""


def emulate(model, code, **env):
    import fastsoftmax

    path = os.pathsep.join([os.path.dirname(os.path.dirname(fastsoftmax.__file__)), str(HERE)])
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FASTSOFTMAX_")}
    full = clean | {"PYTHONPATH": path + os.pathsep + clean.get("PYTHONPATH", ""), "OPENBLAS_NUM_THREADS": "1"} | env
    command = [QEMU, "-cpu", model, sys.executable, "-c", code]
    return subprocess.run(command, env=full, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("model", MODELS)
def test_the_right_isa_with_the_right_bits(model):
    expected = MODELS[model]
    code = RESULTS + "import hashlib\nh = hashlib.sha256()\n"
    code += f"[h.update(y.tobytes()) for y in results({expected!r})]\nprint(f.backends()[0], h.hexdigest())"
    done = emulate(model, code)
    assert done.returncode == 0, done.stderr[-2000:]
    best, digest = done.stdout.split()
    assert best == expected
    if expected in BACKENDS:
        names = {}
        exec(RESULTS, names)
        native = hashlib.sha256()
        for y in names["results"](expected):
            native.update(y.tobytes())
        assert digest == native.hexdigest()


@pytest.mark.parametrize(("model", "isa"), [("Nehalem", "avx2"), ("Haswell", "avx512"), ("max", "avx512")])
def test_forcing_an_isa_that_the_cpu_lacks(model, isa):
    done = emulate(model, "import fastsoftmax as f; f.softmax([1.])", FASTSOFTMAX_ISA=isa)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError")
    assert isa in last
