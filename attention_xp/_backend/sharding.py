"""Arrays of JAX that are sharded over devices: by their type, or inside `jax.shard_map`."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from attention_xp._typing import Array

__all__ = [
    "explicit_axes",
    "in_automatic_axes",
    "is_on_explicit_mesh",
    "knows_automatic_axes",
    "spec_of",
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


def is_on_explicit_mesh(array: Array) -> bool:
    """Whether an array of JAX lies on a mesh with explicit axes by its type, sharded or not."""
    jax: Any = sys.modules["jax"]
    if not hasattr(jax, "typeof"):
        return False
    mesh = getattr(getattr(jax.typeof(array), "sharding", None), "mesh", None)
    return jax.sharding.AxisType.Explicit in getattr(mesh, "axis_types", ())


def knows_automatic_axes() -> bool:
    """Whether the installed JAX can compute with arrays on an explicit mesh as on an automatic one."""
    return hasattr(sys.modules["jax"].sharding, "auto_axes")


def in_automatic_axes(function: Callable[..., Any], operands: Sequence[Any], like: Array, specs: Any) -> Any:
    """Return ``function(*operands)``, for which the explicit axes of a mesh, that of `like`, are automatic.

    Operands are arrays, or trees of arrays. `specs` are tuples with the names of mesh axes for the axes of each result, or of all results in a tuple.
    """
    jax: Any = sys.modules["jax"]
    mesh = jax.typeof(like).sharding.mesh
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    axes = tuple(name for name, kind in kinds if kind == jax.sharding.AxisType.Explicit)

    def sharding(spec: Any) -> Any:
        if isinstance(spec, jax.sharding.PartitionSpec):
            return jax.sharding.NamedSharding(mesh, spec)
        return type(spec)(*map(sharding, spec)) if hasattr(spec, "_fields") else tuple(map(sharding, spec))

    automatic = jax.sharding.auto_axes(function, axes=axes, out_sharding=sharding(specs))
    # Compiled, as JAX does not take scalars to other axes outside of a program.
    return jax.jit(automatic)(*jax.tree.map(jax.numpy.asarray, tuple(operands)))


def spec_of(array: Array, count: int | None = None) -> Any:
    """Return how the first axes of an array are sharded by its type, all by default, as a spec of JAX."""
    jax: Any = sys.modules["jax"]
    return jax.sharding.PartitionSpec(*jax.typeof(array).sharding.spec[:count])


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
