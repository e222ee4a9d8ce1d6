"""The C library alone, as someone who embeds it has it: its builds, its own checks, and other CPUs by emulation."""

import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import BACKENDS

C = Path(__file__).resolve().parent.parent / "c"
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
PACKAGES = {
    "cmake": "cmake",
    "gcc": "gcc",
    "g++": "g++",
    "clang": "clang",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
    "qemu-aarch64": "qemu-user",
    "qemu-x86_64": "qemu-user",
}
NATIVE_ISAS = [name.removeprefix("c-") for name in BACKENDS if name.startswith("c-")]
MODELS = {  # of x86-64 CPUs: the ISAs they can run
    "Nehalem": ["scalar"],
    "SandyBridge": ["scalar"],
    "Haswell": ["avx2", "scalar"],
    "max": ["avx2", "scalar"],
}
x86_64_only = pytest.mark.skipif(platform.machine() != "x86_64", reason="this machine's compiler does not make x86-64")


def find(program):
    return shutil.which(program, path=PATH) or shutil.which(f"{program}-static", path=PATH)


def need(program):
    if found := find(program):
        return found
    pytest.skip(f"no {program} here: apt-get install {PACKAGES[program]}")


def run(*command, timeout=300, **options):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=timeout, **options)
    said = f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    assert done.returncode == 0, f"{command}: exit status {done.returncode}\n{said}"
    return done.stdout


def make(folder, compiler, *options, targets=("all",)):
    """Build c/ in the folder, every warning an error."""
    cmake = need("cmake")
    run(cmake, "-S", C, "-B", folder, f"-DCMAKE_C_COMPILER={need(compiler)}", "-DFSM_WERROR=ON", *options)
    run(cmake, "--build", folder, "--parallel", "2", "--target", *targets)
    return folder


def digests(output):
    """{(isa, type, op): digest} of a selfcheck that found everything in order."""
    last = output.splitlines()[-1]
    assert re.fullmatch(r"selfcheck: \d+ checks, 0 failed", last), output
    lines = re.findall(r"^(\w+) +(f32|f64) (\w+) +([0-9a-f]{16}) +\S+ ulp +ok$", output, re.MULTILINE)
    assert len(lines) + 1 == int(last.split()[1])  # and one for the calls
    return {(isa, kind, op): digest for isa, kind, op, digest in lines}


def isas_of(found):
    return sorted({isa for isa, _, _ in found})


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    """Folders of whole builds by compiler, made when asked for. Static: emulators have no libraries of this machine."""
    made = {}

    def build(compiler):
        if compiler not in made:
            made[compiler] = make(tmp_path_factory.mktemp(compiler), compiler, "-DCMAKE_EXE_LINKER_FLAGS=-static")
        return made[compiler]

    return build


@pytest.fixture(scope="module")
def selfcheck(builds):
    return builds("gcc" if find("gcc") else "clang") / "selfcheck"


@pytest.fixture(scope="module")
def reference(selfcheck):
    """What this machine gives: {has FMA: {(type, op): digest}}."""
    found = digests(run(selfcheck))
    assert isas_of(found) == sorted(NATIVE_ISAS)
    return by_fma(found)


def by_fma(found):
    result = {True: {}, False: {}}
    for (isa, *what), digest in found.items():
        assert result[isa != "scalar"].setdefault(tuple(what), digest) == digest
    return result


@pytest.fixture(scope="module")
def cross(tmp_path_factory):
    return make(
        tmp_path_factory.mktemp("aarch64"),
        "aarch64-linux-gnu-gcc",
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_EXE_LINKER_FLAGS=-static",
        targets=["selfcheck", "exp_check_neon", "fuzz"],
    )


