"""Few rows on many keys, as in decoding, by the formula or by compiled loops: all keys of some heads, handed out to threads."""

import math
from contextlib import nullcontext
from functools import partial

import numpy as np

from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Attended, Wanted
from attention_xp._engine.tile.formula import attend_region
from attention_xp._engine.walkers.numpy import scratch  # noqa: F401  # keeps the memory of temporary arrays
from attention_xp._engine.walkers.numpy.compiled.found import are_read_in_place, lengths_of, pay_for_loops
from attention_xp._engine.walkers.numpy.compiled.steps import Steps
from attention_xp._engine.walkers.numpy.compiled_few_rows import KeyRanges, attend_in_place
from attention_xp._engine.walkers.numpy.few_rows import MOST_ROWS, FewRows, is_in_blocks, rows_of_keys
from attention_xp._engine.walkers.numpy.place import Place
from attention_xp._engine.walkers.numpy.pool import run_jobs, with_blas_held_to_one
from attention_xp._scores.region import Region

__all__ = ["are_compiled", "are_few_rows", "are_few_without_rules", "attend"]

_MANY = 2**21  # numbers of keys from which threads pay
_JOBS = 2  # for each thread, at least
_SCORES = 2**17  # of a job, about: these stay in a cache


def are_few_rows(problem: Problem) -> bool:
    """Whether so few rows share keys that their scores take no more memory than the keys, and `attend` is the fastest way.

    A single row gains by threads alone, where keys are many, and under rules because keys are read only once.
    """
    rows, numbers = rows_of_keys(problem), math.prod(problem.key.shape)
    if problem.is_empty or not 0 < rows <= problem.key.shape[-1] or problem.seed is not None:
        return False
    if not problem.key.dtype == problem.value.dtype == problem.dtype:
        return False
    return is_in_blocks(rows) or are_compiled(problem) or (rows == 1 and (len(problem.rules) > 0 or numbers >= _MANY))


def are_few_without_rules(problem: Problem) -> bool:
    """Whether rows are few and tiles are slower: these skip what rules exclude, and `attend` skips what lengths exclude."""
    return (len(problem.rules) == 0 or are_compiled(problem)) and are_few_rows(problem)


def attend(
    problem: Problem, wanted: Wanted, threads: int | None = None, stretches: list[KeyRanges] | None = None
) -> Attended:
    """Compute a problem of few rows without its weights, on so many threads, by default on as many as BLAS may have.

    With `stretches`, compiled loops attend these keys alone: a list of bounds for each batch item, which may share keys.
    """
    if stretches is None and math.prod(problem.key.shape) < _MANY and not pay_for_loops(problem.key):
        return attend_region(FewRows(problem), Region.whole(problem), problem.query, problem.key, problem.value, wanted)
    is_compiled = stretches is not None or are_compiled(problem)
    if is_compiled and stretches is None and problem.rules:
        stretches = [((0, n),) for n in lengths_of(problem)]
    compute = partial(attend_in_place, problem.once(Steps)) if is_compiled else partial(attend_region, FewRows(problem))
    Sq, lead = problem.query.shape[-2], problem.lead
    keys = problem.key.shape[-2] if stretches is None else max(map(_count, stretches))
    output = np.empty((*lead, Sq, problem.value.shape[-1]), problem.result_dtype)
    lse = np.empty((*lead, Sq), problem.dtype) if wanted.lse else None

    def visit(count: int) -> None:
        jobs = list(Place.every(lead, _heads(problem, keys, count)))
        run_jobs(len(jobs), lambda: nullcontext(lambda i: do(jobs[i])), count)

    def do(place: Place) -> None:
        region = Region(problem, (*place.starts, 0, 0), (*place.sizes, Sq, problem.key.shape[-2]))
        key, value = (place.shared(problem, a) for a in (problem.key, problem.value))
        some = () if stretches is None else (stretches[place.starts[0]],)
        found = compute(region, problem.query[place.at], key, value, wanted, *some)
        output[place.at] = found.output
        if lse is not None:
            lse[place.at] = found.lse

    with_blas_held_to_one(visit, threads)
    return Attended(output, None, lse)


def are_compiled(problem: Problem) -> bool:
    """Whether compiled loops are faster: BLAS reads keys from memory as fast for one row, but not for several."""
    return 1 < rows_of_keys(problem) <= MOST_ROWS and are_read_in_place(problem)


def _count(stretches: KeyRanges) -> int:
    """Return the number of keys in some stretches."""
    return sum(end - first for first, end in stretches)


def _heads(problem: Problem, keys: int, threads: int) -> int:
    """Return the query heads of a job, whole groups, where rows attend so many keys."""
    lead, group = problem.lead, problem.group
    if len(lead) == 0:
        return 1
    of_a_thread = math.prod(lead) // (_JOBS * threads)
    of_a_cache: int = _SCORES // max(problem.query.shape[-2] * keys, 1)
    return max(min(of_a_thread, of_a_cache, lead[-1]) // group, 1) * group
