"""The softmax and log-sum-exp that NumPy lacks."""

__version__ = "0.1.0"

from ._api import (
    hardmax,
    log_softmax,
    logcumsumexp,
    logmeanexp,
    logsumexp,
    sigmoid,
    softmax,
    softmin,
    softplus,
)
from ._calls import explain
from ._config import (
    backends,
    get_num_threads,
    register_with_threadpoolctl,
    set_num_threads,
    show_config,
    threads,
)
from ._losses import cross_entropy, kl_div, nll_loss, token_logprobs
from ._vjp import log_softmax_vjp, logsumexp_vjp, softmax_vjp

__all__ = [
    "__version__",
    "backends",
    "cross_entropy",
    "explain",
    "get_num_threads",
    "hardmax",
    "kl_div",
    "log_softmax",
    "log_softmax_vjp",
    "logcumsumexp",
    "logmeanexp",
    "logsumexp",
    "logsumexp_vjp",
    "nll_loss",
    "register_with_threadpoolctl",
    "set_num_threads",
    "show_config",
    "sigmoid",
    "softmax",
    "softmax_vjp",
    "softmin",
    "softplus",
    "threads",
    "token_logprobs",
]
