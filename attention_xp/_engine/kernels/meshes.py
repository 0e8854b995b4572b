"""Arrays of JAX that are sharded over an explicit mesh, by their type: which kernels can compute with them."""

from collections.abc import Container

from attention_xp._backend.libraries import library_name
from attention_xp._backend.sharding import explicit_axes, knows_automatic_axes
from attention_xp._engine.problem.problem import Problem

__all__ = ["refused_mesh"]


def refused_mesh(problem: Problem, treated: Container[int]) -> str | None:
    """Return why a kernel cannot compute a problem: an array is sharded along an axis that it does not handle.

    There is no reason where JAX can compute as on an automatic mesh (`in_automatic_axes`).
    """
    if library_name(problem.xp) != "jax" or knows_automatic_axes():
        return None
    of_heads = "the batch" if problem.heads is None else "the heads"
    for name, array in (("query", problem.query), ("key", problem.key), ("value", problem.value)):
        for axis in explicit_axes(array):
            if axis not in treated:
                where = {-1: "the width", -2: "the sequence", -3: of_heads}.get(axis, "the batch")
                return (
                    f"{name} is sharded along {where}, over an explicit axis of a mesh: expected the call "
                    "inside jax.shard_map, over batch and heads"
                )
    return None
