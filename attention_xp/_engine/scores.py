"""The scores of a region: product, soft cap, score_mod, additions, exclusions, in that order."""

from attention_xp._engine.arithmetic import Arithmetic
from attention_xp._engine.problem import Problem
from attention_xp._engine.region import Region
from attention_xp._typing import Array

__all__ = ["modified", "query_factor"]


def query_factor(problem: Problem) -> float:
    """Return the factor of the query: the scale, and the division that comes first under a soft cap."""
    return problem.scale if problem.softcap is None else problem.scale / problem.softcap


def modified(problem: Problem, ops: Arithmetic, region: Region, scores: Array) -> Array:
    """Return the products, whose query had the factor in it, after every option that touches them."""
    if problem.softcap is not None:
        scores = ops.multiply(ops.tanh(scores), problem.softcap)
    if problem.score_mod is not None:
        scores = problem.score_mod(scores, region.b, region.h, region.q_idx, region.kv_idx)
    for addend in problem.addends:
        scores = ops.add(scores, region.look_up(addend))
    return scores
