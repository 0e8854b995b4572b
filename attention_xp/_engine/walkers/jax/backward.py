"""JAX's backward pass: the loops of the forward one, whose state are the gradients."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from attention_xp._backend.shapes import summed_to
from attention_xp._backend.sizes import as_number
from attention_xp._engine.plan.tile_sizes import backward_tile_sizes
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.arithmetic import Arithmetic
from attention_xp._engine.tile.backward_step import Rows, contribute, key_factor, shift_of, surviving
from attention_xp._engine.tile.captured import Captured, exchanged
from attention_xp._engine.tile.gradients import Gradients, Known
from attention_xp._engine.tile.products import clean
from attention_xp._engine.tile.scores import query_factor
from attention_xp._engine.walkers.jax.guarded import Guarded
from attention_xp._engine.walkers.jax.loops import (
    Loops,
    dynamic_cut,
    dynamic_put,
    fold,
    gradient_dtype,
    is_moving,
    zeros,
)
from attention_xp._scores.frozen import freeze, thaw
from attention_xp._scores.region import Region
from attention_xp._typing import Array
from attention_xp.biases import Bias
from attention_xp.biases._bias import evaluated
from attention_xp.masks import Mask

__all__ = ["BackwardWalk", "Differentiable", "for_each_array"]


class _GuardedBackward(Guarded):
    """Primitives that guard against NaN by a condition inside the program, where a tile is not finite."""

    def gradient_value(self, gradient: Array, value: Array, *, exclusive: bool) -> Array:
        """(..., H, m, Dv) @ (..., Hkv, n, Dv)^T -> (..., H, m, n)."""
        return self.query_key(gradient, value, exclusive=exclusive)

    def value_gradients(self, weights: Array, gradient: Array, *, exclusive: bool) -> Array:
        """(..., H, m, n)^T @ (..., H, m, Dv) -> (..., Hkv, n, Dv)."""
        return self.guarded(super().value_gradients, weights, gradient, exclusive=exclusive)

    def query_gradients(self, grad_scores: Array, key: Array, *, exclusive: bool) -> Array:
        """(..., H, m, n) @ (..., Hkv, n, D) -> (..., H, m, D)."""
        return super().query_gradients(
            grad_scores, clean(key) if exclusive and self.problem.rules else key, exclusive=False
        )

    def bias_gradients(self, bias: Bias, region: Region, grad_scores: Array) -> tuple[Array, ...]:
        """Differentiate the values of a bias, which needs no `vjp` for that."""
        return _gradients_of_bias(bias, region, grad_scores)


class Differentiable(Arithmetic):
    """Primitives of a backward pass that JAX differentiates in its turn."""

    def bias_gradients(self, bias: Bias, region: Region, grad_scores: Array) -> tuple[Array, ...]:
        """Differentiate the values of a bias, which needs no `vjp` for that."""
        return _gradients_of_bias(bias, region, grad_scores)


def _gradients_of_bias(bias: Bias, region: Region, grad_scores: Array) -> tuple[Array, ...]:
    template, arrays = freeze(bias)
    moving = list(map(is_moving, arrays))

    def values(*operands: Array) -> Array:
        held = thaw(template, exchanged(arrays, moving, operands))
        return jnp.broadcast_to(evaluated(held, region), region.sizes)

    operands = _operands(bias)
    return jax.vjp(values, *operands)[1](grad_scores) if operands else ()


class BackwardWalk(Loops):
    """The loops of one backward pass."""

    def __init__(self, problem: Problem, known: Known, wanted: tuple[bool, ...]) -> None:
        super().__init__(problem, backward_tile_sizes(problem))
        self.known, self.wanted = known, wanted
        self.ops = _GuardedBackward(self.problem)

    def gradients(self) -> Gradients:
        """Return the gradients of query, key, value and of the addends that are wanted, in the shapes of the problem."""
        problem = self.problem
        kv_lead = problem.batch if problem.heads is None else (*problem.batch, problem.heads // self.group)
        shapes = (
            (*problem.lead, *problem.query.shape[-2:]),
            *((*kv_lead, *a.shape[-2:]) for a in (problem.key, problem.value)),
        )
        sums = (
            *(zeros(problem, shape, problem.dtype) for shape in shapes),
            tuple(
                _nothing(problem, a) if is_wanted else None
                for a, is_wanted in zip(problem.addends, self.wanted, strict=True)
            ),
            _nothing(problem, problem.score_mod),
        )
        query, key, value, addends, captured = fold(0, math.prod(self.counts), self._add_rows, sums)
        return Gradients(
            query * query_factor(problem),
            summed_to(jnp, key * key_factor(problem), tuple(problem.key.shape)),
            summed_to(jnp, value, tuple(problem.value.shape)),
            addends,
            captured,
        )

    def _add_rows(self, job: Array, sums: tuple[Any, ...]) -> tuple[Any, ...]:
        region, block = self.rows_of(job)
        rows = self._rows(region, block)
        row_sums = zeros(self.problem, rows.query.shape, self.problem.dtype)
        step = partial(self._add_tile, region, rows)
        query, others = self.each_tile(region, block, step, (row_sums, sums[1:]))
        return (_added(sums[0], query, [*region.starts[:-1], 0]), *others)

    def _rows(self, region: Region, block: Array) -> Rows:
        """Return a block of rows; where lengths are ragged, those that the block before contains as well add nothing."""
        at, sizes = list(region.starts[:-1]), list(region.sizes[:-1])
        known = Known(
            *(
                None if a is None else dynamic_cut(a, at + [0] * (a.ndim - len(at)), sizes + list(a.shape[len(at) :]))
                for a in self.known
            )
        )
        gradient, delta = surviving(self.problem, known.gradient), known.delta(self.problem)[..., None]
        if self.blocks * self.m != self.Sq:
            is_fresh = region.row >= block * as_number(jnp, self.m)
            gradient, delta = jnp.where(is_fresh, gradient, 0.0), jnp.where(is_fresh, delta, 0.0)
        query = self.scaled_query(region)
        kept = clean(query) if self.problem.rules else query
        return Rows(query, gradient, shift_of(self.problem, known.lse), delta, kept, gradient)

    def _add_tile(
        self,
        region: Region,
        rows: Rows,
        sums: tuple[Array, tuple[Any, ...]],
        tile: Array,
        rules: tuple[Mask, ...],
        mixed: Array,
    ) -> tuple[Array, tuple[Any, ...]]:
        query, (key, value, addends, captured) = sums
        part, keys, cut_values = self.tile(region, tile)
        ops = self.ops.on(mixed)
        found = contribute(ops, part, rows, keys, cut_values(), rules=rules, mixed=(0, self.m), wanted=self.wanted)
        at = [*self.kv_lead(region), part.starts[-1], 0]
        grown = tuple(_grown(whole, piece, part) for whole, piece in zip(addends, found.addends, strict=True))
        others = _added(key, found.key, at), _added(value, found.value, at), grown, _summed(captured, found.captured)
        return query + found.query, others


def _operands(bias: Bias) -> tuple[Array, ...]:
    """Return the arrays of a bias that it is differentiated by."""
    return tuple(filter(is_moving, freeze(bias)[1]))


def for_each_array(make: Callable[[Array], Any], thing: Any) -> Any:
    """Return what is made of an array, or a tuple of that of all arrays of a bias or function that it is differentiated by."""
    if isinstance(thing, Bias):
        return tuple(map(make, _operands(thing)))
    if isinstance(thing, Captured):
        return tuple(map(make, thing.operands))
    return make(thing) if hasattr(thing, "dtype") else ()


def _nothing(problem: Problem, thing: Any) -> Any:
    """Return zeros for the gradient of an array, or of all arrays of a bias or function."""
    return for_each_array(lambda array: zeros(problem, array.shape, gradient_dtype(problem, array)), thing)


def _grown(whole: Any, piece: Any, part: Region) -> Any:
    """Return the gradient of an addend after a tile has been added; ``None`` for one that is not wanted."""
    if isinstance(whole, tuple):
        return _summed(whole, piece)
    return None if whole is None else _added(whole, piece, _starts_in(whole, part))


def _summed(sums: tuple[Array, ...], pieces: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(x + y.astype(x.dtype) for x, y in zip(sums, pieces, strict=True))


def _starts_in(whole: Array, part: Region) -> list[Any]:
    """Return where the piece of an array that is aligned with the scores begins."""
    starts = part.starts[len(part.starts) - whole.ndim :]
    return [0 if n == 1 else start for start, n in zip(starts, whole.shape, strict=True)]


def _added(whole: Array, piece: Array, at: list[Any]) -> Array:
    """Add a piece to an array at indices that the program computes."""
    there = dynamic_cut(whole, at, list(piece.shape))
    return dynamic_put(whole, there + piece, at)
