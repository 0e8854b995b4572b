"""Sizes that are symbols, in an export by JAX: arithmetic works, and comparisons mostly do not."""

import sys
from typing import Any

from attention_xp._typing import Array, Namespace

__all__ = ["as_number", "ceil_div", "is_open", "smaller"]


def is_open(*sizes: Any) -> bool:
    """Whether one of some sizes is a symbol of JAX's exporter."""
    if all(type(size) is int for size in sizes) or "jax" not in sys.modules:
        return False
    return any(type(size).__name__ == "_DimExpr" for size in sizes)  # the public question imports the exporter


def smaller(size: Any, other: int) -> Any:
    """Return the smaller one of a size, which may be a symbol, and a number."""
    return sys.modules["jax"].core.min_dim(size, other) if is_open(size) else min(size, other)


def ceil_div(size: Any, part: Any) -> Any:
    """Return how many parts a size has, rounded up."""
    return -(-size // part)


def as_number(xp: Namespace, size: Any) -> Array | Any:
    """Return a size that can be combined with int32 arrays: a symbol as such an array."""
    return sys.modules["jax"].numpy.asarray(size, dtype=xp.int32) if is_open(size) else size
