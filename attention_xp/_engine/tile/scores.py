"""The options that change the scores of a region: soft cap, score_mod, addends, in that order."""

import math

from attention_xp._checks.arrays import check_result
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.primitives import ScorePrimitives
from attention_xp._scores.region import Region
from attention_xp._typing import Array, ScoreMod
from attention_xp.biases._bias import Bias, evaluated

__all__ = [
    "added",
    "addition",
    "as_scores",
    "changed",
    "dropped",
    "is_bent",
    "modified",
    "of_real_rows",
    "query_factor",
    "survival_factor",
]


def query_factor(problem: Problem) -> float | Array:
    """Return the factor of the query: the scale, divided by the soft cap where there is one."""
    return problem.scale if problem.softcap is None else problem.scale / problem.softcap


def is_bent(problem: Problem) -> bool:
    """Whether the scores are a function of the products, whose derivative may be NaN where pairs are excluded."""
    return problem.softcap is not None or problem.score_mod is not None


def modified(problem: Problem, ops: ScorePrimitives, region: Region, scores: Array) -> Array:
    """Return the scores: products, of a query with its factor, after all options that change them."""
    if problem.softcap is not None:
        scores = ops.multiply(ops.tanh(scores), problem.softcap)
    if problem.score_mod is not None:
        scores = ops.replace(scores, changed(problem, region, scores))
    return added(problem, ops, region, scores)


def changed(problem: Problem, region: Region, scores: Array) -> Array:
    """Return the scores after `score_mod`, in their shape and dtype."""
    return as_scores(problem, problem.score_mod, region, scores)


def as_scores(problem: Problem, function: ScoreMod | None, region: Region, scores: Array) -> Array:
    """Return the result of a function of the user, such as `score_mod`, in the shape and dtype of the scores."""
    if function is None:
        return scores
    result = function(scores, region.b, region.h, region.q_idx, region.kv_idx)
    check_result(problem.xp, "score_mod", result, tuple(scores.shape))
    result = problem.xp.astype(result, problem.dtype, copy=False)
    return result if result.shape == scores.shape else problem.xp.broadcast_to(result, scores.shape)


def added(problem: Problem, ops: ScorePrimitives, region: Region, scores: Array) -> Array:
    """Return the scores with bias and floating mask."""
    for addend in problem.addends:
        scores = ops.add(scores, addition(region, addend))
    return scores


def addition(region: Region, addend: Array | Bias) -> Array:
    """Return what is added to the scores of a region; it broadcasts against them."""
    return evaluated(addend, region) if isinstance(addend, Bias) else region.look_up(addend)


def survival_factor(problem: Problem) -> float:
    """Return the factor of dropout, ``1 / (1 - rate)``, which keeps the mean of the weights."""
    return 1.0 / (1.0 - problem.dropout_rate)


def dropped(ops: ScorePrimitives, region: Region, weights: Array) -> Array:
    """Return the weights after dropout, without the `survival_factor`."""
    return weights if ops.problem.seed is None else ops.thin(weights, ops.survivors(region))


def of_real_rows(problem: Problem, region: Region, lse: Array) -> Array:
    """Return the log-sum-exp (..., m, 1) with -inf for rows of padding, sinks or not."""
    if problem.query_lengths is None:
        return lse
    return problem.xp.where(region.row < region.per_batch(problem.query_lengths), lse, -math.inf)
