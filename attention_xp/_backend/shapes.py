"""Shapes that broadcast: arrays with as many axes as those they are combined with, and sums back to their shapes."""

from typing import Any

from attention_xp._typing import Array, Namespace

__all__ = ["filled_up", "summed_to"]


def filled_up(xp: Namespace, array: Array, ndim: int, behind: int = 0) -> Array:
    """Return an array with `ndim` axes: `behind` new ones of length 1 at its end, and the others in front.

    Under ``jax_numpy_rank_promotion="raise"``, JAX broadcasts no array to more axes by itself.
    """
    shape: tuple[Any, ...] = (*array.shape, *(1,) * behind)
    shape = (1,) * (ndim - len(shape)) + shape
    return array if len(shape) == array.ndim else xp.reshape(array, shape)


def summed_to(xp: Namespace, array: Array, shape: tuple[int, ...]) -> Array:
    """Return the sum of an array over the axes along which a shape was broadcast to it.

    Where the array has an axis of length 1 instead of a longer one, it is broadcast.
    """
    surplus = array.ndim - len(shape)
    axes = tuple(i for i, n in enumerate(array.shape) if i < surplus or (shape[i - surplus] == 1 and n != 1))
    if axes:
        array = xp.sum(array, axis=axes, keepdims=True)
    if surplus > 0:
        array = xp.reshape(array, array.shape[surplus:])
    return xp.broadcast_to(array, shape) if tuple(array.shape) != shape else array
