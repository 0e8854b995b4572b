"""Functions that devices share out under plain `jax.jit`: XLA is told how, where it does not see it by itself.

XLA gathers the arrays of a loop, or of a condition, on every device. A function that is called by `shared_out` is one operation
with a rule instead: axes with a name may be shared out, and each device computes its part.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir

from attention_xp._backend.partitions import (
    KNOWS_RULES,
    Axes,
    Flat,
    Shared,
    Sharing,
    inferred,
    partition,
    rule,
    summed,
)
from attention_xp._backend.sharding import varying_axes
from attention_xp._backend.sizes import is_open
from attention_xp._typing import Array

__all__ = ["by_lead", "may_be_shared_out", "shared_out"]


def may_be_shared_out(operands: Any) -> bool:
    """Whether XLA may have several devices to share a function out to: not inside `jax.shard_map`, which has done so."""
    if jax.device_count() == 1 or not KNOWS_RULES or varying_axes(operands):
        return False
    # With this flag, the cache on disk does not tell operations with different rules apart.
    return not getattr(jax.config, "jax_remove_custom_partitioning_ptr_from_cache_key", False)


def shared_out(
    whole: Callable[..., Any], part: Callable[[Shared], Flat], operands: Sequence[Array], sharing: Sharing
) -> Any:
    """Return ``whole(*operands)``, of which each device computes what ``part(shared)`` returns for its part of the operands.

    Results of `part` lack axes that other devices have a share of where they are sums: these are summed over the devices.
    """
    program, shape = jax.make_jaxpr(whole, return_shape=True)(*operands)
    # Constants become operands: a function with a rule may not have any.
    consts = [jnp.asarray(const) for const in program.consts]
    operands = [*operands, *consts]
    count = len(program.in_avals)

    def summed_part(shared: Shared) -> Flat:
        def compute(*operands: Array) -> Sequence[Array]:
            found = jax.tree.leaves(part(shared)(*operands[:count]))
            return [summed(x, shared, axes) for x, axes in zip(found, sharing.results, strict=True)]

        return compute

    sharing = dataclasses.replace(sharing, operands=(*sharing.operands, *(((),) * const.ndim for const in consts)))
    call = _Call(jax.make_jaxpr(_without_consts(program))(*operands), summed_part, sharing)
    return jax.tree.unflatten(jax.tree.structure(shape), call.bound(operands))


def by_lead(function: Callable[..., Any], matrices: Sequence[Array]) -> Any:
    """Return a function of matrices ``(..., m, n)`` whose results are such as well, each device for its leading axes."""
    if not may_be_shared_out(matrices) or any(is_open(*matrix.shape) for matrix in matrices):
        return function(*matrices)
    lead = jnp.broadcast_shapes(*(matrix.shape[:-2] for matrix in matrices))
    names = [f"lead{i}" for i in range(len(lead))]

    def named(sizes: Sequence[int]) -> Axes:
        axes = zip(names[len(lead) - len(sizes) :], sizes, strict=True)
        return (*(() if size == 1 else (name,) for name, size in axes), (), ())

    operands = tuple(named(matrix.shape[:-2]) for matrix in matrices)
    results = (named(lead),) * len(jax.tree.leaves(jax.eval_shape(function, *matrices)))
    units = {name: (size,) for name, size in zip(names, lead, strict=True)}
    return shared_out(function, lambda _: function, matrices, Sharing(operands, results, units))


def _without_consts(program: ClosedJaxpr) -> Flat:
    """Return a program as a function of its operands and its constants."""
    count = len(program.in_avals)
    return lambda *operands: jaxpr_as_fun(ClosedJaxpr(program.jaxpr, operands[count:]))(*operands[:count])


@dataclasses.dataclass(frozen=True, eq=False)
class _Call:
    """A call as one operation on flat operands."""

    whole: ClosedJaxpr
    part: Callable[[Shared], Flat]
    sharing: Sharing

    def bound(self, operands: Sequence[Array]) -> Sequence[Array]:
        """Return the results as those of one operation."""
        # JAX looks into this program, and then tells the mesh when the operation is lowered.
        shared = jax.make_jaxpr(_with_rule(self))(*operands)
        return _call_p.bind(*operands, shared=shared, call=self)  # type: ignore[no-any-return]

    def mapped(self, operands: Sequence[Array], axes: Sequence[int | None]) -> "_Call":
        """Return the call mapped along the first axis of some operands."""
        whole = jax.make_jaxpr(jax.vmap(jaxpr_as_fun(self.whole), in_axes=tuple(axes)))(*operands)

        def part(shared: Shared) -> Flat:
            own = {name: given for name, given in shared.items() if name in self.sharing.units}
            return jax.vmap(self.part(own), in_axes=tuple(axes))  # type: ignore[no-any-return]

        return _Call(whole, part, self.sharing.mapped(whole.out_avals[0].shape[0], axes))


_call_p = Primitive("attention_shared_out")
"""The flat operands of a call -> its flat results."""
_call_p.multiple_results = True


def _evaluate(*operands: Array, shared: ClosedJaxpr, call: _Call) -> Sequence[Array]:  # noqa: ARG001
    return jaxpr_as_fun(call.whole)(*operands)  # type: ignore[no-any-return]


def _abstract(*operands: Any, shared: ClosedJaxpr, call: _Call) -> Sequence[Any]:  # noqa: ARG001
    return call.whole.out_avals  # type: ignore[no-any-return]


def _batch(operands: Any, axes: Any, *, shared: ClosedJaxpr, call: _Call) -> tuple[Any, list[int]]:  # noqa: ARG001
    """Map over one more axis, which devices may share out as well."""
    moved = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(operands, axes, strict=True)]
    found = call.mapped(moved, [None if axis is None else 0 for axis in axes]).bound(moved)
    return found, [0] * len(found)


def _lowered(ctx: Any, *operands: Any, shared: ClosedJaxpr, call: _Call) -> Any:
    """Lower to an operation with a rule where there are several devices that XLA shares the work out to."""
    program = shared if _is_shared_out(ctx) else call.whole
    return mlir.lower_fun(jaxpr_as_fun(program), multiple_results=True)(ctx, *operands)


def _with_rule(call: _Call) -> Flat:
    """Return a call as a function that XLA partitions by our rule."""
    function = custom_partitioning(lambda *operands: tuple(jaxpr_as_fun(call.whole)(*operands)))
    # Not decoded by JAX, which knows no axis of a mesh of which a part is used.
    given = {"decode_shardings": False, "sharding_rule": rule(call.sharing, call.whole.in_avals, call.whole.out_avals)}
    function.def_partition(partition(call.sharing, call.part), inferred(call.sharing), **given)
    return function  # type: ignore[no-any-return]


def _is_shared_out(ctx: Any) -> bool:
    """Whether a program is compiled here, for the devices of a mesh, and not written per device or exported."""
    where = ctx.module_context.axis_context
    mesh = getattr(where, "abstract_mesh", None)
    is_exported = getattr(ctx.module_context.lowering_parameters, "for_export", False)
    return mesh is not None and mesh.size > 1 and not getattr(mesh, "manual_axes", ()) and not is_exported


_call_p.def_impl(_evaluate)
_call_p.def_abstract_eval(_abstract)
batching.primitive_batchers[_call_p] = _batch
mlir.register_lowering(_call_p, _lowered)
