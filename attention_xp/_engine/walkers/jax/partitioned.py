"""Tell XLA how devices share out the loops of a call, under plain `jax.jit` on sharded arrays.

XLA does not see through the loops, and would gather all arrays on every device. Here a call is one operation with a rule:
batch items, heads and rows may be shared out, and each device computes the loops of its part. Gradients of what several
devices use are summed over them.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import (
    ArrayMapping,
    CompoundFactor,
    SdyShardingRule,
    custom_partitioning,
)
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from attention_xp._backend.sharding import varying_axes
from attention_xp._engine.walkers.jax.shares import Axes, Shares, part_of_device, shares_of
from attention_xp._scores.frozen import thaw
from attention_xp._typing import Array

__all__ = ["partitioned"]

_Flat = Callable[..., Sequence[Array]]
_Shared = Mapping[str, tuple[str, ...]]  # by which axes of a mesh devices share an axis out


@dataclasses.dataclass(frozen=True, eq=False)
class _Call:
    """A call as one operation on flat operands, and what a device computes of it."""

    operands: tuple[Axes, ...]
    results: tuple[Axes, ...]
    shares: Shares
    part: Callable[[_Shared], _Flat]
    whole: ClosedJaxpr

    def bound(self, operands: Sequence[Array]) -> Sequence[Array]:
        """Return the results as those of one operation."""
        # JAX looks into this program, and then tells the mesh when the operation is lowered.
        shared = jax.make_jaxpr(_with_rule(self))(*operands)
        return _call_p.bind(*operands, shared=shared, call=self)  # type: ignore[no-any-return]

    def mapped(self, operands: Sequence[Array], axes: Sequence[int | None]) -> "_Call":
        """Return the call mapped along the first axis of some operands, and of all results."""
        return _Call(
            tuple(names if axis is None else (None, *names) for names, axis in zip(self.operands, axes, strict=True)),
            tuple((None, *names) for names in self.results),
            self.shares,
            lambda shared: jax.vmap(self.part(shared), in_axes=tuple(axes)),
            jax.make_jaxpr(jax.vmap(jaxpr_as_fun(self.whole), in_axes=tuple(axes)))(*operands),
        )


def partitioned(
    function: Callable[..., Any],
    template: Any,
    arrays: Sequence[Array],
    results: Callable[[Sequence[Axes]], Sequence[Axes]],
) -> Any:
    """Return a function of what template and arrays make: of a problem, or a problem and what is known of it.

    `results` names the axes of the arrays in the result, given the names of those of `arrays`.
    """

    def whole(*operands: Array) -> Any:
        return function(*_things(thaw(template, list(operands[: len(arrays)]))))

    shares = None if jax.device_count() == 1 or varying_axes(arrays) else shares_of(template, arrays)
    if shares is None:
        return whole(*arrays)
    numbers = [jnp.arange(size, dtype=jnp.int32) for size in shares.sizes.values()]
    operands = [*map(jnp.asarray, arrays), *numbers]
    program, shape = jax.make_jaxpr(whole, return_shape=True)(*operands)
    # Constants become operands: a function with a rule may not have any.
    consts = [jnp.asarray(const) for const in program.consts]
    operands += consts
    program = jax.make_jaxpr(_without_consts(program))(*operands)
    names = tuple(results(shares.arrays))

    def part(shared: _Shared) -> _Flat:
        def compute(*operands: Array) -> Sequence[Array]:
            of_axes = dict(zip(shares.sizes, operands[len(arrays) :], strict=False))
            problem, *known = _things(thaw(template, list(operands[: len(arrays)])))
            found = jax.tree.leaves(function(part_of_device(problem, of_axes, frozenset(shared)), *known))
            return [_summed(x, shared, axes) for x, axes in zip(found, names, strict=True)]

        return compute

    axes = *shares.arrays, *((name,) for name in shares.sizes), *((None,) * const.ndim for const in consts)
    call = _Call(axes, names, shares, part, program)
    return jax.tree.unflatten(jax.tree.structure(shape), call.bound(operands))


def _without_consts(program: ClosedJaxpr) -> _Flat:
    """Return a program as a function of its operands and its constants."""
    count = len(program.in_avals)
    return lambda *operands: jaxpr_as_fun(ClosedJaxpr(program.jaxpr, operands[count:]))(*operands[:count])


def _things(thing: Any) -> tuple[Any, ...]:
    return thing if isinstance(thing, tuple) else (thing,)


def _summed(x: Array, shared: _Shared, axes: Axes) -> Array:
    """Return the sum over the devices that share out an axis that a result does not have."""
    names = tuple(name for axis, mesh_axes in shared.items() if axis not in axes for name in mesh_axes)
    return jax.lax.psum(x, names) if names else x


_call_p = Primitive("attention_loops")
"""The flat operands of a call -> its flat results."""
_call_p.multiple_results = True


def _evaluate(*operands: Array, shared: ClosedJaxpr, call: _Call) -> Sequence[Array]:  # noqa: ARG001
    return jaxpr_as_fun(call.whole)(*operands)  # type: ignore[no-any-return]


def _abstract(*operands: Any, shared: ClosedJaxpr, call: _Call) -> Sequence[Any]:  # noqa: ARG001
    return call.whole.out_avals  # type: ignore[no-any-return]


def _batch(operands: Any, axes: Any, *, shared: ClosedJaxpr, call: _Call) -> tuple[Any, list[int]]:  # noqa: ARG001
    """Map over one more axis, which devices do not share out."""
    moved = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(operands, axes, strict=True)]
    found = call.mapped(moved, [None if axis is None else 0 for axis in axes]).bound(moved)
    return found, [0] * len(found)


def _lowered(ctx: Any, *operands: Any, shared: ClosedJaxpr, call: _Call) -> Any:
    """Lower to an operation with a rule where there are several devices that XLA shares the work out to."""
    program = shared if _is_shared_out(ctx) else call.whole
    return mlir.lower_fun(jaxpr_as_fun(program), multiple_results=True)(ctx, *operands)


def _with_rule(call: _Call) -> _Flat:
    """Return a call as a function that XLA partitions by our rule."""
    function = custom_partitioning(lambda *operands: tuple(jaxpr_as_fun(call.whole)(*operands)))
    rule = _rule(call, call.whole.in_avals, call.whole.out_avals)
    function.def_partition(_partition(call), _inferred(call), sharding_rule=rule)
    return function  # type: ignore[no-any-return]


def _is_shared_out(ctx: Any) -> bool:
    """Whether a program is compiled here, for the devices of a mesh, and not written per device or exported."""
    where = ctx.module_context.axis_context
    mesh = getattr(where, "abstract_mesh", None)
    is_exported = getattr(ctx.module_context.lowering_parameters, "for_export", False)
    return mesh is not None and mesh.size > 1 and not getattr(mesh, "manual_axes", ()) and not is_exported


def _rule(call: _Call, operands: Sequence[Any], results: Sequence[Any]) -> SdyShardingRule:
    """Return the rule for Shardy: axes of one name are shared out alike, and those without a name are not."""
    units, group = call.shares.units, call.shares.group
    whole: list[str] = []  # in the order in which they occur, as Shardy wants them

    def mapping(axes: Axes, shape: tuple[int, ...]) -> ArrayMapping:
        return ArrayMapping(*(factor(axis, size) for axis, size in zip(axes, shape, strict=True)))

    def factor(axis: str | None, size: int) -> Any:
        if axis is None or axis not in units:
            whole.append(f"whole{len(whole)}")
            return whole[-1]
        if axis == "h" and group > 1 and size == call.shares.sizes["h"]:
            whole.extend(() if "group" in whole else ("group",))
            return CompoundFactor("h", "group")
        return axis

    sides = [
        tuple(mapping(axes, aval.shape) for axes, aval in zip(named, avals, strict=True))
        for named, avals in ((call.operands, operands), (call.results, results))
    ]
    sizes = {"group": group} if "group" in whole else {}
    return SdyShardingRule(*sides, need_replication_factors=tuple(whole), **sizes)


def _partition(call: _Call) -> Callable[..., Any]:
    """Return what asks for the shardings of operands and results, and for the program of a device."""

    def partition(mesh: Any, operands: Sequence[Any], results: Sequence[Any]) -> Any:
        shared = _shared(call, mesh, operands, results)
        shardings = [
            tuple(NamedSharding(mesh, _spec(axes, shared)) for axes in named)
            for named in (call.results, call.operands)
        ]
        compute = call.part(shared)
        return mesh, lambda *operands: tuple(compute(*operands)), *shardings

    return partition


def _inferred(call: _Call) -> Callable[..., Any]:
    """Return what tells the shardings of the results from those of the operands, for XLA's older partitioner."""

    def infer(mesh: Any, operands: Sequence[Any], results: Sequence[Any]) -> Any:  # noqa: ARG001
        shared = _shared(call, mesh, operands, ())
        return tuple(NamedSharding(mesh, _spec(axes, shared)) for axes in call.results)

    return infer


