"""Shapes of arrays that are combined: with as many axes each, for JAX may be told to refuse others."""

from typing import Any

from attention_xp._typing import Array, Namespace

__all__ = ["filled_up"]


def filled_up(xp: Namespace, array: Array, ndim: int, behind: int = 0) -> Array:
    """Return an array with `ndim` axes: `behind` of length 1 are new at its end, and the rest of them in front.

    What broadcasts does so without, but under ``jax_numpy_rank_promotion="raise"`` JAX wants it said.
    """
    shape: tuple[Any, ...] = (*array.shape, *(1,) * behind)
    shape = (1,) * (ndim - len(shape)) + shape
    return array if len(shape) == array.ndim else xp.reshape(array, shape)
