"""Load the recorded real logits (needs NumPy only).

With the repository root on ``sys.path``::

    from bench.logits.load import load

    for name, logits in load().items():
        ...  # softmax along the last axis

What every array is, and where it comes from: ``README.md`` next to this file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent

#: The arrays that ``load`` returns; each is the file ``<name>.npy``.
NAMES = (
    "digits",
    "ocr_vocab",
    "ocr_attention",
    "tashkeel_attention",
    "minilm_attention",
)

#: The true classes (int8, 0..9) of the rows of ``digits``, for cross-entropy.
DIGITS_LABELS = HERE / "digits_labels.npy"


def load() -> dict[str, np.ndarray]:
    """Return the recorded logits by name.

    Every array is C-contiguous float32, and the model takes its softmax along
    the last axis. ``minilm_attention`` holds ``-inf`` where a key is padding;
    all the other values are finite, and no row is all ``-inf``. The arrays are
    fresh copies, so the caller may write to them.

    Returns:
        The names of ``NAMES``, in that order, each with its logits.
    """
    return {name: np.load(HERE / f"{name}.npy", allow_pickle=False) for name in NAMES}
