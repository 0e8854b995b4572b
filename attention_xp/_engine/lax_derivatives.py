"""JAX's door to the tiles: a derivative that is carried forward by the formula, and backward by tiles.

The rule of the walk hands the changes to a primitive of our own, which is linear in them. Reverse mode transposes
it, and the transpose is the analytic backward pass. Derivatives of that, and forward mode, are those of the dense
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

from attention_xp._engine import dense
from attention_xp._engine.backward_step import Known, Slopes
from attention_xp._engine.frozen import freeze, thaw
from attention_xp._engine.gradients import backward
from attention_xp._engine.lax import Walk
from attention_xp._engine.lax_backward import BackwardWalk
from attention_xp._engine.problem import Problem
from attention_xp._engine.result import Wanted
from attention_xp._typing import Array

__all__ = ["walk", "walk_backward"]


def walk(problem: Problem) -> tuple[Array, Array]:
    """Return output (..., H, Sq, Dv) and log-sum-exp (..., H, Sq)."""
    if problem.has_foreign_code():  # it may capture what is traced, or what changes: nothing can be kept
        return Walk(problem).run()
    template, arrays = freeze(problem)
    return (_compiled_by_rule if problem.has_bias_rule else _compiled)(template, arrays)  # type: ignore[no-any-return]


def walk_backward(problem: Problem, known: Known, wanted: tuple[bool, ...]) -> Slopes:
    """Return the gradients of query, key, value and of the addends that are wanted."""
    if problem.has_foreign_code():
        return BackwardWalk(problem, known, wanted).slopes()
    template, arrays = freeze((problem, known))
    return _compiled_slopes(template, wanted, arrays)  # type: ignore[no-any-return]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend(template: Any, arrays: list[Array]) -> tuple[Array, Array]:
    return Walk(thaw(template, arrays)).run()


@_attend.defjvp  # type: ignore[untyped-decorator]
def _attend_jvp(template: Any, primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    """Leave the changes to the primitive, which can be transposed."""
    (arrays,), (changes,) = primals, tangents
    output, lse = _compiled(template, arrays)
    floats = tuple(bool(jnp.issubdtype(a.dtype, jnp.floating)) for a in arrays)
    changes = [change for change, is_float in zip(changes, floats, strict=True) if is_float]
    return (output, lse), tuple(
        _change_p.bind(*arrays, output, lse, *changes, template=template, floats=floats, maps=())
    )


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend_by_rule(template: Any, arrays: list[Array]) -> tuple[Array, Array]:
    return Walk(thaw(template, arrays)).run()


@_attend_by_rule.defjvp  # type: ignore[untyped-decorator]
def _attend_by_rule_jvp(template: Any, primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    """Differentiate the dense kernel: a bias that is a rule has its arrays anywhere."""
    _, change = jax.jvp(lambda arrays: _dense(thaw(template, arrays)), primals, tangents)
    return _compiled_by_rule(template, *primals), change


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _slopes(template: Any, wanted: tuple[bool, ...], arrays: list[Array]) -> Slopes:
    problem, known = thaw(template, arrays)
    return BackwardWalk(problem, Known(*known), wanted).slopes()


@_slopes.defjvp  # type: ignore[untyped-decorator]
def _slopes_jvp(template: Any, wanted: tuple[bool, ...], primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    """Differentiate the transpose of the dense kernel's derivative."""

    def formula(arrays: list[Array]) -> Slopes:
        problem, known = thaw(template, arrays)
        known = Known(*known)
        operands = problem.query, problem.key, problem.value, problem.addends
        (_, lse), pull = jax.vjp(lambda q, k, v, a: _dense(problem, query=q, key=k, value=v, addends=a), *operands)
        gradients = pull((known.gradient, jnp.zeros_like(lse) if known.grad_lse is None else known.grad_lse))
        query, key, value, addends = jax.tree.map(lambda g: g.astype(problem.dtype), gradients)
        some = tuple(g if is_wanted else None for g, is_wanted in zip(addends, wanted, strict=True))
        return Slopes(query, key, value, some)

    _, change = jax.jvp(formula, primals, tangents)
    return _compiled_slopes(template, wanted, *primals), change


_compiled = jax.jit(_attend, static_argnums=0)
_compiled_by_rule = jax.jit(_attend_by_rule, static_argnums=0)
_compiled_slopes = jax.jit(_slopes, static_argnums=(0, 1))


def _dense(problem: Problem, **arrays: Any) -> tuple[Array, Array]:
    """Return output and log-sum-exp by the formula."""
    result = dense.attend(dataclasses.replace(problem, **arrays), Wanted(lse=True))
    return result.output.astype(problem.dtype), result.lse


_change_p = Primitive("attention_change")
"""Arrays, output, lse and the changes of the floating arrays -> the changes of output and lse.

`maps` holds for each level of `jax.vmap` the axis, 0 or None, that is mapped of each operand.
"""
_change_p.multiple_results = True

_Flat = Callable[..., Sequence[Array]]


