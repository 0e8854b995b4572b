"""The scores of a region: product, soft cap, score_mod, additions, exclusions, in that order."""

from functools import reduce
from math import inf
from operator import and_

from attention_xp._engine.problem import Problem
from attention_xp._engine.region import Region
from attention_xp._typing import Array

__all__ = ["allowed_pairs", "modified"]


def allowed_pairs(problem: Problem, region: Region) -> Array | None:
    """Return where all mask rules agree, as small as they broadcast; ``None`` is everywhere."""
    if len(problem.rules) == 0:
        return None
    return reduce(and_, (rule.allowed(region) for rule in problem.rules))


def modified(problem: Problem, region: Region, scores: Array, allowed: Array | None) -> Array:
    """Return the scaled products after every option that touches them; excluded ones are -inf."""
    xp = problem.xp
    if problem.softcap is not None:
        scores = problem.softcap * xp.tanh(scores / problem.softcap)
    if problem.score_mod is not None:
        scores = problem.score_mod(scores, region.b, region.h, region.q_idx, region.kv_idx)
    for addend in problem.addends:
        scores = scores + region.look_up(addend)
    return scores if allowed is None else xp.where(allowed, scores, -inf)
