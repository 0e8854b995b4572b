"""The plain formula: all scores of a region in memory, their softmax, and its product with the values."""

import math

from attention_xp._backend.derivatives import can_differentiate, scaled
from attention_xp._backend.dtypes import as_dtype
from attention_xp._engine.problem.one_program import as_one_program
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Attended, Wanted
from attention_xp._engine.tile.arithmetic import Arithmetic, Followed, allowed_pairs
from attention_xp._engine.tile.products import Paged
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

__all__ = ["attend_at_once", "attend_region", "scores_of_region", "weights_of_rows"]


def attend_at_once(problem: Problem, wanted: Wanted) -> Attended:
    """Return ``softmax(scores) @ value`` with every option, and the weights themselves."""
    return as_one_program(_attend, problem, *wanted)


def _attend(problem: Problem, *wants: bool) -> Attended:
    return attend_region(
        Followed.of(problem), Region.whole(problem), problem.query, problem.key, problem.value, Wanted(*wants)
    )


def attend_region(ops: Arithmetic, region: Region, query: Array, key: Array, value: Array, wanted: Wanted) -> Attended:
    """Return the same for the rows, keys and values of a region of all keys."""
    problem, xp = ops.problem, ops.xp
    value = _wide(problem, value)
    weights, total, shift = _exponentials(ops, region, query, key)
    is_empty = _is_empty(problem, weights, total)
    divisor = total if problem.never_empty else nonzero(total, xp=xp)
    if wanted.weights:
        weights = weights / divisor
    weights = _dropped(ops, region, weights)
    output = ops.weights_value(weights, value, exclusive=len(problem.rules) > 0)  # (..., H, Sq, Dv)
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
    ops = Followed.of(problem)
    weights, total, _ = _exponentials(ops, region, problem.query[..., row:stop, :], problem.key)
    weights = _dropped(ops, region, weights / nonzero(total, xp=problem.xp))
    return as_dtype(problem.xp, weights, problem.query.dtype)


def _is_empty(problem: Problem, weights: Array, total: Array) -> Array | None:
    """Return which rows (..., H, Sq, 1) attend nothing, for their gradients; ``None`` where there are none."""
    if problem.never_empty or not can_differentiate(problem.xp):
        return None
    return sum_of_keys(problem, weights, total) == 0.0


def _dropped(ops: Arithmetic, region: Region, weights: Array) -> Array:
    """Return the weights after dropout."""
    if ops.problem.seed is None:
        return weights
    return dropped(ops, region, weights * survival_factor(ops.problem))


def _wide(problem: Problem, array: Array) -> Array:
    """Return an array in the dtype of the computation; pages see to it themselves."""
    return array if isinstance(array, Paged) else as_dtype(problem.xp, array, problem.dtype)


def _exponentials(ops: Arithmetic, region: Region, query: Array, key: Array) -> tuple[Array, Array, Array]:
    """Return the weights before they are divided, (..., H, Sq, Sk), their sum and their shift, (..., H, Sq, 1)."""
    return exponentials(_scores(ops, region, query, key), sink=sink_of(ops.problem, region), xp=ops.xp)


def scores_of_region(problem: Problem, region: Region, query: Array, key: Array) -> Array:
    """Return the scores of the rows and keys of a region, (..., H, m, n), -inf where they are excluded."""
    return _scores(Followed.of(problem), region, query, key)


def _scores(ops: Arithmetic, region: Region, query: Array, key: Array) -> Array:
    problem, xp = ops.problem, ops.xp
    query, key = (_wide(problem, a) for a in (query, key))
    allowed = allowed_pairs(problem.rules, region)
    query = scaled(xp, query, query_factor(problem))
    scores = ops.query_key(query, key, exclusive=allowed is not None)
    if allowed is not None and is_bent(problem):
        scores = ops.shielded(scores, query, key, allowed)
    scores = modified(problem, ops, region, scores)
    return scores if allowed is None else xp.where(allowed, scores, -math.inf)
