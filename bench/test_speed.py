"""Every cell on one thread, the peers taking turns with us; then on two threads, each library alone in its process.

On two threads they cannot take turns: their pools go on spinning after a call, on the CPUs that the next one needs.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TWO_THREADS
from measure import Rounds, Watch, enter, plan, repeated
from peers import OURS, PEERS
from workloads import LOSSES

import fastsoftmax

ALONE = Path(__file__).with_name("alone.py")


def test_one_thread(cell, libraries, benchmark, request):
    contestants, wrong = enter(cell, libraries, threads=1)
    ours, *peers = contestants
    total = plan(contestants, request.config.option.seconds)
    peers_round = Rounds(peers, total)

    def setup():
        peers_round()
        ours.warm()

    with Watch() as watch:
        benchmark.pedantic(repeated, (ours.job.call, ours.calls), setup=setup, rounds=total)
    ours.times = [seconds / ours.calls for seconds in benchmark.stats.stats.data]
    benchmark.extra_info["cell"] = cell.id
    op = "softmax" if cell.op in LOSSES else cell.op
    benchmark.extra_info["backend"] = str(fastsoftmax.explain(cell.logits(), op=op, axis=cell.workload.axis))
    benchmark.extra_info["results"] = {c.name: c.result() for c in contestants}
    benchmark.extra_info["wrong"] = wrong
    benchmark.extra_info["others"] = watch.others


@pytest.mark.parametrize("library", (OURS, *PEERS))
def test_two_threads(library, libraries, request):
    if library not in libraries:
        pytest.skip("the library is not installed: `make bench` installs those that there are")
    if not libraries[library].THREADED:
        pytest.skip("the library computes this on one thread, however many it may have")
    command = [sys.executable, str(ALONE), library, *(["--full"] if request.config.option.full else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    request.config.stash[TWO_THREADS][library] = json.loads(done.stdout)
