"""Arrays with as many axes as those they are combined with, as JAX's strict rank promotion asks for."""

from typing import Any

from attention_xp._typing import Array, Namespace

__all__ = ["filled_up"]


def filled_up(xp: Namespace, array: Array, ndim: int, behind: int = 0) -> Array:
    """Return an array with `ndim` axes: `behind` new ones of length 1 at its end, and the others in front.

    Under ``jax_numpy_rank_promotion="raise"``, JAX broadcasts no array to more axes by itself.
    """
    shape: tuple[Any, ...] = (*array.shape, *(1,) * behind)
    shape = (1,) * (ndim - len(shape)) + shape
    return array if len(shape) == array.ndim else xp.reshape(array, shape)
