"""Options of the benchmark, the cells as parameters, and what goes into the JSON besides the times."""

import os
import platform
from pathlib import Path

import pytest
from peers import OURS, PEERS, load, version
from workloads import cells

import fastsoftmax

FLAGS = ("sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512dq", "avx512vl", "asimd", "sve")
TWO_THREADS = pytest.StashKey[dict[str, object]]()


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="all cells")
    parser.addoption("--seconds", type=float, default=0.6, help="per cell on one thread (0.6)")


def pytest_configure(config):
    config.stash[TWO_THREADS] = {}


def pytest_generate_tests(metafunc):
    if "cell" in metafunc.fixturenames:
        metafunc.parametrize("cell", cells(metafunc.config.option.full), ids=lambda cell: cell.id)


@pytest.fixture(scope="session")
def libraries():
    """Us and those of the peers that are installed, on one thread."""
    found = {name: load(name, threads=1) for name in (OURS, *PEERS)}
    return {name: library for name, library in found.items() if library}


def caches():
    """The caches of the first CPU, as Linux tells them."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        found[f"L{level} {kind}"] = size
    return found


def pytest_benchmark_update_machine_info(config, machine_info):
    cpu = machine_info.pop("cpu")
    machine_info["cpu"] = {
        "model": cpu.get("brand_raw", platform.processor()),
        "count": os.cpu_count(),
        "flags": [flag for flag in FLAGS if flag in cpu.get("flags", ())],
        "caches": caches(),
    }
    machine_info["load"] = os.getloadavg()
    machine_info["versions"] = {name: version(name) for name in (OURS, *PEERS)}
    machine_info["fastsoftmax"] = fastsoftmax.show_config("dicts")


def pytest_benchmark_update_json(config, benchmarks, output_json):
    output_json["two_threads"] = config.stash[TWO_THREADS]
    for benchmark in output_json["benchmarks"]:
        del benchmark["stats"]["data"]  # every round's time
