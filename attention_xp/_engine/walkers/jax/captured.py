"""Closure conversion: arrays that functions and rules of the user close over become arrays of the problem.

A function is traced for the two shapes that it will be called with, that of a tile and that of all scores. The arrays
that it has captured are then operands like others, which JAX maps and differentiates.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from attention_xp._backend.modes import is_traced_by_jax
from attention_xp._backend.sharding import spread_like, spread_over, varying_axes
from attention_xp._engine.plan.tile_sizes import stack, tile_sizes
from attention_xp._engine.problem.foreign import is_foreign
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.captured import Captured, Programs
from attention_xp._engine.walkers.jax.loops import Loops, dynamic_cut, is_moving
from attention_xp._engine.walkers.jax.programs import described
from attention_xp._scores.attributes import with_parts
from attention_xp._scores.frozen import freeze, thaw
from attention_xp._scores.region import Region, Span
from attention_xp._typing import Array
from attention_xp.biases._bias import Bias, evaluated
from attention_xp.masks import FunctionMask, Mask
from attention_xp.masks._call_rules import BiasMask

__all__ = ["CapturedBias", "CapturedRule", "with_captured"]

_Functions = Mapping[tuple[int, ...], Callable[..., Array]]  # one for each shape of a region


def with_captured(problem: Problem, regions: Sequence[Region] = ()) -> Problem:
    """Return the problem with the arrays that its functions have captured as operands.

    Functions are traced for regions of these sizes; by default for the tiles of the walker and for all scores.
    """
    if not problem.has_foreign_code() and not any(map(_may_capture, problem.addends)):
        return problem
    given = problem
    template, arrays = freeze(problem, problem.dtype)  # numbers are arrays for the functions, too
    problem = thaw(template, spread_like(arrays, arrays))
    # One tile size for forward and backward, whatever the rules and the device: functions are traced for no other.
    problem = dataclasses.replace(problem, tile=tile_sizes(problem), stack=stack(problem))
    loops = Loops(dataclasses.replace(problem, rules=()), tile_sizes(problem))
    if not regions:
        regions = (loops.tile(loops.rows_of(jnp.int32(0))[0], 0)[0], Region.whole(problem))
    regions = [region._replace(frame=problem) for region in regions]
    addends = tuple(_addend(problem, addend, regions) for addend in problem.addends)
    if not problem.has_foreign_code() and all(new is old for new, old in zip(addends, problem.addends, strict=True)):
        return given
    problem = dataclasses.replace(problem, addends=addends, rules=tuple(_of_biases(problem.rules, addends)))
    rules = tuple(_written_down(problem, rule, regions, loops.span()) for rule in problem.rules)
    if problem.score_mod is None or isinstance(problem.score_mod, Captured):
        return dataclasses.replace(problem, rules=rules)
    arguments = {r.sizes: _like(problem, r, lambda r: (r.b, r.h, r.q_idx, r.kv_idx), scores=True) for r in regions}
    functions = dict.fromkeys(arguments, problem.score_mod)
    score_mod = _captured(problem.score_mod, functions, arguments, varying_axes(arrays))
    return dataclasses.replace(problem, rules=rules, score_mod=score_mod)


def _like(problem: Problem, region: Region, places: Callable[[Region], Any], *, scores: bool = False) -> Any:
    """Return shapes and dtypes of the arguments of a function for a region."""

    def arguments(query: Array) -> Any:
        first = [jnp.zeros(region.sizes, problem.dtype)] if scores else []
        return spread_like([*first, *places(region)], query)

    return jax.eval_shape(arguments, problem.query)


def _may_capture(addend: Any) -> bool:
    """Whether an addend may depend on more than its attributes: a bias of the user, inside a trace."""
    return isinstance(addend, Bias) and not addend._is_ours and is_traced_by_jax()


def _addend(problem: Problem, addend: Any, regions: Sequence[Region]) -> Any:
    """Return a bias of the user with the arrays that it captures from a trace as operands; anything else as it is."""
    if not _may_capture(addend):
        return addend
    template, own = freeze(addend)

    def looks_at(sizes: tuple[int, ...]) -> Callable[..., Array]:
        def values(offset: Array | None, *operands: Array) -> Array:
            bias = thaw(template, list(operands[: len(own)]))
            here = dataclasses.replace(problem, query_offset=offset)
            return evaluated(bias, Region(here, operands[len(own) :], sizes, dynamic_cut))

        return values

    functions = {r.sizes: looks_at(r.sizes) for r in regions}
    arguments = {r.sizes: _like(problem, r, lambda r: [problem.query_offset, *own, *_starts(r)]) for r in regions}
    function = _captured(type(addend), functions, arguments, varying_axes(problem.query))
    captures = any(isinstance(array, jax.core.Tracer) for array in function.arrays)
    return CapturedBias(tuple(own), function) if captures else addend


def _of_biases(rules: tuple[Mask, ...], addends: tuple[Any, ...]) -> Iterator[Mask]:
    """Yield rules, with the new biases in those that belong to a bias."""
    biases = (addend for addend in addends if isinstance(addend, Bias))
    for rule in rules:
        yield BiasMask(next(biases)) if isinstance(rule, BiasMask) else rule


@dataclasses.dataclass(frozen=True, eq=False)
class CapturedBias(Bias):
    """A bias of the user as a traced function."""

    own: tuple[Array, ...]
    function: Captured
    origin: tuple[Array, ...] = ()

    def values(self, region: Region) -> Array:
        return self.function.at(region.sizes, region.frame.query_offset, *self.own, *_starts(region, self.origin))


def _written_down(problem: Problem, rule: Mask, regions: Sequence[Region], span: Span) -> Mask:
    """Return a rule in which functions, and rules of classes of the user, are replaced by traced functions."""
    if not is_foreign(rule):
        return rule
    if is_foreign(rule, alone=True):
        return _rule(problem, rule, regions, span)

    def written_down(part: Any) -> Any:
        return _written_down(problem, part, regions, span) if isinstance(part, Mask) else part

    return with_parts(rule, written_down)  # type: ignore[no-any-return]


def _rule(problem: Problem, rule: Mask, regions: Sequence[Region], span: Span) -> Mask:
    def looks_at(sizes: tuple[int, ...]) -> Callable[..., Array]:
        def pairs(offset: Array | None, *starts: Array) -> Array:
            return rule.pairs(Region(dataclasses.replace(problem, query_offset=offset), starts, sizes, dynamic_cut))

        return pairs

    functions = {r.sizes: looks_at(r.sizes) for r in regions}
    arguments = {r.sizes: _like(problem, r, lambda r: [problem.query_offset, *_starts(r)]) for r in regions}
    author = rule.mask_mod if isinstance(rule, FunctionMask) else type(rule)
    function = _captured(author, functions, arguments, varying_axes(problem.query))
    return CapturedRule(function, rule.reach(span), rule.lead, rule.relative, rule.shift_invariant)


def _starts(region: Region, origin: tuple[Array, ...] = ()) -> list[Array]:
    moved = zip(region.starts, origin or (0,) * len(region.starts), strict=True)
    return [jnp.int32(start + first) for start, first in moved]


@dataclasses.dataclass(frozen=True, eq=False)
class CapturedRule(Mask):
    """A mask of the user as a traced function, with its answer about all tiles."""

    function: Captured
    answer: tuple[Any, Any]
    lead: tuple[int, ...]
    relative: bool
    shift_invariant: bool
    origin: tuple[Array, ...] = ()
    _axes: ClassVar = {"answer": "bh.."}

    def allowed(self, region: Region) -> Array:
        return self.function.at(region.sizes, region.frame.query_offset, *_starts(region, self.origin))

    def reach(self, span: Span) -> tuple[Any, Any]:  # noqa: ARG002
        return self.answer


def _captured(
    author: Any, functions: _Functions, arguments: Mapping[tuple[int, ...], Any], axes: frozenset[str]
) -> Captured:
    """Trace functions, one for each shape; they share the arrays that they have captured."""
    places: dict[int, int] = {}
    arrays: list[Array] = []
    programs, descriptions = {}, []
    for shape, function in functions.items():
        # A new function each time: JAX keeps traces by function, but what it captures may have changed.
        program = jax.make_jaxpr(lambda *x, function=function: function(*x))(*arguments[shape])
        for const in program.consts:
            if isinstance(const, jax.core.Tracer) and id(const) not in places:
                _check_axes(const, axes)
            if id(const) not in places:
                places[id(const)] = len(arrays)
                arrays.append(const)
        at = [places[id(const)] for const in program.consts]
        programs[shape] = _program(program.jaxpr, at, axes)
        descriptions.append((shape, tuple(at), described(program.jaxpr, author)))
    moving = tuple(isinstance(a, jax.core.Tracer) and is_moving(a) for a in arrays)
    return Captured(Programs(programs, tuple(descriptions)), tuple(arrays), moving)


def _check_axes(captured: Array, axes: frozenset[str]) -> None:
    if varying_axes(captured) != axes:
        raise ValueError(
            "a function captures an array that differs between other devices than query, key and value do: expected one "
            f"made by jax.lax.pcast(array, axes, to='varying') to differ along {sorted(axes)}, "
            f"got {sorted(varying_axes(captured))}"
        )


def _program(program: Jaxpr, places: list[int], axes: frozenset[str]) -> Callable[..., Array]:
    """Return a program as a function of the captured arrays, of which it keeps none itself, and of its arguments."""

    def run(arrays: tuple[Array, ...], *arguments: Any) -> Array:
        consts = [arrays[i] for i in places]
        operands = spread_over(jax.tree.leaves(arguments), axes)
        (result,) = jaxpr_as_fun(ClosedJaxpr(program, consts))(*operands)
        return result

    return run
