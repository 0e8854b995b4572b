"""Make what functions and rules of the user capture from a trace of JAX visible: as arrays of the problem.

A function is written down for the two shapes that it is asked about, that of a tile and that of all scores. What
it has captured is then an operand like others: it is mapped and differentiated along with them.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from attention_xp._backend.modes import is_traced_by_jax
from attention_xp._backend.sharding import spread_like, spread_over, varying_axes
from attention_xp._engine.frozen import freeze, thaw
from attention_xp._engine.lax.walk import Walk, dynamic_cut, is_moving
from attention_xp._engine.problem import Problem, is_foreign
from attention_xp._engine.region import Region, Span
from attention_xp._engine.rules import BiasMask
from attention_xp._engine.tile.captured import Captured, Programs
from attention_xp._engine.tile_sizes import stack, tile_sizes
from attention_xp._typing import Array
from attention_xp.biases._bias import Bias, evaluated
from attention_xp.masks import Mask

__all__ = ["with_captured"]

_Functions = Mapping[tuple[int, ...], Callable[..., Array]]  # one for each shape of a region


def with_captured(problem: Problem) -> Problem:
    """Return the problem with the arrays that its functions have captured as values of it."""
    if not problem.has_foreign_code() and not any(map(_may_capture, problem.addends)):
        return problem
    given = problem
    template, arrays = freeze(problem)
    # One tile for both ways, with whatever rules, and wherever a trace believes to be: functions are written down for no other.
    sizes = {"tile": tile_sizes(problem), "stack": stack(problem)}
    problem = dataclasses.replace(thaw(template, spread_like(arrays, arrays)), **sizes)
    walk = Walk(dataclasses.replace(problem, rules=()))
    regions = (walk.tile(walk.rows_of(jnp.int32(0))[0], 0)[0], Region.whole(problem))
    addends = tuple(_addend(problem, addend, regions) for addend in problem.addends)
    if not problem.has_foreign_code() and all(new is old for new, old in zip(addends, problem.addends, strict=True)):
        return given
    problem = dataclasses.replace(problem, addends=addends, rules=tuple(_of_biases(problem.rules, addends)))
    rules = tuple(_rule(problem, rule, regions, walk.span()) if is_foreign(rule) else rule for rule in problem.rules)
    if problem.score_mod is None or isinstance(problem.score_mod, Captured):
        return dataclasses.replace(problem, rules=rules)
    arguments = {r.sizes: _like(problem, r, lambda r: (r.b, r.h, r.q_idx, r.kv_idx), scores=True) for r in regions}
    score_mod = _captured(dict.fromkeys(arguments, problem.score_mod), arguments, varying_axes(arrays))
    return dataclasses.replace(problem, rules=rules, score_mod=score_mod)


def _like(problem: Problem, region: Region, places: Callable[[Region], Any], *, scores: bool = False) -> Any:
    """Return what looks like the arguments of a function that is asked about a region; there are no scores yet."""

    def arguments(query: Array) -> Any:
        first = [jnp.zeros(region.sizes, problem.dtype)] if scores else []
        return spread_like([*first, *places(region)], query)

    return jax.eval_shape(arguments, problem.query)


def _may_capture(addend: Any) -> bool:
    """Whether something that is added to the scores looks at more than its attributes, while there is a trace."""
    return isinstance(addend, Bias) and not addend._is_ours and is_traced_by_jax()


def _addend(problem: Problem, addend: Any, regions: Sequence[Region]) -> Any:
    """Return a bias of the user with what it captures from a trace, where it does; anything else as it is."""
    if not _may_capture(addend):
        return addend
    template, own = freeze(addend)

    def looks_at(sizes: tuple[int, ...]) -> Callable[..., Array]:
        def values(*operands: Array) -> Array:
            bias = thaw(template, list(operands[: len(own)]))
            return evaluated(bias, Region(problem, operands[len(own) :], sizes, dynamic_cut))

        return values

    functions = {r.sizes: looks_at(r.sizes) for r in regions}
    arguments = {r.sizes: _like(problem, r, lambda r: [*own, *[jnp.int32(0)] * len(r.sizes)]) for r in regions}
    function = _captured(functions, arguments, varying_axes(problem.query))
    return _CapturedBias(tuple(own), function) if function.arrays else addend


def _of_biases(rules: tuple[Mask, ...], addends: tuple[Any, ...]) -> Iterator[Mask]:
    """Yield rules, those of biases anew."""
    biases = (addend for addend in addends if isinstance(addend, Bias))
    for rule in rules:
        yield BiasMask(next(biases)) if isinstance(rule, BiasMask) else rule


@dataclasses.dataclass(frozen=True, eq=False)
class _CapturedBias(Bias):
    """What a bias adds to a tile and to all scores."""

    own: tuple[Array, ...]
    function: Captured

    def values(self, region: Region) -> Array:
        return self.function.at(region.sizes, *self.own, *map(jnp.int32, region.starts))


def _rule(problem: Problem, rule: Mask, regions: Sequence[Region], span: Span) -> Mask:
    def looks_at(sizes: tuple[int, ...]) -> Callable[..., Array]:
        return lambda *starts: rule.pairs(Region(problem, starts, sizes, dynamic_cut))

    functions = {r.sizes: looks_at(r.sizes) for r in regions}
    arguments = {r.sizes: _like(problem, r, lambda r: [jnp.int32(0)] * len(r.sizes)) for r in regions}
    function = _captured(functions, arguments, varying_axes(problem.query))
    return _CapturedRule(function, rule.reach(span), rule.lead, rule.relative, rule.shift_invariant)


@dataclasses.dataclass(frozen=True, eq=False)
class _CapturedRule(Mask):
    """What a rule says of a tile and of all scores, and what it said of the rectangles."""

    function: Captured
    answer: tuple[Any, Any]
    lead: tuple[int, ...]
    relative: bool
    shift_invariant: bool

    def allowed(self, region: Region) -> Array:
        return self.function.at(region.sizes, *map(jnp.int32, region.starts))

    def reach(self, span: Span) -> tuple[Any, Any]:  # noqa: ARG002
        return self.answer


def _captured(functions: _Functions, arguments: Mapping[tuple[int, ...], Any], axes: frozenset[str]) -> Captured:
    """Write functions down, one for each shape; what they have captured from a trace, all of them hold."""
    places: dict[int, int] = {}
    arrays: list[Array] = []
    programs = {}
    for shape, function in functions.items():
        # A function of its own each time: JAX keeps what it has traced, but what was captured may have changed.
        program = jax.make_jaxpr(lambda *x, function=function: function(*x))(*arguments[shape])
        for const in program.consts:
            if isinstance(const, jax.core.Tracer) and id(const) not in places:
                _check_axes(const, axes)
                places[id(const)] = len(arrays)
                arrays.append(const)
        programs[shape] = _program(program, [places.get(id(const)) for const in program.consts], axes)
    return Captured(Programs(programs), tuple(arrays), tuple(map(is_moving, arrays)))


def _check_axes(captured: Array, axes: frozenset[str]) -> None:
    if varying_axes(captured) != axes:
        raise ValueError(
            "a function captures an array that differs between other devices than query, key and value do: expected one "
            f"made by jax.lax.pcast(array, axes, to='varying') to differ along {sorted(axes)}, "
            f"got {sorted(varying_axes(captured))}"
        )


def _program(program: Any, places: list[int | None], axes: frozenset[str]) -> Callable[..., Array]:
    """Return a program as a function of the arrays that were captured, and of its arguments."""
    fixed = [const if place is None else None for const, place in zip(program.consts, places, strict=True)]

    def run(arrays: tuple[Array, ...], *arguments: Array) -> Array:
        consts = [x if i is None else arrays[i] for x, i in zip(fixed, places, strict=True)]
        (result,) = jaxpr_as_fun(ClosedJaxpr(program.jaxpr, consts))(*spread_over(arguments, axes))
        return result

    return run
