"""Write the table of README.md from the results of the main job.

python bench/run.py --json results.json && python bench/readme.py results.json
"""

import json
import sys
from itertools import groupby
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- table: bench/readme.py -->", "<!-- end of table -->"


def table(results: list[dict]) -> str:
    """A row for each function and array: the default backend against NumPy and SciPy, losing rows included."""
    lines = [
        "| | time | NumPy takes | SciPy takes | worst error | NumPy's | SciPy's |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for (op, array), group in groupby(results, key=lambda r: (r["op"], r["array"])):
        records = list(group)
        ours, numpy, scipy = records[0], *(next(r for r in records if r["who"] == who) for who in ("NumPy", "SciPy"))
        shape = " x ".join(map(str, ours["shape"]))
        ratios = (f"{peer['seconds'] / ours['seconds']:.1f}" for peer in (numpy, scipy))
        errors = (f"{r['ulp']:.2g}" if r["ulp"] < 10 else f"{r['ulp']:.0f}" for r in (ours, numpy, scipy))
        cells = (f"`{op}` {array} {shape}", f"{ours['seconds'] * 1e6:.0f} µs", *ratios, *errors)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    results = json.loads(Path(sys.argv[1]).read_text())["results"]
    before, rest = README.read_text().split(BEGIN)
    after = rest.split(END)[1]
    README.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}")


if __name__ == "__main__":
    main()
