"""Functions compiled by JAX, of which a limited number is kept."""

import sys
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

__all__ = ["jitted"]

_MOST = 128  # kinds of calls: each takes megabytes


@lru_cache(_MOST)
def jitted(function: Callable[..., Any], *fixed: Any) -> Callable[..., Any]:
    """Return a function of a module with its first arguments fixed, compiled by JAX once for equal arguments.

    Programs that have not been called for long are dropped, which `jax.jit` alone does not do.
    """
    compiled: Callable[..., Any] = sys.modules["jax"].jit(partial(function, *fixed))
    return compiled
