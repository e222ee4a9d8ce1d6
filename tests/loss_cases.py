"""Losses from formulas in long double, rows with targets, and the options that are tried; for the tests of losses."""

import numpy as np
import reference as ref

import fastsoftmax as fsm

LD = np.longdouble
REDUCTIONS = ["none", "mean", "sum"]
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
PLAIN_BOUND = {"float32": 2.5, "float64": 3.0}
GRADIENT_BOUND = 8
inf, nan = np.inf, np.nan
X, Y, Q = np.zeros((3, 4)), np.zeros(3, int), np.full((3, 4), 0.25)  # logits, classes and probabilities that can be


# ---- the reference ----


def product(a, b):
    """a * b, where nothing times anything is nothing."""
    with np.errstate(all="ignore"):
        return np.where((a == 0) | (b == 0), 0, a * b)


def times_weight(t, y):
    """The same for t alone: NaN where y is NaN, 0 where y is infinite and t is not there."""
    with np.errstate(all="ignore"):
        return np.where(t == 0, 0, t * y)


class Exact:
    """Losses and gradients of rows on the last axis, in long double, from log-probabilities `y`."""

    def __init__(self, z, target, weight=None, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, temperature=1.0):
        z, target, eps = np.asarray(z), np.asarray(target), LD(label_smoothing)
        if np.ndim(temperature) or temperature != 1:
            z = z / np.asarray(temperature, z.dtype)  # rounded once
        classes = z.shape[-1]
        w = np.ones(classes, LD) if weight is None else ref.exactly(weight)
        self.y, lse = ref.log_softmax(z), ref.logsumexp(z)
        self.indices = target.dtype.kind in "iu"
        if self.indices:
            self.ignored = target == ignore_index
            one_hot = np.arange(classes) == target[..., np.newaxis]
            t = w * (one_hot * (1 - eps) + eps / classes)
            if eps == 0:
                t = np.where(one_hot, w, 0)
            else:
                t = (1 - eps) * np.where(one_hot, w, 0).sum(-1, keepdims=True) * one_hot + eps / classes * w
            t[self.ignored] = 0
            self.counts = np.where(self.ignored, 0, w[np.where(self.ignored, 0, target)])
        else:
            self.ignored = np.zeros(z.shape[:-1], bool)
            t = w * (ref.exactly(target) * (1 - eps) + eps / classes)
            self.counts = np.ones(z.shape[:-1], LD)
        self.terms = t
        self.loss = ref.exact_sum(times_weight(t, -self.y))
        self.z_loss = np.where(self.ignored, 0, product(LD(z_loss), lse * lse))
        self.lse, self.z, self.temperature = lse, z_loss, LD(1) * temperature

    def reduced(self, reduction):
        if reduction == "none":
            return self.loss + self.z_loss
        loss, z_loss = self.loss.ravel(), self.z_loss.ravel()
        if reduction == "sum":
            return ref.exact_sum(loss) + ref.exact_sum(z_loss)
        with np.errstate(all="ignore"):
            mean = ref.exact_sum(loss) / ref.exact_sum(self.counts.ravel())
            return mean + ref.exact_sum(z_loss) / (~self.ignored).sum() if self.z else mean

    def gradient(self, reduction):
        """p * (sum of t) - t, and how large its parts are, whose difference it is."""
        p, total = np.exp(self.y), self.terms.sum(-1, keepdims=True)
        alone = self.indices & (self.terms == total) & (total != 0)  # one class has it all: p - 1 without cancellation
        grad = np.where(alone, total * np.expm1(self.y), total * p - self.terms)
        size = np.where(alone, abs(grad), total * p + abs(self.terms))
        factor = np.where(self.ignored, 0, 2 * LD(self.z) * self.lse)[..., np.newaxis]
        parts = [(grad, size), (factor * p, abs(factor) * p)]
        if reduction == "mean":
            by = (self.counts.sum() or 1, (~self.ignored).sum() or 1)
            parts = [(g / n, s / n) for (g, s), n in zip(parts, by, strict=True)]
        return tuple(sum(pair) / self.temperature for pair in zip(*parts, strict=True))


def random_rows(rng, shape, dtype, scale=3):
    """Logits, class indices of which some are -100, probabilities of which some are 0, weights."""
    x = rng.normal(0, scale, shape).astype(dtype)
    y = rng.integers(0, shape[-1], shape[:-1])
    y = np.where(rng.random(shape[:-1]) < 0.2, -100, y)
    q = rng.exponential(1, shape) * (rng.random(shape) < 0.7)
    q = (q / np.maximum(q.sum(axis=-1, keepdims=True), 1e-9)).astype(dtype)
    return x, y, q, rng.uniform(0.1, 3, shape[-1]).astype(dtype)


def at(y, target, axis):
    return np.take_along_axis(y, np.expand_dims(target, axis), axis).squeeze(axis)


def targets(rng, shape, axis):
    axis %= len(shape)
    return np.asarray(rng.integers(0, shape[axis], shape[:axis] + shape[axis + 1 :]))


OPTIONS = {
    "plain": {},
    "weight": {"weight": "w"},
    "temperature": {"temperature": 0.7},
    "z_loss": {"z_loss": 1e-3},
    "smoothing": {"label_smoothing": 0.1},
    "all": {"weight": "w", "temperature": 0.7, "z_loss": 1e-3, "label_smoothing": 0.1},
}


def results(x, y, w, options, **more):
    options = {"return_lse": True} | options | ({"weight": w} if "weight" in options else {}) | more
    for reduction in REDUCTIONS:
        yield from fsm.cross_entropy(x, y, reduction=reduction, return_grad=True, **options)
