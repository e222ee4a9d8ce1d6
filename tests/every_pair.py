"""[x, 0] for every float32 x: softmax, log_softmax and logsumexp of pairs, measured against double.

python tests/every_pair.py [--stride N] [backend ...]

Every N-th of the 2^32 bit patterns, NaN and infinities included; all by default, in half an hour a backend. (The suite
takes every 997th, against long double: "[x,0], all exponents".) Prints the worst errors and their inputs, and exits 1
if one is past its bound.
"""

import argparse
import sys

import numpy as np

import fastsoftmax as fsm

CHUNK = 1 << 19
BOUNDS = {"softmax": 3.0, "log_softmax": 2.0, "logsumexp": 1.5}


def exact(x):
    """{function: results in double}; nothing cancels, so that they are good to 2^-26 ulp of float32 or better."""
    x = x.astype(np.float64)
    e = np.exp(-abs(x))
    loss, nothing = np.log1p(e), np.isnan(x) | (x == np.inf)
    larger, smaller = 1 / (1 + e), e / (1 + e)
    near, far = -loss, -abs(x) - loss
    above = x > 0
    p = np.stack([np.where(above, larger, smaller), np.where(above, smaller, larger)], axis=1)
    y = np.stack([np.where(above, near, far), np.where(above, far, near)], axis=1)
    p[nothing] = y[nothing] = np.nan
    return {"softmax": p, "log_softmax": y, "logsumexp": np.maximum(x, 0) + loss}


def ulp_off(got, want):
    """Units in the last place of float32; infinite where one is NaN or infinite and the other is not."""
    unit = np.ldexp(1.0, np.maximum(np.frexp(want)[1] - 24, -149))
    error = abs(got - want) / unit
    same = (got == want) | (np.isnan(got) & np.isnan(want)) | (np.isinf(got) & (abs(want) >= 2.0**128 - 2.0**103))
    return np.where(same, 0, np.where(np.isnan(error), np.inf, error))


def measure(backend, stride):
    """{function: (worst ulp, x)}"""
    worst = dict.fromkeys(BOUNDS, (-1.0, 0.0))
    for start in range(0, 1 << 32, CHUNK * stride):
        patterns = np.arange(start, min(start + CHUNK * stride, 1 << 32), stride, dtype=np.uint32)
        pairs = np.zeros((patterns.size, 2), np.float32)
        pairs[:, 0] = patterns.view(np.float32)
        with np.errstate(all="ignore"):
            for name, want in exact(pairs[:, 0]).items():
                error = ulp_off(getattr(fsm, name)(pairs, axis=-1, backend=backend), want)
                at = np.unravel_index(np.argmax(error), error.shape)
                worst[name] = max(worst[name], (float(error[at]), float(pairs[at[0], 0])))
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("backends", nargs="*", default=fsm.backends()[:1], metavar="backend")
    given, past = parser.parse_args(), 0
    for backend in given.backends:
        for name, (error, x) in measure(backend, given.stride).items():
            past += error > BOUNDS[name]
            print(f"{backend} {name}: {error:.4f} of {BOUNDS[name]} ulp at [{x.hex()}, 0]", flush=True)
    sys.exit(past > 0)


if __name__ == "__main__":
    main()
