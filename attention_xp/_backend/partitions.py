"""Rules for XLA how devices share out an operation: from the shardings of its arrays to a program for each device."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np
from jax.experimental.custom_partitioning import ArrayMapping, CompoundFactor, SdyShardingRule
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from attention_xp._typing import Array

__all__ = ["KNOWS_RULES", "Axes", "Flat", "Shared", "Sharing", "inferred", "partition", "rule", "summed"]

KNOWS_RULES = "need_replication_factors" in inspect.signature(SdyShardingRule.__init__).parameters
"""Whether the installed JAX lets a rule say what is not shared out."""

Axes = tuple[tuple[str, ...], ...]
"""For each axis of an array the names of what it is made of, the outermost first: none where every device needs all of it.

Several names are those of an axis that is another one times a number: query heads are key/value heads times those of a group.
"""

Flat = Callable[..., Sequence[Array]]
Shared = Mapping[str, tuple[str, ...]]
"""By which axes of a mesh devices share out what has a name; what they do not share out is not in it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sharing:
    """How devices may share out a function: what has the same name alike."""

    operands: tuple[Axes, ...]
    results: tuple[Axes, ...]
    # Of each name that may be shared out: its size, and what else the number of devices has to divide.
    units: Mapping[str, tuple[int, ...]]

    def mapped(self, size: int, axes: Sequence[int | None]) -> "Sharing":
        """Return the same along one more axis, the first, of some operands and of all results."""
        new = (f"map{len(self.units)}",)
        operands = (names if axis is None else (new, *names) for names, axis in zip(self.operands, axes, strict=True))
        return Sharing(tuple(operands), tuple((new, *names) for names in self.results), {**self.units, new[0]: (size,)})


def summed(x: Array, shared: Shared, axes: Axes) -> Array:
    """Return the sum over the devices that share out something that a result does not have."""
    own = {name for names in axes for name in names}
    names = tuple(mesh_axis for name, given in shared.items() if name not in own for mesh_axis in given)
    return jax.lax.psum(x, names) if names else x


def rule(sharing: Sharing, operands: Sequence[Any], results: Sequence[Any]) -> SdyShardingRule:
    """Return the rule for Shardy, given the types of operands and results: what has no name is not shared out."""
    whole: list[str] = []
    sizes: dict[str, int] = {}

    def mapping(axes: Axes, shape: tuple[int, ...]) -> ArrayMapping:
        return ArrayMapping(*(factor(names, size) for names, size in zip(axes, shape, strict=True)))

    def factor(names: tuple[str, ...], size: int) -> Any:
        kept = [name for name in names if name in sharing.units]
        found = {name: sharing.units[name][0] for name in kept}
        if len(kept) < len(names) or not names:
            whole.append(f"whole{len(whole)}")
            found[whole[-1]] = size // math.prod(found.values())
        if len(found) == 1:
            return next(iter(found))
        sizes.update(found)
        return CompoundFactor(*found)

    sides = [
        tuple(mapping(axes, aval.shape) for axes, aval in zip(named, avals, strict=True))
        for named, avals in ((sharing.operands, operands), (sharing.results, results))
    ]
    alone = {names for side in sides for axes in side for names in axes if isinstance(names, str)}
    given = {name: size for name, size in sizes.items() if name not in alone}
    return SdyShardingRule(*sides, need_replication_factors=tuple(whole), **given)


def partition(sharing: Sharing, part: Callable[[Shared], Flat]) -> Callable[..., Any]:
    """Return what XLA asks for the shardings of operands and results, and for the program of a device."""

    def partitioned(mesh: Any, operands: Sequence[Any], results: Sequence[Any]) -> Any:
        mesh, shared = _shared(sharing, mesh, (*operands, *results))
        shardings = (
            tuple(NamedSharding(mesh, _spec(axes, shared)) for axes in named)
            for named in (sharing.results, sharing.operands)
        )
        compute = part(shared)

        def of_device(*operands: Array) -> tuple[Array, ...]:
            with _no_mesh():  # arrays of a device belong to none, whatever is set where the program is compiled
                return tuple(compute(*operands))

        return mesh, of_device, *shardings

    return partitioned


