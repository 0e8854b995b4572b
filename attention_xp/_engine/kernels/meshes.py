"""Arrays of JAX that are sharded over an explicit mesh, by their type: which kernels can compute with them."""

from collections.abc import Container

from attention_xp._backend.libraries import is_jax_namespace
from attention_xp._backend.sharding import explicit_axes, is_on_explicit_mesh, knows_automatic_axes
from attention_xp._engine.problem.problem import Problem

__all__ = ["is_automatic", "refused_mesh"]


def is_automatic(problem: Problem, kernel: str) -> bool:
    """Whether a kernel computes a problem on an explicit mesh as on an automatic one.

    A function of the user may close over arrays that are sharded by their type, which the formula then follows.
    """
    if not is_jax_namespace(problem.xp) or not knows_automatic_axes():
        return False
    if kernel == "dense" and problem.has_foreign_code():
        return False
    return is_on_explicit_mesh(problem.query)


def refused_mesh(problem: Problem, kernel: str, treated: Container[int]) -> str | None:
    """Return why a kernel cannot compute a problem: an array is sharded along an axis that it does not handle."""
    if not is_jax_namespace(problem.xp) or is_automatic(problem, kernel):
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
