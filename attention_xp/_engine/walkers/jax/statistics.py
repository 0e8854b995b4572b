"""JAX's statistics: a loop over blocks of rows inside the compiled program, all heads at once."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from attention_xp._backend.sharding import spread_like
from attention_xp._engine.problem.one_program import kept_program
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.statistics import PAIRS_AT_ONCE, Statistics, of_region, rows_at_once
from attention_xp._engine.walkers.jax.captured import with_captured
from attention_xp._engine.walkers.jax.loops import dynamic_cut
from attention_xp._scores.frozen import freeze
from attention_xp._scores.region import Region
from attention_xp._typing import Array

__all__ = ["statistics"]


def statistics(problem: Problem) -> Statistics:
    """Return the statistics of all rows; the compiled loop is kept for the next call."""
    rows, Sq = rows_at_once(problem, PAIRS_AT_ONCE // max(math.prod(problem.lead), 1)), problem.query.shape[-2]
    heights = {m for m in (min(rows, Sq), Sq % rows) if m}
    problem = with_captured(problem, [_rows_from(problem, 0, m) for m in heights])
    template, arrays = freeze((problem, rows), problem.dtype)
    return kept_program(_scanned, template)(spread_like(arrays, arrays))  # type: ignore[no-any-return]


def _rows_from(problem: Problem, row: Any, m: int) -> Region:
    """Return some rows of all heads, over all keys."""
    lead = problem.lead
    return Region(problem, (*(0,) * len(lead), row, 0), (*lead, m, problem.key.shape[-2]), dynamic_cut)


def _scanned(problem: Problem, rows: int) -> Statistics:
    """Visit the blocks in a loop of JAX, whose size does not grow with the length; the last, shorter one after it."""
    lead = problem.lead
    Sq, Sk = problem.query.shape[-2], problem.key.shape[-2]

    def block(row: Any, m: int) -> Statistics:
        query = jax.lax.dynamic_slice_in_dim(problem.query, row, m, axis=-2)
        return of_region(problem, _rows_from(problem, row, m), query, problem.key)

    def step(totals: Array, row: Array) -> tuple[Array, tuple[Array, ...]]:
        found = block(row, rows)
        return totals + found.key_totals, found[:3]

    totals, found = jax.lax.scan(
        jax.checkpoint(step),
        spread_like(jnp.zeros((*lead, Sk), problem.dtype), problem.query),
        rows * jnp.arange(Sq // rows, dtype=jnp.int32),
    )
    parts = [jnp.reshape(jnp.moveaxis(x, 0, -2), (*lead, -1)) for x in found]  # (blocks, ..., m) -> (..., blocks * m)
    if Sq % rows:
        last = block(Sq - Sq % rows, Sq % rows)
        parts = [jnp.concatenate(pair, axis=-1) for pair in zip(parts, last[:3], strict=True)]
        totals = totals + last.key_totals
    return Statistics(parts[0], parts[1], parts[2], totals)
