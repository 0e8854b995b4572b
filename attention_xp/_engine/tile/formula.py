"""The plain formula: all scores of a region in memory, their softmax, and its product with the values."""

import math

from attention_xp._backend.derivatives import can_differentiate, scaled
from attention_xp._backend.dtypes import as_dtype
from attention_xp._engine.problem.one_program import as_one_program
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Attended, Wanted
from attention_xp._engine.tile.arithmetic import Arithmetic, Followed, allowed_pairs
from attention_xp._engine.tile.products import Paged, weights_value
from attention_xp._engine.tile.scores import (
    dropped,
    is_bent,
    modified,
    of_real_rows,
    query_factor,
    survival_factor,
)
from attention_xp._engine.tile.sink import sink_of, sum_of_keys
from attention_xp._scores.region import Region
from attention_xp._softmax import exponentials, log_sum, nonzero
from attention_xp._typing import Array

__all__ = ["attend_at_once", "scores_of_region", "weights_of_rows"]


def attend_at_once(problem: Problem, wanted: Wanted) -> Attended:
    """Return ``softmax(scores) @ value`` with every option, and the weights themselves."""
    return as_one_program(_attend, problem, *wanted)


def _attend(problem: Problem, *wants: bool) -> Attended:
    wanted = Wanted(*wants)
    xp, region = problem.xp, Region.whole(problem)
    value = _wide(problem, problem.value)
    weights, total, shift = _exponentials(problem, region, problem.query)
    is_empty = _is_empty(problem, weights, total)
    divisor = total if problem.never_empty else nonzero(total, xp=xp)
    if wanted.weights:
        weights = weights / divisor
    weights = _dropped(problem, region, weights)
    output = weights_value(problem, weights, value, exclusive=len(problem.rules) > 0)  # (..., H, Sq, Dv)
    if not wanted.weights:
        output = output / divisor
    if is_empty is not None:
        output = xp.where(is_empty, 0.0, output)
    lse = xp.squeeze(of_real_rows(problem, region, log_sum(total, shift, xp=xp)), axis=-1) if wanted.lse else None
    return Attended(
        output=as_dtype(xp, output, problem.result_dtype),
        weights=as_dtype(xp, weights, problem.query.dtype) if wanted.weights else None,
        lse=lse,
    )


def weights_of_rows(problem: Problem, row: int, stop: int) -> Array:
    """Return the weights (..., H, stop - row, Sk) of some rows."""
    region = Region.whole(problem).of_rows(row, stop)
    weights, total, _ = _exponentials(problem, region, problem.query[..., row:stop, :])
    weights = _dropped(problem, region, weights / nonzero(total, xp=problem.xp))
    return as_dtype(problem.xp, weights, problem.query.dtype)


def _is_empty(problem: Problem, weights: Array, total: Array) -> Array | None:
    """Return which rows (..., H, Sq, 1) attend nothing, for their gradients; ``None`` where there are none."""
    if problem.never_empty or not can_differentiate(problem.xp):
        return None
    return sum_of_keys(problem, weights, total) == 0.0


def _dropped(problem: Problem, region: Region, weights: Array) -> Array:
    """Return the weights after dropout."""
    if problem.seed is None:
        return weights
    return dropped(Arithmetic(problem), region, weights * survival_factor(problem))


def _wide(problem: Problem, array: Array) -> Array:
    """Return an array in the dtype of the computation; pages see to it themselves."""
    return array if isinstance(array, Paged) else as_dtype(problem.xp, array, problem.dtype)


def _exponentials(problem: Problem, region: Region, query: Array) -> tuple[Array, Array, Array]:
    """Return the weights before they are divided, (..., H, Sq, Sk), their sum and their shift, (..., H, Sq, 1)."""
    scores = scores_of_region(problem, region, query, problem.key)
    return exponentials(scores, sink=sink_of(problem, region), xp=problem.xp)


def scores_of_region(problem: Problem, region: Region, query: Array, key: Array) -> Array:
    """Return the scores of the rows and keys of a region, (..., H, m, n), -inf where they are excluded."""
    xp = problem.xp
    query, key = (_wide(problem, a) for a in (query, key))
    allowed = allowed_pairs(problem.rules, region)
    ops = Followed.of(problem)
    query = scaled(xp, query, query_factor(problem))
    scores = ops.query_key(query, key, exclusive=allowed is not None)
    if allowed is not None and is_bent(problem):
        scores = ops.shielded(scores, query, key, allowed)
    scores = modified(problem, ops, region, scores)
    return scores if allowed is None else xp.where(allowed, scores, -math.inf)
