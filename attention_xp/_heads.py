"""Split the width of arrays into heads, and join them again."""

from attention_xp._backend.libraries import device, is_jax_namespace
from attention_xp._typing import Array, Namespace

__all__ = ["join", "split", "stand_in"]


def stand_in(xp: Namespace, a: Array, heads: int, width: int) -> Array:
    """Return an array of the shape (B, H, S, dh) that a projection will have, with the memory of one number."""
    place = None if is_jax_namespace(xp) else device(a)  # JAX places its arrays itself, and some on many devices
    return xp.broadcast_to(xp.zeros((), dtype=a.dtype, device=place), (*a.shape[:-2], heads, a.shape[-2], width))


def split(x: Array, heads: int, xp: Namespace) -> Array:
    """Split the width into heads: (..., S, H * dh) -> (..., H, S, dh)."""
    *lead, length, width = x.shape
    return _swap(xp.reshape(x, (*lead, length, heads, width // heads)), xp)


def join(x: Array, xp: Namespace) -> Array:
    """Join the heads again: (..., H, S, dh) -> (..., S, H * dh)."""
    *lead, heads, length, width = x.shape
    return xp.reshape(_swap(x, xp), (*lead, length, heads * width))


def _swap(x: Array, xp: Namespace) -> Array:
    """Exchange heads and sequence; `permute_dims`, because torch cannot map `moveaxis`."""
    *lead, a, b, c = range(x.ndim)
    return xp.permute_dims(x, (*lead, b, a, c))
