"""JAX's forward pass: jobs of some heads and one block of rows, each from its first tile to its output."""

import math

import jax.numpy as jnp

from attention_xp._backend.sharding import spread_like
from attention_xp._engine.plan.tile_sizes import tile_sizes
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.step import Running, advance, log_sum_exp, normalized, start
from attention_xp._engine.walkers.jax.guarded import Turn
from attention_xp._engine.walkers.jax.loops import Loops, dynamic_put, fold, zeros
from attention_xp._scores.region import Region
from attention_xp._typing import Array
from attention_xp.masks import Mask

__all__ = ["ForwardWalk"]


class ForwardWalk(Loops):
    """The loops of one forward pass."""

    def __init__(self, problem: Problem, *, lse: bool) -> None:
        super().__init__(problem, tile_sizes(problem))
        self._lse = lse

    def run(self) -> tuple[Array, ...]:
        """Return output (..., H, Sq, Dv) and, if it is wanted, log-sum-exp (..., H, Sq)."""
        lead, dtype = self.problem.lead, self.problem.dtype
        shape, query = (*lead, self.Sq, self.problem.value.shape[-1]), self.problem.query
        # Each row is overwritten: where the query has that shape, zeros would be one more kernel to compile.
        output = query if query.shape == shape and query.dtype == dtype else zeros(self.problem, shape, dtype)
        results = output, zeros(self.problem, (*lead, self.Sq), dtype)
        return fold(0, math.prod(self.counts), self._job, results[: 1 + self._lse])  # type: ignore[no-any-return]

    def _job(self, job: Array, results: tuple[Array, ...]) -> tuple[Array, ...]:
        region, block = self.rows_of(job)
        running, at = self._attend(region, block), region.starts[:-1]
        output = dynamic_put(results[0], normalized(self.ops, running), [*at, 0])
        if not self._lse:
            return (output,)
        return output, dynamic_put(results[1], log_sum_exp(self.problem, region, running), at)

    def _attend(self, region: Region, block: Array) -> Running:
        problem, query = self.problem, self.scaled_query(region)
        sums = jnp.zeros((*region.sizes[:-1], problem.value.shape[-1]), problem.dtype)
        nothing = spread_like(start(problem, region, sums, shift=None), problem.query)

        def step(running: Running, tile: Array, rules: tuple[Mask, ...], mixed: Array) -> Running:
            part, key, cut_values = self.tile(region, tile)
            return advance(self.ops.on(mixed), part, query, key, cut_values(), running, rules=rules, mixed=(0, self.m))

        def step_with_care(
            running: Running, tile: Array, rules: tuple[Mask, ...], mixed: Array, number: Array
        ) -> tuple[Running, Array]:
            part, key, cut_values = self.tile(region, tile)
            turn = Turn(number, cut_values())
            ops = self.ops.on(mixed, turn)
            return advance(ops, part, query, key, turn.value, running, rules=rules, mixed=(0, self.m)), turn.is_last

        if problem.rules or self.ragged:
            return self.each_turn(region, block, step_with_care, nothing)  # type: ignore[no-any-return]
        return self.each_tile(region, block, step, nothing)  # type: ignore[no-any-return]
