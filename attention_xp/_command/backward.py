"""A call together with its gradients, by the means of its library."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from attention_xp._vjp import attention_vjp

__all__ = ["with_gradients"]


def with_gradients(backend: str, attend: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    """Return the function from query, key and value to their gradients, for the output as the gradient of itself.

    PyTorch and JAX differentiate the output of `attend`; for other libraries `attention_vjp` takes the `options`.
    """
    if backend == "torch":
        return partial(_by_torch, attend)
    if backend == "jax":
        return partial(_by_jax, attend)
    return partial(_by_hand, options)


def _by_torch(attend: Callable[..., Any], *arrays: Any) -> Any:
    leaves = [array.detach().requires_grad_() for array in arrays]
    output = attend(*leaves)
    return sys.modules["torch"].autograd.grad(output, leaves, output.detach())


def _by_jax(attend: Callable[..., Any], *arrays: Any) -> Any:
    output, pull_back = sys.modules["jax"].vjp(attend, *arrays)
    return pull_back(output)


def _by_hand(options: dict[str, Any], *arrays: Any) -> Any:
    output, vjp = attention_vjp(*arrays, **options)
    return vjp(output)
