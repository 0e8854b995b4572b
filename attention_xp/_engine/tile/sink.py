"""Sinks: each head may have one more logit in the softmax of its rows, which takes a share of it and has no value."""

import math

from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.gradients import Gradients, Known
from attention_xp._scores.region import Region
from attention_xp._typing import Array

__all__ = ["sink_of", "sum_of_keys", "with_sink_gradients"]


def sink_of(problem: Problem, region: Region) -> Array | None:
    """Return the logits of the heads of a region, (..., H, 1, 1) or an array that broadcasts to it."""
    return None if problem.sinks is None else region.look_up(problem.sinks)


def sum_of_keys(problem: Problem, weights: Array, total: Array) -> Array:
    """Return the sum of the weights (..., m, n) of a row, (..., m, 1); `total` has the share of a sink as well."""
    return total if problem.sinks is None else problem.xp.sum(weights, axis=-1, keepdims=True)


def with_sink_gradients(gradients: Gradients, problem: Problem, known: Known) -> Gradients:
    """Return gradients together with that of the sinks, in their shape."""
    if problem.sinks is None:
        return gradients
    xp = problem.xp
    # Where the output is 0, its gradient does not count, even if it is NaN: a row may attend nothing but the sink.
    known = known._replace(gradient=xp.where(known.output == 0.0, 0.0, known.gradient))
    grad_scores = -xp.sum(_share(problem, known.lse) * known.delta(problem), axis=-1)  # (..., H)
    if problem.batch:
        grad_scores = xp.sum(grad_scores, axis=tuple(range(len(problem.batch))))
    return gradients._replace(sinks=xp.reshape(grad_scores, problem.sinks.shape))


def _share(problem: Problem, lse: Array) -> Array:
    """Return the share (..., H, Sq) of the sinks in the softmax of each row."""
    xp, sinks = problem.xp, problem.sinks[..., 0]  # type: ignore[index]  # (..., H, 1), or (..., 1)
    is_finite = xp.isfinite(lse)
    return xp.exp(xp.where(is_finite, sinks, -math.inf) - xp.where(is_finite, lse, 0.0))
