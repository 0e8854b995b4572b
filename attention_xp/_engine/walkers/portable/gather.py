"""The keys or values of a tile, and arrays in the dtype of the computation."""

from attention_xp._backend.dtypes import as_dtype
from attention_xp._engine.plan.plan import Tile
from attention_xp._engine.problem.problem import Problem
from attention_xp._typing import Array

__all__ = ["cast", "gathered"]


def cast(problem: Problem, x: Array) -> Array:
    """Return an array in the dtype of the computation."""
    return as_dtype(problem.xp, x, problem.dtype)


def gathered(problem: Problem, x: Array, tile: Tile) -> Array:
    """Return the keys or values of a tile side by side, (..., n, D)."""
    stretches = [cast(problem, x[..., first:last, :]) for first, last in tile.columns]
    return stretches[0] if len(stretches) == 1 else problem.xp.concat(stretches, axis=-2)
