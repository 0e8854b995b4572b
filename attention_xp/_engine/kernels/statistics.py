"""Sums over rows and columns of the weights, in memory linear in the lengths: block by block of rows.

A block meets all its keys at once, so its softmax is that of the dense kernel; between the first key that it may
attend and the last, where the rules tell these.
"""

import math
import sys
from typing import Any, NamedTuple

from attention_xp._backend.jitted import jitted
from attention_xp._backend.libraries import device, library_name
from attention_xp._backend.sharding import spread_like
from attention_xp._backend.sizes import is_open
from attention_xp._engine.kernels.borders import formula_is_faster
from attention_xp._engine.kernels.dense import scores_of_region
from attention_xp._engine.kernels.one_program import as_one_program
from attention_xp._engine.plan.plan import Bounds, bounds
from attention_xp._engine.plan.tile_sizes import tile_sizes
from attention_xp._engine.problem.known_end import with_zeros
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.scores import of_real_rows
from attention_xp._engine.walkers.portable.tiles import tiles_of_rows
from attention_xp._scores.frozen import freeze, thaw
from attention_xp._scores.region import Region
from attention_xp._softmax import exponentials, largest, log_sum, nonzero
from attention_xp._typing import Array

__all__ = ["Statistics", "columns_of_rows", "of_region", "statistics"]

_PAIRS_AT_ONCE = 2**21  # of all heads; and one row in any case
_PAIRS_OF_A_JOB = 2**19  # on NumPy: what a thread makes of them stays in the cache, and in memory that it had before


class Statistics(NamedTuple):
    """What a block of rows, or all of them, tell of their weights."""

    lse: Array  # (..., H, m)
    max_score: Array  # (..., H, m)
    entropy: Array  # (..., H, m)
    key_totals: Array  # (..., H, n)


def statistics(problem: Problem) -> Statistics:
    """Return the statistics of all rows, in the dtype of the computation."""
    found = as_one_program(_found, problem.with_scaled_query())
    return found._replace(key_totals=with_zeros(problem.xp, found.key_totals, problem.given_keys))


def _found(problem: Problem) -> Statistics:
    """Ask in one go, or let a walker visit blocks of rows."""
    is_at_once = problem.impl == "dense" or (problem.impl == "auto" and formula_is_faster(problem))
    if is_at_once or problem.is_empty or is_open(problem.query.shape[-2], problem.key.shape[-2]):
        return of_region(problem, Region.whole(problem), problem.query, problem.key)
    library = library_name(problem.xp)
    if library == "numpy":
        from attention_xp._engine.walkers.numpy.statistics import walk  # noqa: PLC0415  # imports NumPy

        return walk(problem, _rows(problem, _PAIRS_OF_A_JOB))
    return (_compiled if library == "jax" else _looped)(
        problem, _rows(problem, _PAIRS_AT_ONCE // max(math.prod(problem.lead), 1))
    )


def _rows(problem: Problem, pairs: int) -> int:
    """Return how many rows are met at once, for at most as many pairs of each head."""
    rows, _ = tile_sizes(problem)
    if problem.tile is not None:
        return rows
    return max(1, min(rows, pairs // int(problem.key.shape[-2])))


def of_region(problem: Problem, region: Region, query: Array, key: Array) -> Statistics:
    """Return the statistics of some rows and the keys that they may attend."""
    xp = problem.xp
    scores = scores_of_region(problem, region, query, key)  # (..., H, m, D) @ (..., Hkv, D, n) -> (..., H, m, n)
    weights, total, shift = exponentials(
        scores, sinks=None if problem.sinks is None else region.look_up(problem.sinks), xp=xp
    )
    divisor = nonzero(total, xp=xp)
    # -sum w log(w) with w = e / total: a pass for each factor of e, and none to divide all of them.
    lowest = -1000.0  # below the logarithm of every number, and finite: times its exponential it is 0
    heights = xp.sum(weights * xp.clip(scores - shift, lowest, None), axis=-1, keepdims=True)
    own = total if problem.sinks is None else xp.sum(weights, axis=-1, keepdims=True)
    entropy = (xp.log(divisor) * own - heights) / divisor
    return Statistics(
        xp.squeeze(of_real_rows(problem, region, log_sum(total, shift, xp=xp)), axis=-1),
        xp.squeeze(largest(scores, -1, xp), axis=-1),
        xp.squeeze(entropy, axis=-1),
        xp.squeeze(xp.matmul(xp.matrix_transpose(weights), 1.0 / divisor), axis=-1),
    )


def _looped(problem: Problem, rows: int) -> Statistics:
    """Visit one block of rows of all heads after the other."""
    xp, lead = problem.xp, problem.lead
    totals = xp.zeros((*lead, problem.key.shape[-2]), dtype=problem.dtype, device=device(problem.query))
    blocks = []
    for row, stop in bounds(0, problem.query.shape[-2], rows):
        first, last = columns_of_rows(problem, row, stop)
        region = Region(problem, (*(0,) * len(lead), row, first), (*lead, stop - row, last - first))
        block = of_region(problem, region, problem.query[..., row:stop, :], problem.key[..., first:last, :])
        blocks.append(block[:3])
        parts = [totals[..., :first], totals[..., first:last] + block.key_totals, totals[..., last:]]
        totals = xp.concat(parts, axis=-1)
    lse, max_score, entropy = (xp.concat(parts, axis=-1) for parts in zip(*blocks, strict=True))
    return Statistics(lse, max_score, entropy, totals)


def columns_of_rows(problem: Problem, row: int, stop: int) -> Bounds:
    """Return the keys from the first to the last tile that a block of rows visits."""
    _, columns = tile_sizes(problem)
    visited = [stretch for tile in tiles_of_rows(problem, row, stop, columns) for stretch in tile.columns]
    return min(first for first, _ in visited), max(last for _, last in visited)


def _compiled(problem: Problem, rows: int) -> Statistics:
    """Keep the compiled loop for the next call."""
    from attention_xp._engine.walkers.jax.captured import with_captured  # noqa: PLC0415  # imports JAX

    Sq = problem.query.shape[-2]
    heights = {m for m in (min(rows, Sq), Sq % rows) if m}
    template, arrays = freeze(with_captured(problem, [_rows_from(problem, 0, m) for m in heights]), problem.dtype)
    return jitted(_thawed, template, rows)(spread_like(arrays, arrays))  # type: ignore[no-any-return]


def _thawed(template: Any, rows: int, arrays: list[Array]) -> Statistics:
    return _scanned(thaw(template, arrays), rows)


def _rows_from(problem: Problem, row: Any, m: int) -> Region:
    """Return some rows of all heads, over all keys."""
    from attention_xp._engine.walkers.jax.walk import dynamic_cut  # noqa: PLC0415  # imports JAX

    lead = problem.lead
    return Region(problem, (*(0,) * len(lead), row, 0), (*lead, m, problem.key.shape[-2]), dynamic_cut)


def _scanned(problem: Problem, rows: int) -> Statistics:
    """Visit the blocks in a loop of JAX, whose size does not grow with the length; the last, shorter one after it."""
    jax: Any = sys.modules["jax"]
    jnp, lead = jax.numpy, problem.lead
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