def _no_mesh() -> Any:
    if not hasattr(jax.sharding, "use_abstract_mesh"):
        return nullcontext()
    return jax.sharding.use_abstract_mesh(AbstractMesh((), ()))


def inferred(sharing: Sharing) -> Callable[..., Any]:
    """Return what tells the shardings of the results from those of the operands, for XLA's older partitioner."""

    def infer(mesh: Any, operands: Sequence[Any], results: Sequence[Any]) -> Any:  # noqa: ARG001
        mesh, shared = _shared(sharing, mesh, operands)
        return tuple(NamedSharding(mesh, _spec(axes, shared)) for axes in sharing.results)

    return infer


def _spec(axes: Axes, shared: Shared) -> PartitionSpec:
    found = (tuple(mesh_axis for name in names for mesh_axis in shared.get(name, ())) for names in axes)
    return PartitionSpec(*(names or None for names in found))


def _shared(sharing: Sharing, mesh: Any, arrays: Sequence[Any]) -> tuple[Any, Shared]:
    """Return how devices share out what has a name: as the first array comes, and where it is whole, as others do.

    An axis of the mesh may have to be cut in two for it; the new mesh is the first result.
    """
    shared: dict[str, tuple[str, ...]] = {}
    taken: set[str] = set()
    given_mesh = mesh
    for axes, array in zip((*sharing.operands, *sharing.results), arrays, strict=False):
        for names, given in zip(axes, _decoded(given_mesh, array), strict=True):
            if given and names and not any(name in shared for name in names):
                mesh, found = _dealt(sharing, mesh, names, [name for name in given if name not in taken])
                shared |= found
                taken.update(given if found else ())
    return mesh, shared


def _dealt(
    sharing: Sharing, mesh: Any, names: Sequence[str], given: Sequence[str]
) -> tuple[Any, dict[str, tuple[str, ...]]]:
    """Deal out axes of a mesh to the names of an axis of an array: the first takes what divides it, and so on."""
    found: dict[str, tuple[str, ...]] = {}
    rest = list(given)
    for name in names:
        if name not in sharing.units:
            break
        units, count = sharing.units[name], 1
        while rest and not any(unit % (count * mesh.shape[rest[0]]) for unit in units):
            count *= mesh.shape[rest[0]]
            found[name] = (*found.get(name, ()), rest.pop(0))
        left = units[0] // count
        if (
            rest
            and name != names[-1]
            and left > 1
            and mesh.shape[rest[0]] % left == 0
            and not any(u % units[0] for u in units)
        ):
            mesh = _cut_in_two(mesh, rest[0], left)
            found[name] = (*found.get(name, ()), f"{rest[0]}/outer")
            rest[0], left = f"{rest[0]}/inner", 1
        if left > 1:
            break
    return mesh, found


def _cut_in_two(mesh: Any, name: str, outer: int) -> Any:
    """Return a mesh in which an axis is two."""
    at, shape, names = mesh.axis_names.index(name), mesh.devices.shape, mesh.axis_names
    sizes = (*shape[:at], outer, shape[at] // outer, *shape[at + 1 :])
    return Mesh(mesh.devices.reshape(sizes), (*names[:at], f"{name}/outer", f"{name}/inner", *names[at + 1 :]))


def _decoded(mesh: Any, array: Any) -> Iterator[tuple[str, ...]]:
    """Yield for each axis of an array the axes of the mesh that share it out, the outermost first; none where it is not so."""
    try:
        places = array.sharding.devices_indices_map(array.shape)
    except ValueError:  # shares of different sizes
        yield from ((),) * len(array.shape)
        return
    shape = mesh.devices.shape
    for axis in range(len(array.shape)):
        starts = np.asarray([places[device][axis].start or 0 for device in mesh.devices.flat]).reshape(shape)
        steps = [int(np.take(starts, 1, axis=i).flat[0]) if n > 1 else 0 for i, n in enumerate(shape)]
        given = sum(np.arange(n).reshape(-1, *(1,) * (len(shape) - 1 - i)) * steps[i] for i, n in enumerate(shape))
        used = sorted((i for i, step in enumerate(steps) if step), key=lambda i: -steps[i])
        yield tuple(mesh.axis_names[i] for i in used) if np.array_equal(given, starts) else ()
