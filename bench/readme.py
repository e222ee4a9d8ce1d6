"""Write the tables of README.md from the results of the main job, of the benchmark, or of both.

python bench/run.py --json run.json; make bench; python bench/readme.py run.json bench.json
"""

import json
import sys
from itertools import groupby
from pathlib import Path

from report import Row, microseconds, rows
from workloads import LOSSES, OPS

README = Path(__file__).resolve().parent.parent / "README.md"
RUN, END = "<!-- table: bench/readme.py -->", "<!-- end of table -->"
PEERS, AND_LOSSES = "<!-- table: peers -->", "<!-- table: losses -->"
NAMES = {"onnxruntime": "ONNX Runtime", "litert": "LiteRT", "torch": "PyTorch", "jax": "JAX", "openvino": "OpenVINO"}
NAMES |= {"numba": "Numba loop", "numpy": "NumPy", "scipy": "SciPy"}


def markdown(header: list[str], lines: list[list[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *lines)]
    lines.insert(1, "|---" + "|---:" * (len(header) - 1) + "|")
    return "\n".join(lines)


def run_table(results: list[dict]) -> str:
    """A row for each function and array: the default backend against NumPy and SciPy, losing rows included."""
    lines = []
    for (op, array), group in groupby(results, key=lambda r: (r["op"], r["array"])):
        records = list(group)
        ours, numpy, scipy = records[0], *(next(r for r in records if r["who"] == who) for who in ("NumPy", "SciPy"))
        shape = " x ".join(map(str, ours["shape"]))
        ratios = (f"{peer['seconds'] / ours['seconds']:.1f}" for peer in (numpy, scipy))
        errors = (f"{r['ulp']:.2g}" if r["ulp"] < 10 else f"{r['ulp']:.0f}" for r in (ours, numpy, scipy))
        lines.append([f"`{op}` {array} {shape}", f"{ours['seconds'] * 1e6:.0f} µs", *ratios, *errors])
    return markdown(["", "time", "NumPy takes", "SciPy takes", "worst error", "NumPy's", "SciPy's"], lines)


def against_the_best(row: Row) -> str:
    """Our time, and how many times as long the best peer takes; bold where it wins."""
    best = row.ranking[0]
    ratio = f"{row.best:.2f}" if row.best >= 1 else f"**{row.best:.2f}**"
    return f"{microseconds(row.ours['min'])} µs, {ratio} {NAMES.get(best, best)}"


def peers_table(measured: list[Row], ops: tuple[str, ...]) -> str:
    """A row for each shape in float32 on one thread: each operation against its best peer."""
    shapes: dict[str, dict[str, str]] = {}
    for row in measured:
        if row.single and row.cell.op in ops:
            shapes.setdefault(row.cell.workload.name, {})[row.cell.op] = against_the_best(row)
    return markdown(["", *ops], [[name, *(cells.get(op, "") for op in ops)] for name, cells in shapes.items()])


def replace(text: str, begin: str, table: str) -> str:
    before, rest = text.split(begin)
    return f"{before}{begin}\n{table}\n{END}{rest.split(END, 1)[1]}"


def main() -> None:
    text = README.read_text()
    for file in sys.argv[1:]:
        data = json.loads(Path(file).read_text())
        if "benchmarks" in data:
            text = replace(text, PEERS, peers_table(rows(data), OPS))
            text = replace(text, AND_LOSSES, peers_table(rows(data), LOSSES))
        else:
            text = replace(text, RUN, run_table(data["results"]))
    README.write_text(text)


if __name__ == "__main__":
    main()