def _mapped(function: _Flat, maps: tuple[tuple[int | None, ...], ...]) -> _Flat:
    for axes in maps:
        function = jax.vmap(function, in_axes=axes)
    return function


def _change(template: Any, floats: tuple[bool, ...]) -> _Flat:
    """Return the changes of output and lse as a function of the operands."""

    def change(*operands: Array) -> list[Array]:
        arrays, changes = operands[: len(floats)], operands[len(floats) + 2 :]

        def formula(*floating: Array) -> tuple[Array, Array]:
            rest = iter(floating)
            return _dense(thaw(template, [next(rest) if f else a for a, f in zip(arrays, floats, strict=True)]))

        floating = [a for a, is_float in zip(arrays, floats, strict=True) if is_float]
        return list(jax.jvp(formula, floating, list(changes))[1])

    return change


def _gradients(template: Any, floats: tuple[bool, ...], wanted: tuple[bool, ...]) -> _Flat:
    """Return the gradients of the floating arrays that are wanted as a function of the arrays, results and gradients."""
    names = thaw(template, list(range(len(floats))))  # the problem with the number of each array in its place
    floating = [i for i, is_float in enumerate(floats) if is_float]
    is_wanted = dict(zip(floating, wanted, strict=True))

    def gradients(*operands: Array) -> list[Array]:
        *arrays, output, lse, grad_output, grad_lse = operands
        addends = tuple(is_wanted[i] for i in names.addends)
        found = backward(thaw(template, arrays), output, lse, grad_output, grad_lse, wanted=addends)
        slopes = {names.query: found.query, names.key: found.key, names.value: found.value}
        slopes |= dict(zip(names.addends, found.addends, strict=True))
        slopes |= {names.sinks: found.sinks} if found.sinks is not None else {}
        nothing = {i: jnp.zeros_like(arrays[i]) for i in floating if i not in slopes}
        return [(slopes | nothing)[i].astype(arrays[i].dtype) for i in floating if is_wanted[i]]

    return gradients


def _evaluate(*operands: Array, template: Any, floats: tuple[bool, ...], maps: Any) -> Sequence[Array]:
    return _mapped(_change(template, floats), maps)(*operands)


def _abstract(*operands: Any, template: Any, floats: tuple[bool, ...], maps: Any) -> list[Any]:  # noqa: ARG001
    return list(operands[len(floats) : len(floats) + 2])


def _jvp(primals: Any, tangents: Any, *, template: Any, floats: tuple[bool, ...], maps: Any) -> tuple[Any, Any]:
    bind = partial(_change_p.bind, template=template, floats=floats, maps=maps)
    fixed = len(floats) + 2
    if all(isinstance(t, ad.Zero) for t in tangents[:fixed]):
        return bind(*primals), bind(*primals[:fixed], *map(ad.instantiate_zeros, tangents[fixed:]))
    moving = [i for i in range(len(primals)) if i >= fixed or (i < len(floats) and floats[i])]

    def function(*some: Array) -> Sequence[Array]:
        operands = list(primals)
        for i, operand in zip(moving, some, strict=True):
            operands[i] = operand
        return _evaluate(*operands, template=template, floats=floats, maps=maps)

    changes = [ad.instantiate_zeros(tangents[i]) for i in moving]
    return bind(*primals), jax.jvp(function, [primals[i] for i in moving], changes)[1]


def _transpose(cotangents: Any, *operands: Any, template: Any, floats: tuple[bool, ...], maps: Any) -> list[Any]:
    fixed = len(floats) + 2
    wanted = tuple(map(ad.is_undefined_primal, operands[fixed:]))
    maps = tuple((*axes[:fixed], 0, 0) for axes in maps)
    function = _mapped(_gradients(template, floats, wanted), maps)
    found = iter(function(*operands[:fixed], *map(ad.instantiate_zeros, cotangents)))
    return [None] * fixed + [next(found) if is_wanted else None for is_wanted in wanted]


def _batch(operands: Any, axes: Any, *, template: Any, floats: tuple[bool, ...], maps: Any) -> tuple[Any, list[int]]:
    """Map once more: the arrays may stay as they are, results and changes are made to have the axis."""
    size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    moved: list[Array] = []
    at: list[int | None] = []
    for i, (x, axis) in enumerate(zip(operands, axes, strict=True)):
        if axis is not None:
            moved.append(jnp.moveaxis(x, axis, 0))
            at.append(0)
        elif i < len(floats):
            moved.append(x)
            at.append(None)
        else:
            moved.append(jnp.broadcast_to(x, (size, *x.shape)))
            at.append(0)
    return _change_p.bind(*moved, template=template, floats=floats, maps=(*maps, tuple(at))), [0, 0]


_change_p.def_impl(_evaluate)
_change_p.def_abstract_eval(_abstract)
ad.primitive_jvps[_change_p] = _jvp
ad.primitive_transposes[_change_p] = _transpose
batching.primitive_batchers[_change_p] = _batch
mlir.register_lowering(_change_p, mlir.lower_fun(_evaluate, multiple_results=True))
