"""The campaign of fuzz_api.py, in short; and that it would find what it looks for."""

import re
import warnings

import fuzz_api
import numpy as np
import pytest
from conftest import BACKENDS, HERE

import fastsoftmax as fsm

CASES = 3000


@pytest.mark.parametrize("backend", [*BACKENDS, None])
def test_hostile_calls(backend, python):
    """In its own process: what is looked for can kill it."""
    script = str(HERE / "fuzz_api.py")
    done = python(None, script, "--cases", str(CASES), "--seed", "20", "--backend", str(backend), timeout=600)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    assert done.stdout.endswith(f"{backend}: {CASES} cases, 0 findings\n")


def inaccurate(y, x, given):
    return y * np.asarray(1.0001, y.dtype) if y.dtype.kind == "f" else y


def without_nan(y, x, given):
    return np.nan_to_num(y)


def of_another_dtype(y, x, given):
    return y.astype(np.float64)


def writing_its_input(y, x, given):
    if type(x) is np.ndarray and x.flags.writeable and not np.may_share_memory(x, y):
        x[...] = 1
    return y


def not_returning_out(y, x, given):
    return y.copy()


def with_a_warning(y, x, given):
    warnings.warn("underflow", RuntimeWarning, stacklevel=1)
    return y


def of_another_kind(error, given):
    raise KeyError("axis") from error


def without_a_name(error, given):
    raise ValueError("this is wrong") from error


def accepting_anything(error, given):
    return np.zeros(3)


def half_written(error, given):
    if isinstance(given.get("out"), np.ndarray) and given["out"].flags.writeable and given["out"].dtype.kind == "f":
        given["out"][...] = 1
    raise error


WRONG_RESULTS = (inaccurate, without_nan, of_another_dtype, writing_its_input, not_returning_out, with_a_warning)


@pytest.mark.parametrize("defect", WRONG_RESULTS)
def test_it_finds_a_softmax(defect, monkeypatch):
    softmax = fsm.softmax

    def defective(x, *arguments, **given):
        y = softmax(x, *arguments, **given)
        return y if given.get("backend") == "numpy" or isinstance(y, tuple) else defect(y, x, given)

    monkeypatch.setattr(fsm, "softmax", defective)
    assert findings() > 0


@pytest.mark.parametrize("defect", [of_another_kind, without_a_name, accepting_anything, half_written])
def test_it_finds_a_refusal(defect, monkeypatch):
    softmax = fsm.softmax

    def defective(x, *arguments, **given):
        try:
            return softmax(x, *arguments, **given)
        except Exception as error:
            if given.get("backend") == "numpy":
                raise
            return defect(error, given)

    monkeypatch.setattr(fsm, "softmax", defective)
    assert findings() > 0


def findings():
    return fuzz_api.campaign(1500, 0, None, report=lambda line: None, most=1)


def test_seeds_make_the_same_calls_again():
    from fuzz_calls import make

    def calls(seed):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            texts = [str(make(np.random.default_rng([seed, number]))) for number in range(30)]
        return [re.sub(r"0x\w+", "", text) for text in texts]  # addresses

    assert calls(1) == calls(1) != calls(2)
