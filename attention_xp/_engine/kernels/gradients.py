"""The gradients of attention from the output and the log-sum-exp of a forward pass, for every library."""

import dataclasses

from attention_xp._backend.derivatives import can_differentiate
from attention_xp._backend.libraries import library_name
from attention_xp._backend.sharding import spec_of
from attention_xp._engine.kernels.meshes import is_automatic
from attention_xp._engine.problem.one_program import in_automatic_axes
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.gradients import Gradients
from attention_xp._engine.tile.pullback import pulled_back
from attention_xp._engine.walkers.portable import walker as portable
from attention_xp._engine.walkers.registry import Walker, walker_of
from attention_xp._typing import Array
from attention_xp.biases import Bias

__all__ = ["backward", "derivative_refusal"]


def derivative_refusal(problem: Problem) -> str | None:
    """Return why a problem has no gradients."""
    for addend in problem.addends:
        if isinstance(addend, Bias) and type(addend).vjp is Bias.vjp and addend.arrays:
            return (
                f"{type(addend).__name__} has no gradients: expected a method vjp(region, grad_scores) that returns what a "
                "region adds to the gradient of each floating array of the bias, in its shape"
            )
    if problem.score_mod is None or problem.score_derivative is not None or can_differentiate(problem.xp):
        return None
    return (
        f"{library_name(problem.xp)} cannot differentiate score_mod: expected a pair (score_mod, derivative), "
        "where derivative(score, b, h, q_idx, kv_idx) is that of score_mod by score"
    )


def _backward(
    problem: Problem,
    output: Array,
    lse: Array,
    grad_output: Array,
    grad_lse: Array | None,
    wanted: tuple[bool, ...] | None,
    whole: bool,
) -> Gradients:
    return backward(problem, output, lse, grad_output, grad_lse, wanted=wanted, whole=whole)


def _specs(problem: Problem) -> Gradients:
    """Return how the gradients are sharded: as the arrays, and those of rules are whole."""
    whole = spec_of(problem.query, 0)
    addends = tuple(whole if isinstance(addend, Bias) else spec_of(addend) for addend in problem.addends)
    sinks = whole if problem.sinks is None else spec_of(problem.sinks)
    query, key, value = map(spec_of, (problem.query, problem.key, problem.value))
    return Gradients(query, key, value, addends, whole, sinks)


def backward(
    problem: Problem,
    output: Array,
    lse: Array,
    grad_output: Array,
    grad_lse: Array | None = None,
    *,
    wanted: tuple[bool, ...] | None = None,
    whole: bool = False,
) -> Gradients:
    """Return the gradients, in memory linear in the lengths; with `whole`, a single tile holds all scores.

    `output` is (..., H, Sq, Dv), `lse` is (..., H, Sq); `wanted` says of which addends there is to be a gradient.
    """
    if is_automatic(problem, "tiled"):
        given = problem, output, lse, grad_output, grad_lse, wanted, whole
        return in_automatic_axes(_backward, *given, specs=_specs(problem))
    walker: Walker = portable
    if whole or problem.is_empty:
        lengths = max(problem.query.shape[-2], 1), max(problem.key.shape[-2], 1)
        problem = dataclasses.replace(problem, tile=lengths)
    else:
        walker = walker_of(problem.xp)
    return pulled_back(walker.backward, problem, output, lse, grad_output, grad_lse, wanted=wanted)
