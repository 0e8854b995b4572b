"""The statistics of every library without a walker of its own: a Python loop over blocks of rows, all heads at once."""

import math

from attention_xp._backend.libraries import device
from attention_xp._engine.plan.plan import bounds
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.statistics import PAIRS_AT_ONCE, Statistics, columns_of_rows, of_region, rows_at_once
from attention_xp._engine.walkers.reports import reported
from attention_xp._scores.region import Region

__all__ = ["statistics"]


def statistics(problem: Problem) -> Statistics:
    """Return the statistics of all rows."""
    xp, lead = problem.xp, problem.lead
    rows = rows_at_once(problem, PAIRS_AT_ONCE // max(math.prod(lead), 1))
    totals = xp.zeros((*lead, problem.key.shape[-2]), dtype=problem.dtype, device=device(problem.query))
    blocks = []
    for row, stop in reported(xp, bounds(0, problem.query.shape[-2], rows)):
        first, last = columns_of_rows(problem, row, stop)
        region = Region(problem, (*(0,) * len(lead), row, first), (*lead, stop - row, last - first))
        block = of_region(problem, region, problem.query[..., row:stop, :], problem.key[..., first:last, :])
        blocks.append(block[:3])
        parts = [totals[..., :first], totals[..., first:last] + block.key_totals, totals[..., last:]]
        totals = xp.concat(parts, axis=-1)
    lse, max_score, entropy = (xp.concat(parts, axis=-1) for parts in zip(*blocks, strict=True))
    return Statistics(lse, max_score, entropy, totals)