def _shared(call: _Call, mesh: Any, operands: Sequence[Any], results: Sequence[Any]) -> _Shared:
    """Return how devices share out the axes: as the query comes, and where it is whole, as another array does."""
    shared: dict[str, tuple[str, ...]] = {}
    for axes, array in zip((*call.operands, *call.results), (*operands, *results), strict=False):
        for axis, given in _named(axes, array.sharding):
            if axis not in shared and axis in call.shares.units:
                taken = {name for names in shared.values() for name in names}
                names = _dividing(mesh, given, call.shares.units[axis], taken)
                shared |= {axis: names} if names else {}
    return shared


def _named(axes: Axes, sharding: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the axes of an array that have a name, and the axes of the mesh that they are shared out by."""
    for axis, given in zip(axes, getattr(sharding, "spec", ()), strict=False):
        if axis is not None and given is not None:
            yield axis, given if isinstance(given, tuple) else (given,)


def _dividing(mesh: Any, given: Sequence[str], units: Sequence[int], taken: set[str]) -> tuple[str, ...]:
    """Return the first axes of a mesh by which so many can be shared out evenly."""
    names: list[str] = []
    count = 1
    for name in given:
        count *= mesh.shape[name]
        if name in taken or any(unit % count for unit in units):
            break
        names.append(name)
    return tuple(names)


def _spec(axes: Axes, shared: _Shared) -> PartitionSpec:
    return PartitionSpec(*(None if axis is None else shared.get(axis) for axis in axes))


_call_p.def_impl(_evaluate)
_call_p.def_abstract_eval(_abstract)
batching.primitive_batchers[_call_p] = _batch
mlir.register_lowering(_call_p, _lowered)
