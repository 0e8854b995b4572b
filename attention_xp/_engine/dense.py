"""The formula as it stands in the books: it materialises the scores and gives the weights."""

import math
from typing import Any

from attention_xp._engine.arithmetic import Arithmetic, allowed_pairs
from attention_xp._engine.problem import Problem
from attention_xp._engine.products import query_key, weights_value
from attention_xp._engine.region import Region
from attention_xp._engine.result import Attended, Wanted
from attention_xp._engine.scores import modified, query_factor
from attention_xp._random import attention_keep
from attention_xp._softmax import exponentials, log_sum, nonzero
from attention_xp._typing import Array

__all__ = ["attend", "refusal"]


def refusal(problem: Problem, wanted: Wanted) -> str | None:  # noqa: ARG001
    """Return why this kernel cannot compute the problem: it always can."""
    return None


def attend(problem: Problem, wanted: Wanted) -> Attended:
    """Return ``softmax(scores) @ value`` with every option, and the weights themselves."""
    xp, region = problem.xp, Region.whole(problem)
    query, key, value = (xp.astype(a, problem.dtype, copy=False) for a in (problem.query, problem.key, problem.value))
    allowed = allowed_pairs(problem.rules, region)
    exclusive = allowed is not None
    scores = query_key(problem, query * query_factor(problem), key, exclusive=exclusive)
    scores = modified(problem, Arithmetic(problem), region, scores)  # (..., H, Sq, Sk)
    if allowed is not None:
        scores = xp.where(allowed, scores, -math.inf)
    weights, total, shift = exponentials(scores, sinks=problem.sinks, xp=xp)  # total, shift (..., H, Sq, 1)
    divisor = total if problem.never_empty else nonzero(total, xp=xp)
    if wanted.weights:
        weights = weights / divisor
    if problem.seed is not None:
        weights = _dropped(problem, problem.seed, region, weights)
    output = weights_value(problem, weights, value, exclusive=exclusive)  # (..., H, Sq, Dv)
    if not wanted.weights:
        output = output / divisor
    return Attended(
        output=xp.astype(output, problem.query.dtype, copy=False),
        weights=xp.astype(weights, problem.query.dtype, copy=False) if wanted.weights else None,
        lse=_log_sum_exp(problem, region, total, shift) if wanted.lse else None,
    )


def _dropped(problem: Problem, seed: tuple[Any, Any], region: Region, weights: Array) -> Array:
    keep = attention_keep(seed, problem.dropout_rate, b=region.b, h=region.h, q_idx=region.q_idx, kv_idx=region.kv_idx)
    return problem.xp.where(keep, weights * (1.0 / (1.0 - problem.dropout_rate)), 0.0)


def _log_sum_exp(problem: Problem, region: Region, total: Array, shift: Array) -> Array:
    """Return the log-sum-exp of each row, (..., H, Sq); rows of padding have none, sinks or not."""
    xp = problem.xp
    lse = log_sum(total, shift, xp=xp)
    if problem.query_lengths is not None:
        lse = xp.where(region.row < region.per_batch(problem.query_lengths), lse, -xp.inf)
    return xp.squeeze(lse, axis=-1)
