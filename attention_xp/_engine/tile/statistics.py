"""Sums over rows and columns of the weights of a block of rows, whose scores are all in memory.

Its softmax is that of the formula, over the keys from the first to the last tile that the rules leave to the block.
"""

from typing import NamedTuple

from attention_xp._engine.plan.plan import Bounds
from attention_xp._engine.plan.row_tiles import tiles_of_rows
from attention_xp._engine.plan.tile_sizes import tile_sizes
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.formula import scores_of_region
from attention_xp._engine.tile.scores import of_real_rows
from attention_xp._engine.tile.sink import sink_of, sum_of_keys
from attention_xp._scores.region import Region
from attention_xp._softmax import exponentials, largest, log_sum, nonzero
from attention_xp._typing import Array

__all__ = ["PAIRS_AT_ONCE", "Statistics", "columns_of_rows", "of_region", "rows_at_once"]

PAIRS_AT_ONCE = 2**21  # of all heads


class Statistics(NamedTuple):
    """Statistics of the weights of a block of rows, or of all rows."""

    lse: Array  # (..., H, m)
    max_score: Array  # (..., H, m)
    entropy: Array  # (..., H, m)
    key_totals: Array  # (..., H, n)


def rows_at_once(problem: Problem, pairs: int) -> int:
    """Return the number of rows in a block: at least one, and at most so many pairs of each head."""
    rows, _ = tile_sizes(problem)
    if problem.tile is not None:
        return rows
    return max(1, min(rows, pairs // int(problem.key.shape[-2])))


def columns_of_rows(problem: Problem, row: int, stop: int) -> Bounds:
    """Return the keys from the first to the last tile that a block of rows visits."""
    _, columns = tile_sizes(problem)
    visited = [stretch for tile in tiles_of_rows(problem, row, stop, columns) for stretch in tile.columns]
    return min(first for first, _ in visited), max(last for _, last in visited)


def of_region(problem: Problem, region: Region, query: Array, key: Array) -> Statistics:
    """Return the statistics of some rows and the keys that they may attend."""
    xp = problem.xp
    scores = scores_of_region(problem, region, query, key)  # (..., H, m, D) @ (..., Hkv, D, n) -> (..., H, m, n)
    weights, total, shift = exponentials(scores, sink=sink_of(problem, region), xp=xp)
    divisor = nonzero(total, xp=xp)
    # -sum w log(w) with w = e / total, without dividing each exponential e by the total.
    lowest = -1000.0  # below the logarithm of every number, and finite: times its exponential it is 0
    heights = xp.sum(weights * xp.clip(scores - shift, lowest, None), axis=-1, keepdims=True)
    own = sum_of_keys(problem, weights, total)
    entropy = (xp.log(divisor) * own - heights) / divisor
    return Statistics(
        xp.squeeze(of_real_rows(problem, region, log_sum(total, shift, xp=xp)), axis=-1),
        xp.squeeze(largest(scores, -1, xp), axis=-1),
        xp.squeeze(entropy, axis=-1),
        xp.squeeze(xp.matmul(xp.matrix_transpose(weights), 1.0 / divisor), axis=-1),
    )
