"""The gradients of attention, from what a forward pass leaves: the one way to them on every library."""

import dataclasses
import math
from typing import Any, NamedTuple

from attention_xp._backend.autocast import sheltered
from attention_xp._backend.derivatives import can_differentiate
from attention_xp._backend.libraries import library_name
from attention_xp._backend.values import by_value
from attention_xp._engine.kernels.one_program import as_one_program
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.backward_step import Known, Slopes, sink_slopes
from attention_xp._engine.walkers.portable.backward import walk as walk_in_loops
from attention_xp._engine.walkers.torch import on_numpy
from attention_xp._typing import Array
from attention_xp.biases import Bias

__all__ = ["Gradients", "backward", "derivative_refusal"]


class Gradients(NamedTuple):
    """Gradients in the shapes of a problem and the dtype of its computation; ``None`` for what there is not."""

    query: Array
    key: Array
    value: Array
    addends: tuple[Any, ...]  # arrays; of a Bias, a tuple of those of its arrays
    captured: tuple[Array, ...]  # by `score_mod`, where that is known
    sinks: Array | None


def derivative_refusal(problem: Problem) -> str | None:
    """Return why a problem has no gradients."""
    for addend in problem.addends:
        if isinstance(addend, Bias) and type(addend).vjp is Bias.vjp:
            return f"{type(addend).__name__} has no gradients: expected a method vjp(region, grad_scores)"
    if problem.score_mod is None or problem.score_slope is not None or can_differentiate(problem.xp):
        return None
    return (
        f"{library_name(problem.xp)} cannot differentiate score_mod: expected a pair (score_mod, derivative), "
        "where derivative(score, b, h, q_idx, kv_idx) is that of score_mod by score"
    )


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
    """Return the gradients, in memory linear in the lengths, or with one tile for all scores where `whole`.

    `output` is (..., H, Sq, Dv), `lse` is (..., H, Sq); `wanted` says of which addends there is to be a gradient.
    """
    wanted = (True,) * len(problem.addends) if wanted is None else wanted
    return as_one_program(_backward, problem, output, lse, grad_output, grad_lse, wanted, whole)


def _backward(
    problem: Problem,
    output: Array,
    lse: Array,
    grad_output: Array,
    grad_lse: Array | None,
    wanted: tuple[bool, ...],
    whole: bool,
) -> Gradients:
    problem, context = sheltered(problem)
    xp = problem.xp
    gradient = xp.astype(grad_output, problem.dtype, copy=False)
    known = _audible(problem, Known(xp.astype(output, problem.dtype, copy=False), lse, gradient, grad_lse))
    with context:
        return Gradients(*_walk(problem, known, wanted, whole=whole), sink_slopes(problem, known))


def _audible(problem: Problem, known: Known) -> Known:
    """Return what is known with gradients of 0 for the rows that attend nothing, whatever they were."""
    if problem.never_empty:
        return known
    xp, lse = problem.xp, known.lse

    def silenced(gradient: Array, grad_lse: Array | None) -> tuple[Array, Array | None]:
        attends = lse != -math.inf
        kept = xp.where(xp.expand_dims(attends, axis=-1), gradient, 0.0)
        return kept, None if grad_lse is None else xp.where(attends, grad_lse, 0.0)

    gradient, grad_lse = by_value(
        xp, lambda: xp.all(lse != -math.inf), lambda *same: same, silenced, known.gradient, known.grad_lse
    )
    return known._replace(gradient=gradient, grad_lse=grad_lse)


def _walk(problem: Problem, known: Known, wanted: tuple[bool, ...], *, whole: bool) -> Slopes:
    """Visit the tiles the way the library of the arrays likes it."""
    library = library_name(problem.xp)
    if whole or 0 in problem.query.shape or 0 in problem.key.shape or 0 in problem.value.shape:
        lengths = max(problem.query.shape[-2], 1), max(problem.key.shape[-2], 1)
        return walk_in_loops(dataclasses.replace(problem, tile=lengths), known, wanted)
    if library == "numpy" and not problem.has_bias_rule:
        from attention_xp._engine.walkers.numpy.backward import walk  # noqa: PLC0415  # imports NumPy

        return walk(problem, known, wanted)
    if library == "jax":
        from attention_xp._engine.walkers.jax.derivatives import walk_backward  # noqa: PLC0415  # imports JAX

        return walk_backward(problem, known, wanted)
    return on_numpy.backward(problem, known, wanted) or walk_in_loops(problem, known, wanted)