@pytest.fixture(scope="module")
def x86_runs(selfcheck):
    """The selfcheck on each CPU model: futures, two at work at a time."""
    qemu = need("qemu-x86_64")
    with ThreadPoolExecutor(2) as pool:
        yield {model: pool.submit(run, qemu, "-cpu", model, selfcheck) for model in MODELS}


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_its_own_checks_pass(compiler, builds):
    ctest = need("cmake").removesuffix("cmake") + "ctest"
    output = run(ctest, "--test-dir", builds(compiler), "--output-on-failure", timeout=600)
    outcomes = dict(re.findall(r"^ *\d+/\d+ Test +#\d+: (\w+) \.*[* ]*(\w+)", output, re.MULTILINE))
    built = ["avx2", "avx512", "scalar"] if platform.machine() == "x86_64" else ["neon", "scalar"]
    usable = {isa: "Passed" if isa in NATIVE_ISAS else "Skipped" for isa in built}
    checks = ("exp_check", "divide_check", "fuzz")
    expected = {f"{check}_{isa}": outcome for isa, outcome in usable.items() for check in checks}
    assert outcomes == expected | dict.fromkeys(["selfcheck", "example", "pool_test"], "Passed")


def test_clang_gives_the_same_bits(builds, reference):
    assert by_fma(digests(run(builds("clang") / "selfcheck"))) == reference


@pytest.mark.parametrize(
    ("compiler", "suffix", "standard"),
    [("gcc", "c", "c99"), ("gcc", "c", "c11"), ("clang", "c", "c11"), ("g++", "cpp", "c++11"), ("g++", "cpp", "c++20")],
)
def test_the_header_compiles_alone(compiler, suffix, standard, tmp_path):
    source = tmp_path / f"use.{suffix}"
    source.write_text(
        '#include "fastsoftmax.h"\n'
        "int main(void) {\n"
        "    float x = 0;\n"
        "    fsm_softmax_f32(&x, &x, 1, 1);\n"
        "    return fsm_run(NULL, FSM_LOGSUMEXP, FSM_F32, &x, &x, 1, 1, 1, NULL, 0) != FSM_OK;\n"
        "}\n"
    )
    warnings = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")
    run(need(compiler), f"-std={standard}", *warnings, "-I", C, "-c", source, "-o", tmp_path / "use.o")


@x86_64_only
def test_building_by_hand_and_what_a_shared_library_exports(tmp_path):
    """The README lines, with its flags for a shared library, whose symbols are then those declared."""
    gcc, folder, library = need("gcc"), tmp_path / "c", tmp_path / "libfastsoftmax.so"
    shutil.copytree(C, folder)
    readme = (C / "README.md").read_text()
    scripts = re.findall(r"^```sh\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    (script,) = (text for text in scripts if 'flags="' in text)
    (visibility,) = (text.strip() for text in scripts if text.startswith("-fvisibility"))
    visibility = visibility.replace("'", "").replace('"', r"\"")
    run("bash", "-euc", script.replace('flags="', f'flags="{visibility} '), cwd=folder)
    run(gcc, "-shared", "-Wl,-z,nodelete,-z,defs", *folder.glob("*.o"), "-lm", "-pthread", "-o", library)
    exported = {line.split()[-1] for line in run("nm", "-D", "--defined-only", library).splitlines()}
    declared = set(re.findall(r"^FSM_API [^;(]*?(\w+)\(", (C / "fastsoftmax.h").read_text(), re.MULTILINE))
    assert len(declared) == 12
    assert exported == declared


def test_the_coefficients_are_what_the_fit_gives():
    run(sys.executable, C / "fit.py", "--check")


def test_exp_on_aarch64(cross):
    run(need("qemu-aarch64"), cross / "exp_check_neon", "40009")


def test_any_calls_on_aarch64(cross):
    assert run(need("qemu-aarch64"), cross / "fuzz", "5000") == "neon: 5000 executions\n"


def test_aarch64_gives_the_same_bits(cross, reference):
    found = digests(run(need("qemu-aarch64"), cross / "selfcheck"))
    assert isas_of(found) == ["neon", "scalar"]
    assert by_fma(found) == reference


@x86_64_only
@pytest.mark.parametrize("model", MODELS)
def test_other_x86_cpus_give_the_same_bits(model, x86_runs, reference):
    found = digests(x86_runs[model].result())
    assert isas_of(found) == MODELS[model]
    assert by_fma(found) == {True: reference[True] if "avx2" in MODELS[model] else {}, False: reference[False]}
