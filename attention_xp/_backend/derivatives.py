"""The derivatives that libraries have of their own."""

import sys
from collections.abc import Callable

from attention_xp._backend.libraries import is_jax_namespace, is_torch_namespace, library_name
from attention_xp._typing import Array, Namespace

__all__ = [
    "can_differentiate",
    "constant",
    "pullback",
    "scaled",
]


def can_differentiate(xp: Namespace) -> bool:
    """Whether the library has derivatives of its own."""
    return library_name(xp) in ("torch", "jax")


def constant(xp: Namespace, array: Array) -> Array:
    """Return an array that derivatives take for a constant."""
    if not can_differentiate(xp):
        return array
    return array.detach() if is_torch_namespace(xp) else sys.modules["jax"].lax.stop_gradient(array)


def scaled(xp: Namespace, array: Array, factor: float | Array) -> Array:
    """Return ``array * factor``; what is not finite, such as padding, adds nothing to the gradient of an array as factor."""
    if isinstance(factor, float) or not can_differentiate(xp):
        return array * factor
    is_finite = xp.isfinite(array)
    return xp.where(is_finite, array, 0.0) * factor + xp.where(is_finite, 0.0, array)


def pullback(
    xp: Namespace, function: Callable[..., Array], *arrays: Array
) -> tuple[Array, Callable[[Array], tuple[Array, ...]]] | None:
    """Return ``function(*arrays)`` and its transposed derivative, or ``None`` where the library has no derivatives."""
    if is_torch_namespace(xp):
        return sys.modules["torch"].func.vjp(function, *arrays)  # type: ignore[no-any-return]
    if is_jax_namespace(xp):
        return sys.modules["jax"].vjp(function, *arrays)  # type: ignore[no-any-return]
    return None
