"""All rules of a call as one boolean array, for kernels that take them no other way."""

import math
from itertools import zip_longest

from attention_xp._engine.problem.problem import Problem

__all__ = ["is_small", "shape_of_rules"]

_MOST = 2**23  # pairs: torch keeps the array a second time, in the dtype of the query


def shape_of_rules(problem: Problem) -> tuple[int, ...]:
    """Return the shape of an array (..., H or 1, Sq, Sk) that says which pairs all rules of a call allow."""
    leads = [rule.lead[::-1] for rule in problem.rules if not rule._is_of_rows]
    lead = [max(lengths, default=1) for lengths in zip_longest(*leads, fillvalue=1)]
    return (*lead[::-1], problem.query.shape[-2], problem.key.shape[-2])


def is_small(problem: Problem) -> bool:
    """Whether the array, with what is added to the scores, takes little memory."""
    shapes = shape_of_rules(problem), *(addend.shape for addend in problem.addends)
    return all(math.prod(shape) <= _MOST for shape in shapes)
