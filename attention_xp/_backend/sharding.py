"""Arrays of JAX that are sharded over devices: by their type, or inside `jax.shard_map`."""

import sys
from typing import Any

from attention_xp._typing import Array

__all__ = [
    "explicit_axes",
    "spread_like",
    "spread_over",
    "varying_axes",
]


def explicit_axes(array: Array) -> tuple[int, ...]:
    """Return the axes of an array of JAX, counted from the end, that are sharded over an explicit mesh by its type.

    JAX then needs a sharding rule for each operation, and some have none.
    """
    jax: Any = sys.modules["jax"]
    if not hasattr(jax, "typeof"):
        return ()
    spec = getattr(getattr(jax.typeof(array), "sharding", None), "spec", ())
    return tuple(i - len(spec) for i, names in enumerate(spec) if names is not None)


def varying_axes(arrays: Any) -> frozenset[str]:
    """Return the axes of a mesh along which arrays of JAX vary; there are none outside of `jax.shard_map`."""
    jax: Any = sys.modules["jax"]
    if not hasattr(jax, "typeof"):
        return frozenset()
    kinds = [jax.typeof(array) for array in jax.tree.leaves(arrays)]
    kinds = [getattr(kind, "manual_axis_type", kind) for kind in kinds]  # since JAX 0.10
    return frozenset().union(*(getattr(kind, "varying", getattr(kind, "vma", frozenset())) for kind in kinds))


def spread_like(arrays: Any, like: Any) -> Any:
    """Return arrays of JAX, in any pytree, with a type that varies over devices as soon as one of `like` does.

    Inside `jax.shard_map`, the state of a loop must vary from the beginning, and zeros do not.
    """
    return spread_over(arrays, varying_axes(like))


def spread_over(arrays: Any, axes: frozenset[str]) -> Any:
    """Return arrays of JAX with a type that varies along some axes of a mesh."""
    jax: Any = sys.modules["jax"]

    def spread(array: Array) -> Array:
        missing = tuple(sorted(axes - varying_axes(array)))
        return jax.lax.pcast(array, missing, to="varying") if missing else array

    return jax.tree.map(spread, arrays) if axes else arrays
