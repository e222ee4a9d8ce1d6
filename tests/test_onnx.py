"""The node tests of ONNX for softmax, log_softmax, logsumexp, cross_entropy and nll_loss under their names there."""

import functools
import importlib
import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose

import fastsoftmax as fsm

RTOL = {"float32": 2e-6, "float64": 1e-13}
MODULES = ["softmax", "logsoftmax", "reduce_log_sum_exp", "softmax_cross_entropy_loss", "negativeloglikelihoodloss"]


def softmax(x, *, axis=-1, backend):
    return (fsm.softmax(x, axis, backend=backend),)


def log_softmax(x, *, axis=-1, backend):
    return (fsm.log_softmax(x, axis, backend=backend),)


def reduce_log_sum_exp(x, axes=(), *, keepdims=1, backend):
    axis = tuple(int(a) for a in axes) or None
    return (fsm.logsumexp(x, axis, keepdims=bool(keepdims), backend=backend),)


def cross_entropy(x, target, weight=None, *, ignore_index=-100, reduction=b"mean", backend):
    given = {"weight": weight, "ignore_index": ignore_index, "reduction": reduction.decode()}
    return fsm.cross_entropy(x, target, 1, backend=backend, **given), fsm.log_softmax(x, 1, backend=backend)


def nll_loss(x, target, weight=None, *, ignore_index=-100, reduction=b"mean", backend):
    return (fsm.nll_loss(x, target, 1, weight=weight, ignore_index=ignore_index, reduction=reduction.decode()),)


OPERATORS = {
    "Softmax": softmax,
    "LogSoftmax": log_softmax,
    "ReduceLogSumExp": reduce_log_sum_exp,
    "SoftmaxCrossEntropyLoss": cross_entropy,
    "NegativeLogLikelihoodLoss": nll_loss,
}


@functools.cache
def node_tests():
    """The cases whose graph is one node of OPERATORS: a module adds its own to a list when it is imported."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        cases = pytest.importorskip("onnx.backend.test.case.node", reason="the node tests need `pip install onnx`")
        for name in MODULES:
            importlib.import_module(f"{cases.__name__}.{name}")
    nodes = ((case, case.model.graph.node) for case in cases._NodeTestCases)
    return [(case, node[0]) for case, node in nodes if len(node) == 1 and node[0].op_type in OPERATORS]


def test_all_of_them_are_here():
    assert len({case.name for case, _ in node_tests()}) >= 75
    assert {node.op_type for _, node in node_tests()} == set(OPERATORS)


@pytest.mark.parametrize("operator", OPERATORS)
def test_node_tests(operator, backend):
    helper = pytest.importorskip("onnx.helper", reason="the node tests need `pip install onnx`")
    for case, node in node_tests():
        if node.op_type != operator:
            continue
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        for inputs, outputs in case.data_sets:
            got = OPERATORS[operator](*inputs, backend=backend, **attributes)
            for mine, theirs in zip(got, outputs, strict=False):
                rtol = RTOL[np.result_type(theirs).name]
                assert_allclose(mine, theirs, rtol=rtol, atol=0, err_msg=case.name, strict=np.ndim(theirs) > 0)
