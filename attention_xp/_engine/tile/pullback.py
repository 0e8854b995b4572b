"""Gradients by the backward pass of a walker: what comes before and after it, the same for all walkers."""

import math
from collections.abc import Callable

from attention_xp._backend.autocast import sheltered
from attention_xp._backend.dtypes import as_dtype
from attention_xp._backend.values import by_value
from attention_xp._engine.problem.one_program import as_one_program
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.gradients import Gradients, Known
from attention_xp._engine.tile.sink import with_sink_gradients
from attention_xp._typing import Array

__all__ = ["Backward", "pulled_back"]

Backward = Callable[[Problem, Known, tuple[bool, ...]], Gradients]
"""The backward pass of a walker: gradients of query, key, value, the wanted addends, and arrays that functions captured."""


def pulled_back(
    backward: Backward,
    problem: Problem,
    output: Array,
    lse: Array,
    grad_output: Array,
    grad_lse: Array | None = None,
    *,
    wanted: tuple[bool, ...] | None = None,
) -> Gradients:
    """Return the gradients by the backward pass of a walker, those of sinks among them.

    `output` is (..., H, Sq, Dv), `lse` is (..., H, Sq); `wanted` says of which addends there is to be a gradient.
    """
    wanted = (True,) * len(problem.addends) if wanted is None else wanted
    return as_one_program(_pulled_back, problem, backward, output, lse, grad_output, grad_lse, wanted)


def _pulled_back(
    problem: Problem,
    backward: Backward,
    output: Array,
    lse: Array,
    grad_output: Array,
    grad_lse: Array | None,
    wanted: tuple[bool, ...],
) -> Gradients:
    problem, context = sheltered(problem)
    output, gradient = (as_dtype(problem.xp, a, problem.dtype) for a in (output, grad_output))
    known = _without_empty_rows(problem, Known(output, lse, gradient, grad_lse))
    with context:
        return with_sink_gradients(backward(problem, known, wanted), problem, known)


def _without_empty_rows(problem: Problem, known: Known) -> Known:
    """Return the same with gradients of 0 for rows that attend nothing, whatever they were."""
    if problem.never_empty:
        return known
    xp, lse = problem.xp, known.lse

    def zeroed(gradient: Array, grad_lse: Array | None) -> tuple[Array, Array | None]:
        attends = lse != -math.inf
        kept = xp.where(xp.expand_dims(attends, axis=-1), gradient, 0.0)
        return kept, None if grad_lse is None else xp.where(attends, grad_lse, 0.0)

    gradient, grad_lse = by_value(
        xp, lambda: xp.all(lse != -math.inf), lambda *same: same, zeroed, known.gradient, known.grad_lse
    )
    return known._replace(gradient=gradient, grad_lse=grad_lse)
