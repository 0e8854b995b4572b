"""The options that change the scores of a region: soft cap, score_mod, addends, in that order; and the way back."""

import math
from collections.abc import Callable

from attention_xp._backend.derivatives import pullback
from attention_xp._backend.dtypes import as_dtype
from attention_xp._checks.arrays import check_result
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.captured import Captured
from attention_xp._engine.tile.primitives import ScorePrimitives
from attention_xp._scores.region import Region
from attention_xp._typing import Array, ScoreMod
from attention_xp.biases._bias import Bias, evaluated

__all__ = [
    "Pull",
    "added",
    "as_scores",
    "dropped",
    "is_bent",
    "largest_score",
    "modified",
    "modified_with_pull",
    "of_real_rows",
    "product_factor",
    "query_factor",
    "survival_factor",
]


def query_factor(problem: Problem) -> float | Array:
    """Return the factor of the query: the scale, divided by the soft cap where there is one."""
    return problem.scale if problem.softcap is None else problem.scale / problem.softcap


def largest_score(problem: Problem) -> float:
    """Return a bound on the scores before `score_mod` and addends: the soft cap, infinity without one."""
    return math.inf if problem.softcap is None else problem.softcap


def product_factor(problem: Problem) -> float:
    """Return a bound on the size of a score relative to the product of key and query, the latter with its factor."""
    return 1.0 if problem.softcap is None else problem.softcap


def is_bent(problem: Problem) -> bool:
    """Whether the scores are a function of the products, whose derivative may be NaN where pairs are excluded."""
    return problem.softcap is not None or problem.score_mod is not None


def modified(problem: Problem, ops: ScorePrimitives, region: Region, scores: Array) -> Array:
    """Return the scores: products, of a query with its factor, after all options that change them."""
    if problem.softcap is not None:
        scores = ops.multiply(ops.tanh(scores), problem.softcap)
    if problem.score_mod is not None:
        scores = ops.replace(scores, as_scores(problem, problem.score_mod, region, scores))
    return added(problem, ops, region, scores)


Pull = Callable[[Array], tuple[Array, ...]]  # gradients of the scores -> of the products, then of what was captured


def modified_with_pull(
    problem: Problem, ops: ScorePrimitives, region: Region, scores: Array
) -> tuple[Array, Pull | None]:
    """Return the scores after all options that change them, and the pullback through those options."""
    steepness: Array | None = None
    pull: Pull | None = None
    if problem.softcap is not None:
        scores = ops.tanh(scores)
        steepness = problem.softcap * (1.0 - scores * scores)
        scores = ops.multiply(scores, problem.softcap)
    if problem.score_mod is not None:
        made, pull = _score_mod(problem, ops, region, scores)
        scores = ops.replace(scores, made)
    scores = added(problem, ops, region, scores)
    return scores, pull if steepness is None else _through(ops, steepness, pull)


def _through(ops: ScorePrimitives, steepness: Array, pull: Pull | None) -> Pull:
    def pull_both(grad_scores: Array) -> tuple[Array, ...]:
        grad_scores, *captured = (grad_scores,) if pull is None else pull(grad_scores)
        return ops.multiply(grad_scores, steepness), *captured

    return pull_both


def _score_mod(problem: Problem, ops: ScorePrimitives, region: Region, scores: Array) -> tuple[Array, Pull]:
    """Differentiate `score_mod` by the library, or by the derivative that came with it."""
    function = problem.score_mod

    def modify(scores: Array, *operands: Array) -> Array:
        mod = function.holding(operands) if isinstance(function, Captured) else function
        return as_scores(problem, mod, region, scores)

    found = pullback(problem.xp, modify, scores, *(function.operands if isinstance(function, Captured) else ()))
    if found is not None:
        return found
    derivative = as_scores(problem, problem.score_derivative, region, scores)
    return as_scores(problem, function, region, scores), lambda grad_scores: (ops.multiply(grad_scores, derivative),)


def as_scores(problem: Problem, function: ScoreMod | None, region: Region, scores: Array) -> Array:
    """Return the result of a function of the user, such as `score_mod`, in the shape and dtype of the scores."""
    if function is None:
        return scores
    result = function(scores, region.b, region.h, region.q_idx, region.kv_idx)
    check_result(problem.xp, "score_mod", result, tuple(scores.shape))
    result = as_dtype(problem.xp, result, problem.dtype)
    return result if result.shape == scores.shape else problem.xp.broadcast_to(result, scores.shape)


def added(problem: Problem, ops: ScorePrimitives, region: Region, scores: Array) -> Array:
    """Return the scores with bias and floating mask."""
    for addend in problem.addends:
        values = evaluated(addend, region) if isinstance(addend, Bias) else region.look_up(addend)
        scores = ops.add(scores, as_dtype(problem.xp, values, problem.dtype))
    return scores


def survival_factor(problem: Problem) -> float:
    """Return the factor of dropout, ``1 / (1 - rate)``, which keeps the mean of the weights."""
    return 1.0 / (1.0 - problem.dropout_rate)


def dropped(ops: ScorePrimitives, region: Region, weights: Array) -> Array:
    """Return the weights after dropout, without the `survival_factor`."""
    return weights if ops.problem.seed is None else ops.thin(weights, ops.survivors(region))


def of_real_rows(problem: Problem, region: Region, rows: Array, padding: float = -math.inf) -> Array:
    """Return rows (..., m, n), such as the log-sum-exp, with one value wherever they are padding, sinks or not."""
    if problem.query_lengths is None:
        return rows
    return problem.xp.where(region.row < region.per_batch(problem.query_lengths), rows, padding)
