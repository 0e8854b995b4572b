"""One tile of attention, backward: what it adds to every gradient, written once for all libraries and walkers.

With ``p`` the weights before dropout, ``z`` the dropout factors, ``g`` the gradient of the output and ``h`` that of the
log-sum-exp (the factor ``1 / (1 - rate)`` of ``z`` is multiplied into ``g``)::

    dvalue = (z p)^T g        delta = rowsum(output * g) - h
    dscore = p (z (g value^T) - delta)

Nothing of a forward pass is kept but the log-sum-exp: the weights are computed anew. See Dao, "FlashAttention-2",
2023, algorithm 2.
"""

from typing import Any, NamedTuple

from attention_xp._engine.plan.plan import Bounds
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.base import Base, base_of, lowest_score
from attention_xp._engine.tile.captured import Captured
from attention_xp._engine.tile.gradients import Gradients
from attention_xp._engine.tile.primitives import AllowedT, BackwardPrimitives
from attention_xp._engine.tile.scores import modified_with_pull, survival_factor
from attention_xp._engine.tile.step import factor_of_base
from attention_xp._scores.region import Region
from attention_xp._typing import Array
from attention_xp.biases import Bias
from attention_xp.masks import Mask

__all__ = [
    "Rows",
    "contribute",
    "key_factor",
    "shift_of",
    "surviving",
]


class Rows(NamedTuple):
    """The arrays of a block of rows that the step needs."""

    query: Array  # (..., m, D), with its factor
    gradient: Array  # (..., m, Dv), of the output, with the factor of dropout
    shift: Array | None  # (..., m, 1): the log-sum-exp in the base; None where its factor is in gradient and delta
    delta: Array | None  # (..., m, 1); None where it is a further column of the gradient
    # The factor in gradients of keys, with 0 for what is not finite: a row with such numbers has gradients of scores that are NaN
    # wherever it attends.
    kept_query: Array
    kept_gradient: Array  # the factor in gradients of values


def key_factor(problem: Problem) -> float:
    """Return the factor that gradients of keys lack: the query is multiplied by the scale, but also by that of the base."""
    return 1.0 / factor_of_base(problem)


def shift_of(problem: Problem, lse: Array, base: Base | None = None) -> Array:
    """Return the shift of the scores in the base, (..., m, 1), from the log-sum-exp (..., m)."""
    xp, log_e = problem.xp, (base or base_of(problem.xp)).log_e
    known = xp.isfinite(lse)
    if log_e != 1.0 and (len(problem.addends) > 0 or problem.sinks is not None):
        lse = xp.clip(lse, lowest_score(xp, lse.dtype), None)
    return xp.expand_dims(xp.where(known, lse, 0.0) * log_e, axis=-1)


def surviving(problem: Problem, gradient: Array) -> Array:
    """Return the gradient of the output with the factor of dropout."""
    return gradient if problem.seed is None else gradient * survival_factor(problem)


def contribute(
    ops: BackwardPrimitives[AllowedT],
    region: Region,
    rows: Rows,
    key: Array,
    value: Array,
    *,
    rules: tuple[Mask, ...],
    mixed: Bounds,
    wanted: tuple[bool, ...],
) -> Gradients:
    """Return what one tile adds. `rules` are undecided on the `mixed` rows of it; `wanted` are addends."""
    problem, exclusive = ops.problem, len(rules) > 0
    products = ops.query_key(rows.query, key, exclusive=exclusive)  # (..., m, D) @ (..., D, n) -> (..., m, n)
    allowed = ops.allowed(rules, region.of_rows(*mixed))
    if allowed is not None and isinstance(problem.score_mod, Captured):
        products = ops.silence(products, allowed, mixed)  # its derivative there, times 0, must not be NaN
    scores, pull = products, None
    if not problem.is_product:
        scores, pull = modified_with_pull(problem, ops, region, products)
        scores = ops.in_base(scores)
    if allowed is not None:
        scores = ops.exclude(scores, allowed, mixed)
    weights = ops.powers(scores, rows.shift, allowed, mixed)
    keep = None if problem.seed is None else ops.survivors(region)
    # (..., m, Dv) @ (..., Dv, n) -> (..., m, n)
    grad_scores = ops.gradient_value(rows.gradient, value, exclusive=exclusive)
    if keep is not None:
        grad_scores = ops.thin(grad_scores, keep)
    if rows.delta is not None:
        grad_scores = ops.add(grad_scores, -rows.delta)
    grad_scores = ops.multiply(grad_scores, weights)
    if keep is not None:
        weights = ops.thin(weights, keep)
    # (..., n, m) @ (..., m, Dv) -> (..., n, Dv)
    value_gradients = ops.value_gradients(weights, rows.kept_gradient, exclusive=exclusive)
    if allowed is not None:
        grad_scores = ops.silence(grad_scores, allowed, mixed)
    addends = tuple(
        _of_addend(ops, region, addend, grad_scores) if is_wanted else None
        for addend, is_wanted in zip(problem.addends, wanted, strict=True)
    )
    captured: tuple[Array, ...] = ()
    if pull is not None:
        grad_scores, *captured_gradients = pull(grad_scores)
        captured = tuple(captured_gradients)
        if allowed is not None:
            grad_scores = ops.silence(grad_scores, allowed, mixed)
    return Gradients(
        ops.query_gradients(grad_scores, key, exclusive=exclusive),  # (..., m, n) @ (..., n, D) -> (..., m, D)
        ops.key_gradients(grad_scores, rows.kept_query),  # (..., n, m) @ (..., m, D) -> (..., n, D)
        value_gradients,
        addends,
        captured,
    )


def _of_addend(ops: BackwardPrimitives[AllowedT], region: Region, addend: Any, grad_scores: Array) -> Any:
    if isinstance(addend, Bias):
        return ops.bias_gradients(addend, region, grad_scores)
    return ops.summed(grad_scores, tuple(region.look_up(addend).shape))
