"""JAX's forward and backward pass with rules for derivatives: reverse mode by tiles, forward mode by the formula.

The JVP rule of the forward pass binds a primitive of our own, which is linear in the tangents. Reverse mode transposes
it, and the transpose is the analytic backward pass. Second derivatives, and forward mode, are those of the dense
kernel, and take its memory.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from attention_xp._backend.jitted import jitted
from attention_xp._backend.partitions import Axes
from attention_xp._backend.sharding import spread_like
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Wanted
from attention_xp._engine.tile.captured import Captured, exchanged
from attention_xp._engine.tile.formula import attend_at_once
from attention_xp._engine.tile.gradients import Gradients, Known
from attention_xp._engine.tile.pullback import pulled_back
from attention_xp._engine.walkers.jax.backward import Differentiable
from attention_xp._engine.walkers.jax.captured import with_captured
from attention_xp._engine.walkers.jax.loops import is_moving
from attention_xp._engine.walkers.jax.partitioned import partitioned
from attention_xp._engine.walkers.jax.walks import Backward, Forward
from attention_xp._engine.walkers.portable import backward as portable
from attention_xp._scores.frozen import freeze, holes, part, thaw
from attention_xp._typing import Array, DType
from attention_xp.biases import Bias

__all__ = ["backward", "forward"]


def forward(problem: Problem, *, lse: bool = True) -> tuple[Array, Array | None]:
    """Return output (..., H, Sq, Dv) and, if it is wanted, log-sum-exp (..., H, Sq): without it there is less to compile."""
    template, arrays = _frozen(with_captured(problem), problem.dtype)
    output, *others = jitted(_attend, template, lse)(arrays)
    return output, others[0] if lse else None


def backward(problem: Problem, known: Known, wanted: tuple[bool, ...]) -> Gradients:
    """Return the gradients of query, key, value, of the addends that are wanted, and of arrays that functions captured."""
    template, arrays = _frozen((with_captured(problem), known), problem.dtype)
    return jitted(_way_back, template, wanted)(arrays)  # type: ignore[no-any-return]


def _frozen(thing: Any, dtype: DType) -> tuple[Any, list[Array]]:
    """Return template and arrays, numbers among them; inside `shard_map` all vary over devices if one of them does."""
    template, arrays = freeze(thing, dtype)
    return template, spread_like(arrays, arrays)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _attend(template: Any, lse: bool, arrays: list[Array]) -> tuple[Array, ...]:
    def results(axes: Sequence[Axes]) -> list[Axes]:
        of_query = axes[thaw(template, list(range(len(arrays)))).query]
        return [of_query, of_query[:-1]][: 1 + lse]

    return partitioned(Forward(lse), template, arrays, results)  # type: ignore[no-any-return]


@_attend.defjvp  # type: ignore[untyped-decorator]
def _attend_jvp(template: Any, lse: bool, primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    """Give the tangents to the primitive, which can be transposed: that needs the log-sum-exp."""
    (arrays,), (changes,) = primals, tangents
    found = jitted(_attend, template, True)(arrays)
    moving = tuple(map(is_moving, arrays))
    changes = [change for change, moves in zip(changes, moving, strict=True) if moves]
    change = _change_p.bind(*arrays, *found, *changes, template=template, moving=moving, maps=())
    return tuple(found)[: 1 + lse], tuple(change)[: 1 + lse]


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _way_back(template: Any, wanted: tuple[bool, ...], arrays: list[Array]) -> Gradients:
    def results(axes: Sequence[Axes]) -> list[Axes]:
        numbered = _numbered(template.items[0], tuple(map(is_moving, arrays)), wanted)
        return [axes[i] for i in jax.tree.leaves(numbered)]

    return partitioned(Backward(wanted), template, arrays, results)  # type: ignore[no-any-return]


@_way_back.defjvp  # type: ignore[untyped-decorator]
def _way_back_jvp(
    template: Any, wanted: tuple[bool, ...], primals: tuple[Any], tangents: tuple[Any]
) -> tuple[Any, Any]:
    """Differentiate the formula of the gradients, with all scores in one tile; the finished pass may be that of more keys."""

    def formula(arrays: list[Array]) -> Gradients:
        problem, known = thaw(template, arrays)
        whole = dataclasses.replace(problem, tile=(problem.query.shape[-2], problem.key.shape[-2]))
        return portable.backward(whole, Known(*known), wanted, Differentiable)

    _, change = jax.jvp(formula, primals, tangents)
    return jitted(_way_back, template, wanted)(*primals), change


def _dense(problem: Problem) -> tuple[Array, Array]:
    """Return output and log-sum-exp by the formula."""
    result = attend_at_once(problem, Wanted(lse=True))
    return result.output.astype(problem.dtype), result.lse


_change_p = Primitive("attention_change")
"""Arrays, output, lse and the tangents of the floating arrays -> the tangents of output and lse.

