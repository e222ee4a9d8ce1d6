"""cross_entropy, nll_loss and kl_div give what torch gives: recorded by record_torch.py, and live where torch is."""

import inspect
import warnings

import numpy as np
import pytest
import record_torch
from numpy.testing import assert_allclose, assert_array_equal

import fastsoftmax as fsm

# torch is off by units in the last place of 1 where the loss is next to nothing.
CLOSE = {"float32": {"rtol": 4e-6, "atol": 1e-6}, "float64": {"rtol": 1e-12, "atol": 2e-15}}
RECORDED = record_torch.load()


def call(case, axis=None, **more):
    """Our function on the arrays and options of a case."""
    function = getattr(fsm, case["function"])
    options = {name: case[name] for name in case.keys() & inspect.signature(function).parameters.keys()}
    options = {name: value for name, value in options.items() if name not in ("logits", "target")}
    if case["function"] != "kl_div":
        options["axis"] = min(1, case["logits"].ndim - 1) if axis is None else axis
    return function(case["logits"], case["target"], **options, **more)


def check(case, backend):
    close = CLOSE[case["logits"].dtype.name]
    about = str({name: value for name, value in case.items() if name not in ("loss", "grad")})
    if case["function"] == "cross_entropy":
        loss, grad = call(case, return_grad=True, backend=backend)
        if case["grad"] is not None:
            assert grad.dtype == case["logits"].dtype
            assert_allclose(grad, case["grad"], err_msg=about, strict=True, **close)
        assert_array_equal(call(case, backend=backend), loss)
    else:
        loss = call(case)
    assert loss.dtype == case["logits"].dtype
    assert_allclose(loss, case["loss"], err_msg=about, strict=loss.ndim > 0, **close)


def test_enough_was_recorded():
    for dtype in ("float32", "float64"):
        names = [case["function"] for case in RECORDED if case["logits"].dtype == dtype]
        assert names.count("cross_entropy") >= 75
        assert names.count("nll_loss") >= 10
        assert names.count("kl_div") >= 10


def test_recorded_cross_entropy(dtype, backend):
    for case in RECORDED:
        if case["function"] == "cross_entropy" and case["logits"].dtype == dtype:
            check(case, backend)


@pytest.mark.parametrize("function", ["nll_loss", "kl_div"])
def test_recorded(function, dtype):
    for case in RECORDED:
        if case["function"] == function and case["logits"].dtype == dtype:
            check(case, None)


@pytest.mark.parametrize("function", ["cross_entropy", "nll_loss"])
def test_recorded_with_the_classes_on_another_axis(function):
    """The rows keep their order."""
    for case in RECORDED:
        if case["function"] != function:
            continue
        now = min(1, case["logits"].ndim - 1)
        for axis in range(case["logits"].ndim):
            moved = case | {"logits": np.moveaxis(case["logits"], now, axis)}
            if case["target"].dtype.kind == "f":
                moved["target"] = np.moveaxis(case["target"], now, axis)
            for a in (axis, axis - case["logits"].ndim):
                assert_allclose(call(moved, a), case["loss"], **CLOSE[case["logits"].dtype.name])


def test_live():
    """300 cases of which nobody knows the outcome beforehand."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torch", reason="the live comparison needs `pip install torch`")
    seed = int(np.random.SeedSequence().entropy % 2**32)
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    backends = [None, *fsm.backends()]
    for _ in range(300):
        check(record_torch.by_torch(record_torch.random_case(rng)), backends[rng.integers(len(backends))])


def test_deliberate_differences():
    """Where this package decides otherwise than torch: recorded here by hand."""
    inf = np.inf
    x, q = np.array([-inf, 0.0]), np.array([0.0, 1.0])
    assert fsm.cross_entropy(x, q) == 0  # torch: nan, of 0 * inf
    assert fsm.cross_entropy(x, 0, weight=[0.0, 1.0], reduction="sum") == 0  # torch: nan
    assert fsm.kl_div(x, q, reduction="sum") == 0  # torch: nan, unless log_probs is finite where target is 0
    assert fsm.kl_div(x, x, reduction="sum", log_target=True) == 0  # torch: nan
    loss, grad = fsm.cross_entropy([[np.nan, 0.0], [0.0, 0.0]], [-100, 1], return_grad=True)
    assert loss == pytest.approx(np.log(2), rel=1e-15)
    assert_array_equal(grad, [[0, 0], [0.5, -0.5]])  # torch: nan in the first row
    for smoothing in (-0.1, np.nan):  # torch takes both
        with pytest.raises(ValueError, match="label_smoothing"):
            fsm.cross_entropy(x, 1, label_smoothing=smoothing)
