"""The scores of a region: product, soft cap, score_mod, additions, exclusions, in that order."""

import math

from attention_xp._engine.arithmetic import Arithmetic
from attention_xp._engine.problem import Problem
from attention_xp._engine.region import Region
from attention_xp._random import attention_keep
from attention_xp._typing import Array
from attention_xp.biases._bias import Bias, evaluated

__all__ = ["addition", "dropped", "modified", "of_real_rows", "query_factor"]


def query_factor(problem: Problem) -> float:
    """Return the factor of the query: the scale, and the division that comes first under a soft cap."""
    return problem.scale if problem.softcap is None else problem.scale / problem.softcap


def modified(problem: Problem, ops: Arithmetic, region: Region, scores: Array) -> Array:
    """Return the products, whose query had the factor in it, after every option that touches them."""
    if problem.softcap is not None:
        scores = ops.multiply(ops.tanh(scores), problem.softcap)
    if problem.score_mod is not None:
        changed = problem.score_mod(scores, region.b, region.h, region.q_idx, region.kv_idx)
        changed = problem.xp.astype(changed, problem.dtype, copy=False)
        if changed.shape != scores.shape:
            changed = problem.xp.broadcast_to(changed, scores.shape)
        scores = ops.replace(scores, changed)
    for addend in problem.addends:
        scores = ops.add(scores, addition(region, addend))
    return scores


def addition(region: Region, addend: Array | Bias) -> Array:
    """Return what is added to the scores of a region, as small as it broadcasts."""
    return evaluated(addend, region) if isinstance(addend, Bias) else region.look_up(addend)


def dropped(problem: Problem, region: Region, weights: Array) -> Array:
    """Return the weights after dropout."""
    if problem.seed is None:
        return weights
    keep = attention_keep(
        problem.seed, problem.dropout_rate, b=region.b, h=region.h, q_idx=region.q_idx, kv_idx=region.kv_idx
    )
    return problem.xp.where(keep, weights * (1.0 / (1.0 - problem.dropout_rate)), 0.0)


def of_real_rows(problem: Problem, region: Region, lse: Array) -> Array:
    """Return the log-sum-exp (..., m, 1) with -inf for rows of padding, sinks or not."""
    if problem.query_lengths is None:
        return lse
    return problem.xp.where(region.row < region.per_batch(problem.query_lengths), lse, -math.inf)