`maps` holds for each level of `jax.vmap` the axis, 0 or None, that is mapped of each operand.
"""
_change_p.multiple_results = True

_Flat = Callable[..., Sequence[Array]]


def _mapped(function: _Flat, maps: tuple[tuple[int | None, ...], ...]) -> _Flat:
    for axes in maps:
        function = jax.vmap(function, in_axes=axes)
    return function


def _chosen(arrays: Sequence[Any], chosen: Sequence[bool]) -> list[Any]:
    return [a for a, is_chosen in zip(arrays, chosen, strict=True) if is_chosen]


def _change(template: Any, moving: tuple[bool, ...]) -> _Flat:
    """Return the tangents of output and lse as a function of the operands."""

    def change(*operands: Array) -> list[Array]:
        arrays, changes = operands[: len(moving)], operands[len(moving) + 2 :]

        def formula(*new: Array) -> tuple[Array, Array]:
            return _dense(thaw(template, exchanged(arrays, moving, new)))

        return list(jax.jvp(formula, _chosen(arrays, moving), list(changes))[1])

    return change


def _numbered(template: Any, moving: tuple[bool, ...], wanted: tuple[bool, ...], *, captured: bool = True) -> Gradients:
    """Return the numbers of the arrays that a problem is differentiated by, in the order of their gradients."""
    names = thaw(template, list(range(len(moving))))  # the problem with numbers in place of its arrays

    def inside(thing: Any) -> tuple[int, ...]:
        return tuple(i for i in holes(thing) if moving[i])

    addends = tuple(
        None if not is_wanted else inside(addend) if isinstance(name, Bias) else name
        for addend, name, is_wanted in zip(part(template, "addends").items, names.addends, wanted, strict=True)
    )
    operands = names.score_mod.operands if captured and isinstance(names.score_mod, Captured) else ()
    return Gradients(names.query, names.key, names.value, addends, operands)


def _gradients(template: Any, moving: tuple[bool, ...], wanted: tuple[bool, ...]) -> _Flat:
    """Return the gradients of the moving arrays that are wanted as a function of the arrays, results and gradients."""
    numbers = [i for i, moves in enumerate(moving) if moves]
    chosen = set(_chosen(numbers, wanted))
    addends = tuple(not chosen.isdisjoint(holes(addend)) for addend in part(template, "addends").items)
    captured = not chosen.isdisjoint(holes(part(template, "score_mod")))
    numbered = _numbered(template, moving, addends, captured=captured)
    sinks = holes(part(template, "sinks"))

    def gradients(*operands: Array) -> list[Array]:
        *arrays, output, lse, grad_output, grad_lse = map(jnp.asarray, operands)  # some may be plain numbers
        problem = thaw(template, arrays)
        if isinstance(problem.score_mod, Captured) and not captured:
            problem = dataclasses.replace(problem, score_mod=problem.score_mod.as_constant())
        found = pulled_back(backward, problem, output, lse, grad_output, grad_lse, wanted=addends)
        by_number = dict(zip(jax.tree.leaves(numbered), jax.tree.leaves(found._replace(sinks=None)), strict=True))
        by_number |= dict.fromkeys(sinks, found.sinks)
        return [
            by_number[i].astype(arrays[i].dtype) if i in by_number else jnp.zeros_like(arrays[i])
            for i in numbers
            if i in chosen
        ]

    return gradients


def _evaluate(*operands: Array, template: Any, moving: tuple[bool, ...], maps: Any) -> Sequence[Array]:
    return _mapped(_change(template, moving), maps)(*operands)


def _abstract(*operands: Any, template: Any, moving: tuple[bool, ...], maps: Any) -> list[Any]:  # noqa: ARG001
    return list(operands[len(moving) : len(moving) + 2])


def _jvp(primals: Any, tangents: Any, *, template: Any, moving: tuple[bool, ...], maps: Any) -> tuple[Any, Any]:
    bind = partial(_change_p.bind, template=template, moving=moving, maps=maps)
    fixed = len(moving) + 2
    if all(isinstance(t, ad.Zero) for t in tangents[:fixed]):
        return bind(*primals), bind(*primals[:fixed], *map(ad.instantiate_zeros, tangents[fixed:]))
    varies = (*moving, False, False, *(True,) * (len(primals) - fixed))

    def function(*some: Array) -> Sequence[Array]:
        return _evaluate(*exchanged(primals, varies, some), template=template, moving=moving, maps=maps)

    changes = list(map(ad.instantiate_zeros, _chosen(tangents, varies)))
    return bind(*primals), jax.jvp(function, _chosen(primals, varies), changes)[1]


def _transpose(cotangents: Any, *operands: Any, template: Any, moving: tuple[bool, ...], maps: Any) -> list[Any]:
    fixed = len(moving) + 2
    wanted = tuple(map(ad.is_undefined_primal, operands[fixed:]))
    maps = tuple((*axes[:fixed], 0, 0) for axes in maps)
    function = _mapped(_gradients(template, moving, wanted), maps)
    found = iter(function(*operands[:fixed], *map(ad.instantiate_zeros, cotangents)))
    return [None] * fixed + [next(found) if is_wanted else None for is_wanted in wanted]


def _batch(operands: Any, axes: Any, *, template: Any, moving: tuple[bool, ...], maps: Any) -> tuple[Any, list[int]]:
    """Map over one more axis: arrays may lack it, results and tangents are broadcast to have it."""
    size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    moved: list[Array] = []
    at: list[int | None] = []
    for i, (x, axis) in enumerate(zip(operands, axes, strict=True)):
        if axis is not None:
            moved.append(jnp.moveaxis(x, axis, 0))
            at.append(0)
        elif i < len(moving):
            moved.append(x)
            at.append(None)
        else:
            moved.append(jnp.broadcast_to(x, (size, *x.shape)))
            at.append(0)
    return _change_p.bind(*moved, template=template, moving=moving, maps=(*maps, tuple(at))), [0, 0]


_change_p.def_impl(_evaluate)
_change_p.def_abstract_eval(_abstract)
ad.primitive_jvps[_change_p] = _jvp
ad.primitive_transposes[_change_p] = _transpose
batching.primitive_batchers[_change_p] = _batch
mlir.register_lowering(_change_p, mlir.lower_fun(_evaluate, multiple_results=True))
