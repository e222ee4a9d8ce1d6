"""What torch gives for small random cases of cross_entropy, nll_loss and kl_div, recorded in torch_cases.npz.

How to run it (torch 2.13.0 is what was recorded):  python tests/record_torch.py

A case is a dictionary: the function, its options, and arrays by name, among them the result and the gradient of its
sum. In the file, `cases` holds the dictionaries as JSON, each array as [dtype, shape, where it starts in `numbers`];
`numbers` is float64, which holds every number of the recorded types exactly.
"""

import json
import math
import warnings
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("torch_cases.npz")
ARRAYS = ("logits", "target", "weight", "loss", "grad")


def random_case(rng):
    """Options and arrays of one call, without the result."""
    function = str(rng.choice(["cross_entropy"] * 6 + ["nll_loss", "kl_div"]))
    dtype = np.dtype(rng.choice(["float32", "float64"]))
    ndim = int(rng.integers(1, 6))
    shape = [int(n) for n in rng.integers(1, (0, 7, 6, 4, 3, 3)[ndim], ndim)]
    if ndim == 1:
        shape = [int(rng.integers(1, 9))]
    axis = min(1, ndim - 1)
    shape[axis] = int(rng.integers(1, 9))
    classes, rows = shape[axis], shape[:axis] + shape[axis + 1 :]
    case = {"function": function, "reduction": str(rng.choice(["mean", "sum", "none"]))}
    logits = rng.normal(0, rng.choice([1, 3, 10]), shape)

    def probabilities():
        q = rng.exponential(1, shape) * (rng.random(shape) < 0.8)
        return q / np.maximum(q.sum(axis=axis, keepdims=True), 1e-300)

    if function == "kl_div":
        case["log_target"] = bool(rng.random() < 0.5)
        if rng.random() < 0.3:
            case["reduction"] = "batchmean"
        target = rng.normal(-2, 1, shape) if case["log_target"] else probabilities()
        return case | {"logits": logits.astype(dtype), "target": target.astype(dtype)}
    if rng.random() < 0.5:
        weight = np.round(rng.uniform(0.1, 3, classes), 3)
        if rng.random() < 0.2:
            weight[rng.integers(classes)] = 0
        case["weight"] = weight.astype(dtype)
    if function == "cross_entropy" and rng.random() < 0.5:
        case["label_smoothing"] = float(rng.choice([0.1, 0.25, 1.0]))
    if function == "cross_entropy" and rng.random() < 0.4:
        target = probabilities().astype(dtype)
    else:
        target = np.asarray(rng.integers(0, classes, rows))
        if rng.random() < 0.5:
            case["ignore_index"] = int(rng.choice([-100, -1, 255, rng.integers(classes)]))
            target = np.where(rng.random(rows) < 0.3, case["ignore_index"], target)
        counted = target[target != case.get("ignore_index")]
        if "weight" in case and not case["weight"][counted].any():
            case["weight"] += dtype.type(0.5)  # nothing / 0, which is NaN or inf by accident
        target = np.asarray(target, np.int64)
    return case | {"logits": logits.astype(dtype), "target": target}


def special_cases():
    """Where a special value decides, and this package agrees with torch. Without gradient: where that alone differs."""
    inf, nan = math.inf, math.nan
    for dtype in (np.float32, np.float64):
        for reduction in ("mean", "sum", "none"):
            x = np.array([[1.0, 2.0, 3.0], [0.0, -1.0, 4.0]], dtype)
            empty = np.empty((0, 3), dtype)
            base = {"function": "cross_entropy", "reduction": reduction}
            yield base | {"logits": x, "target": np.array([-100, -100])}
            yield base | {"logits": x, "target": np.array([1, 1]), "ignore_index": 1}
            yield base | {"logits": x[0], "target": np.array(-100)}
            yield base | {"logits": empty, "target": np.empty(0, np.int64)}
            yield base | {"logits": empty, "target": empty}
            yield base | {"logits": x, "target": np.array([-100, 2]), "label_smoothing": 0.1}
            for values, y in (
                ([-inf, 0.0, 1.0], 0),
                ([-inf, 0.0, 1.0], 2),
                ([nan, 0.0, 1.0], 2),
                ([inf, 0.0, 1.0], 0),
                ([inf, 0.0, 1.0], 1),
                ([-inf] * 3, 1),
                ([1e4, 0.0, -1e4], 2),
                ([5.0, 5.0, 5.0], 1),
            ):
                yield base | {"logits": np.array([values, x[1]], dtype), "target": np.array([y, 2])}
            low = np.array([[-inf, 0.0, 1.0], x[1]], dtype)
            one_hot = np.eye(3, dtype=dtype)[[0, 2]]
            yield base | {"logits": low, "target": np.array([2, 2]), "label_smoothing": 0.1, "grad": None}
            yield base | {"logits": low, "target": one_hot, "label_smoothing": 0.1, "grad": None}
            yield base | {"logits": np.array([[nan] * 3, x[1]], dtype), "target": np.array([-100, 2]), "grad": None}
            yield base | {"function": "kl_div", "logits": -abs(x), "target": one_hot}
            yield base | {"function": "kl_div", "logits": np.array([[-inf, -1.0]], dtype), "target": x[:1, :2]}
            for y in ([-100, -100], [-100, 0]):
                yield base | {"function": "nll_loss", "logits": low, "target": np.array(y)}


def by_torch(case):
    """The case with what torch gives for it."""
    import torch
    from torch.nn import functional

    options = {name: value for name, value in case.items() if name not in (*ARRAYS, "function")}
    logits = torch.tensor(case["logits"], requires_grad=True)
    if "weight" in case:
        options["weight"] = torch.tensor(case["weight"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kl_div advises batchmean
        loss = getattr(functional, case["function"])(logits, torch.tensor(case["target"]), **options)
    loss.sum().backward()
    return {"grad": logits.grad.numpy()} | case | {"loss": loss.detach().numpy()}


def save(cases):
    numbers, texts, start = [], [], 0
    for case in cases:
        text = dict(case)
        for name in ARRAYS:
            if isinstance(case.get(name), np.ndarray):
                text[name] = [case[name].dtype.name, case[name].shape, start]
                numbers.append(case[name].ravel().astype(np.float64))
                start += case[name].size
        texts.append(json.dumps(text))
    np.savez_compressed(FILE, cases=np.array(texts), numbers=np.concatenate(numbers))


def load():
    with np.load(FILE) as file:
        numbers, cases = file["numbers"], [json.loads(text) for text in file["cases"]]
    for case in cases:
        for name in ARRAYS:
            if case.get(name) is not None:
                dtype, shape, start = case[name]
                case[name] = numbers[start : start + math.prod(shape)].astype(dtype).reshape(shape)
    return cases


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    save([by_torch(case) for case in (*(random_case(rng) for _ in range(200)), *special_cases())])
    print(f"{len(load())} cases, {FILE.stat().st_size} bytes")
