"""What is timed: a table of cells, each one operation on one array, and the logits they are fed."""

import math
import zlib
from dataclasses import dataclass

import ml_dtypes  # noqa: F401  NumPy learns "bfloat16" from it
import numpy as np
from numpy.typing import NDArray
from peers import DOUBLE, HALVES

OPS = ("softmax", "log_softmax", "logsumexp")
LOSSES = ("cross_entropy", "cross_entropy_grad")  # one loss a row; the gradient of their sum, and the loss
SCALE = 3.0  # standard deviation of the logits; those of trained models lie between 2 and 10
WORTH_THREADS = 100_000  # elements: about 100 µs of work for the best peer on one thread


@dataclass(frozen=True)
class Workload:
    """An array and the axis of its rows; `kind` is the line of the summary that it belongs to."""

    name: str
    shape: tuple[int, ...]
    kind: str
    axis: int = -1
    causal: bool = False  # -inf above the diagonal
    modifier: str = ""  # what is done to the rows first: "temperature", "bias", "mask" or "causal mask"
    out: bool = True  # results go into arrays made before; without, every call makes its own
    full: bool = False  # too long for the short version


@dataclass(frozen=True)
class Cell:
    """One operation on one workload in one precision."""

    op: str
    dtype: str
    workload: Workload

    @property
    def id(self) -> str:
        return f"{self.op}-{self.dtype}-{self.workload.name}"

    @property
    def size(self) -> int:
        return math.prod(self.workload.shape)

    def logits(self) -> NDArray[np.floating]:
        """Normal numbers, the same ones in every process and for every operation."""
        w = self.workload
        random = np.random.default_rng(zlib.crc32(w.name.encode()))
        x = random.standard_normal(w.shape, np.float32)
        x *= np.float32(SCALE)
        if w.causal:
            x[..., np.triu(np.ones(w.shape[-2:], bool), 1)] = -np.inf
        return x.astype(self.dtype)

    def given(self) -> dict[str, NDArray[np.generic] | float]:
        """What modifies rows, as arguments of softmax, the same for all but for a causal mask; or their targets."""
        n = self.workload.shape[-1]
        if self.op in LOSSES:
            return {"target": np.random.default_rng(0).integers(0, n, self.workload.shape[:-1])}
        if self.workload.modifier == "temperature":
            return {"temperature": 0.7}
        if self.workload.modifier == "bias":  # ALiBi's of one head
            return {"bias": np.linspace(-n / 64, 0, n, dtype=np.float32).astype(self.dtype)}
        if self.workload.modifier == "mask":  # padding
            return {"where": np.arange(n) < n * 3 // 4}
        if self.workload.modifier == "causal mask":
            return {"where": np.tri(*self.workload.shape[-2:], dtype=bool)}
        return {}


SWEEP = [10**i for i in range(1, 7)]  # columns of a million numbers

WORKLOADS = (
    Workload("10", (10,), "tiny calls"),
    Workload("10-new", (10,), "tiny calls", out=False),
    Workload("10x5", (10, 5), "tiny calls"),
    Workload("10x5-new", (10, 5), "tiny calls", out=False),
    Workload("64x10", (64, 10), "small calls"),
    Workload("4096x8", (4096, 8), "short rows"),
    Workload("4096x128", (4096, 128), "short rows"),
    Workload("1000000x10", (1_000_000, 10), "short rows"),
    Workload("128x1000", (128, 1000), "rows"),
    Workload("256x1000", (256, 1000), "rows", full=True),
    Workload("6144x512", (6144, 512), "rows"),  # attention of BERT: 12 heads of 512 x 512
    Workload("1024x1024", (1024, 1024), "rows", full=True),
    Workload("1024x1024-causal", (1024, 1024), "rows", causal=True),  # attention of GPT-2
    Workload("1x30522", (1, 30_522), "rows"),
    Workload("32x37000", (32, 37_000), "rows", full=True),
    Workload("32x50257", (32, 50_257), "rows"),
    Workload("1x80000", (1, 80_000), "rows", full=True),
    Workload("16x128256", (16, 128_256), "rows"),
    Workload("1x262144", (1, 262_144), "rows"),
    Workload("1x16777216", (1, 16_777_216), "one huge row"),
    Workload("1000x1000-axis0", (1000, 1000), "other axes", axis=0),
    Workload("512x4096-axis0", (512, 4096), "other axes", axis=0),
    Workload("16x64x1024-axis1", (16, 64, 1024), "other axes", axis=1),
    Workload("128x1000-temperature", (128, 1000), "modified", modifier="temperature"),
    Workload("1x30522-temperature", (1, 30_522), "modified", modifier="temperature"),
    Workload("6144x512-bias", (6144, 512), "modified", modifier="bias"),
    Workload("6144x512-mask", (6144, 512), "modified", modifier="mask"),
    Workload("1024x1024-causal-mask", (1024, 1024), "modified", modifier="causal mask"),
    *(Workload(f"sweep-{10**6 // k}x{k}", (10**6 // k, k), "sweep", full=True) for k in SWEEP),
    *(Workload(f"{rows}x2", (rows, 2), "short rows", full=True) for rows in (256, 100_000)),  # next sentence, yes or no
)

IN_FLOAT64 = ("10", "4096x128", "128x1000", "32x50257", "1000x1000-axis0")  # in the short version
IN_HALVES = ("10", "4096x128", "128x1000", "32x50257", "4096x8")  # in both
WITH_LOSSES = ("10", "4096x8", "4096x128", "128x1000", "1x30522", "32x50257", "1x16777216")  # in both
LOSSES_IN_OTHERS = ("128x1000", "32x50257")  # in float64 and halves


OTHERS = DOUBLE + HALVES


def ops_of(workload: Workload) -> tuple[str, ...]:
    return OPS[:1] if workload.modifier else OPS


def cells(full: bool = False) -> list[Cell]:
    """The cells of the short version, or all."""
    single = [Cell(op, "float32", w) for w in WORKLOADS for op in ops_of(w) if full or not w.full]
    double = [Cell(op, "float64", w) for w in WORKLOADS for op in ops_of(w) if full or w.name in IN_FLOAT64]
    halves = [Cell(op, d, w) for d in HALVES for w in WORKLOADS for op in OPS if w.name in IN_HALVES]
    losses = [Cell(op, "float32", w) for w in WORKLOADS for op in LOSSES if w.name in WITH_LOSSES]
    others = [Cell(op, d, w) for d in OTHERS for w in WORKLOADS for op in LOSSES if w.name in LOSSES_IN_OTHERS]
    return single + double + halves + losses + others


def cells_for_threads(full: bool = False) -> list[Cell]:
    """Those long enough for a second thread; in the short version without log_softmax, which is like softmax."""
    return [
        cell
        for cell in cells(full)
        if cell.size >= WORTH_THREADS and (full or cell.op not in ("log_softmax", "cross_entropy_grad"))
    ]
