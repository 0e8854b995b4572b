"""NumPy's statistics: jobs of one head and one block of rows, handed out to threads."""

import dataclasses
import itertools
import threading
from contextlib import nullcontext

import numpy as np

from attention_xp._engine.plan.plan import bounds
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.statistics import Statistics, columns_of_rows, of_region, rows_at_once
from attention_xp._engine.walkers.numpy.place import Place
from attention_xp._engine.walkers.numpy.pool import run_jobs, with_blas_held_to_one
from attention_xp._scores.region import Region

__all__ = ["statistics"]

_PAIRS_OF_A_JOB = 2**19  # so few that a job's arrays stay in the cache, and in memory that is used again


def statistics(problem: Problem) -> Statistics:
    """Return the statistics of all rows."""
    Sq, Sk, lead = problem.query.shape[-2], problem.key.shape[-2], problem.lead
    lse, max_score, entropy = (np.empty((*lead, Sq), problem.dtype) for _ in range(3))
    result = Statistics(lse, max_score, entropy, np.zeros((*lead, Sk), problem.dtype))
    rows = rows_at_once(problem, _PAIRS_OF_A_JOB)
    blocks = [((row, stop), columns_of_rows(problem, row, stop)) for row, stop in bounds(0, Sq, rows)]
    jobs = list(itertools.product(Place.every(lead, 1), blocks))
    alone, lock = dataclasses.replace(problem, group=1), threading.Lock()  # every head of a job has its own keys

    def visit(job: int) -> None:
        place, ((row, stop), (first, last)) = jobs[job]
        at = place.starts
        region = Region(alone, (*at, row, first), (*place.sizes, stop - row, last - first))
        query, key = problem.query[place.at], place.shared(problem, problem.key)
        found = of_region(alone, region, query[..., row:stop, :], key[..., first:last, :])
        for whole, part in zip(result[:3], found[:3], strict=True):
            whole[(*at, slice(row, stop))] = part.reshape(-1)
        with lock:
            result.key_totals[(*at, slice(first, last))] += found.key_totals.reshape(-1)

    with_blas_held_to_one(lambda threads: run_jobs(len(jobs), lambda: nullcontext(visit), threads))
    return result
