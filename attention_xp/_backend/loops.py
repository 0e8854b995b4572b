"""A loop over parts whose number grows with the lengths: one that JAX compiles once, and Python's elsewhere."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from attention_xp._backend.libraries import is_jax_namespace
from attention_xp._backend.modes import is_traced_by_jax
from attention_xp._typing import Array, Namespace

__all__ = ["fold_parts"]

T = TypeVar("T")


def fold_parts(
    xp: Namespace,
    first: int,
    stop: int,
    step: Callable[[Any, T], T],
    state: T,
    is_needed: Callable[[Any], Array | bool],
) -> T:
    """Return the state after ``step(i, state)`` of each number that `is_needed`; differentiable, with arrays as the state.

    JAX loops in the program where it traces one, and then asks `is_needed` there.
    """
    if not is_jax_namespace(xp) or not is_traced_by_jax():
        for i in range(first, stop):
            state = step(i, state)
        return state
    jax: Any = sys.modules["jax"]

    def body(before: T, i: Array) -> tuple[T, None]:
        return jax.lax.cond(is_needed(i), lambda s: step(i, s), lambda s: s, before), None

    return jax.lax.scan(body, state, jax.numpy.arange(first, stop, dtype=xp.int32))[0]  # type: ignore[no-any-return]
