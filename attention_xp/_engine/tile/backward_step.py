"""One tile of attention, backward: what it adds to every gradient, written once for all libraries and walkers.

With ``p`` the weights before dropout, ``z`` the dropout factors, ``g`` the gradient of the output and ``h`` that of the
log-sum-exp (the factor ``1 / (1 - rate)`` of ``z`` is multiplied into ``g``)::

    dvalue = (z p)^T g        delta = rowsum(output * g) - h
    dscore = p (z (g value^T) - delta)

Nothing of a forward pass is kept but the log-sum-exp: the weights are computed anew. See Dao, "FlashAttention-2",
2023, algorithm 2.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from attention_xp._backend.derivatives import pullback
from attention_xp._engine.plan.plan import Bounds
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.base import base_of
from attention_xp._engine.tile.captured import Captured
from attention_xp._engine.tile.primitives import AllowedT, BackwardPrimitives, ScorePrimitives
from attention_xp._engine.tile.scores import added, as_scores, changed, survival_factor
from attention_xp._engine.tile.step import factor_of_base
from attention_xp._scores.region import Region
from attention_xp._typing import Array
from attention_xp.biases import Bias
from attention_xp.masks import Mask

__all__ = [
    "Gradients",
    "Known",
    "Rows",
    "contribute",
    "key_factor",
    "shift_of",
    "sink_gradients",
    "surviving",
]


class Known(NamedTuple):
    """The results of a forward pass, and their gradients."""

    output: Array  # (..., H, Sq, Dv)
    lse: Array  # (..., H, Sq)
    gradient: Array  # (..., H, Sq, Dv), of the output
    grad_lse: Array | None  # (..., H, Sq)

    def at(self, index: Any) -> "Known":
        """Return the same for some rows."""
        return Known(*(None if a is None else a[index] for a in self))

    def delta(self, problem: Problem) -> Array:
        """Return ``rowsum(output * gradient) - grad_lse``, (..., H, Sq)."""
        sums = problem.xp.sum(self.output * self.gradient, axis=-1)
        return sums if self.grad_lse is None else sums - problem.xp.astype(self.grad_lse, problem.dtype, copy=False)


class Rows(NamedTuple):
    """The arrays of a block of rows that the step needs."""

    query: Array  # (..., m, D), with its factor
    gradient: Array  # (..., m, Dv), of the output, with the factor of dropout
    shift: Array | None  # (..., m, 1): the log-sum-exp in the base; None where its factor is in gradient and delta
    delta: Array | None  # (..., m, 1); None where it is a further column of the gradient
    kept_query: (
        Array  # the factor in gradients of keys: 0 where not finite; rows that attend have NaN scores there anyway
    )
    kept_gradient: Array  # the factor in gradients of values


class Gradients(NamedTuple):
    """Gradients of a problem's arrays, in their shapes and the dtype of the computation, or what one tile adds to them.

    In what a tile adds, the gradients of query and key lack a factor: see `query_factor` and `key_factor`.
    """

    query: Array  # (..., H, Sq, D); (..., m, D) of a tile
    key: Array  # (..., Hkv, Sk, D)
    value: Array  # (..., Hkv, Sk, Dv)
    addends: tuple[Any, ...]  # arrays, of a Bias a tuple of those of its arrays; None for what is not wanted
    captured: tuple[Array, ...] = ()  # of the arrays that `score_mod` captured, where these are known
    sinks: Array | None = None  # not from tiles: see `sink_gradients`


def key_factor(problem: Problem) -> float:
    """Return the factor that gradients of keys lack: the query is multiplied by the scale, but also by that of the base."""
    return 1.0 / factor_of_base(problem)


def shift_of(problem: Problem, lse: Array) -> Array:
    """Return the shift of the scores in the base, (..., m, 1), from the log-sum-exp (..., m)."""
    xp = problem.xp
    return xp.expand_dims(xp.where(xp.isfinite(lse), lse, 0.0) * base_of(xp).log_e, axis=-1)


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
    scores, pull = _modified_with_pull(problem, ops, region, products)
    if not problem.is_product:
        scores = ops.in_base(scores)
    if allowed is not None:
        scores = ops.exclude(scores, allowed, mixed)
    weights = ops.powers(scores, rows.shift, allowed, mixed)
    keep = None if problem.seed is None else ops.survivors(region)
    grad_scores = ops.gradient_value(
        rows.gradient, value, exclusive=exclusive
    )  # (..., m, Dv) @ (..., Dv, n) -> (..., m, n)
    if keep is not None:
        grad_scores = ops.thin(grad_scores, keep)
    if rows.delta is not None:
        grad_scores = ops.add(grad_scores, -rows.delta)
    grad_scores = ops.multiply(grad_scores, weights)
    if keep is not None:
        weights = ops.thin(weights, keep)
    value_gradients = ops.value_gradients(
        weights, rows.kept_gradient, exclusive=exclusive
    )  # (..., n, m) @ (..., m, Dv) -> (..., n, Dv)
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


Pull = Callable[[Array], tuple[Array, ...]]  # gradients of the scores -> of the products, then of what was captured


def _modified_with_pull(
    problem: Problem, ops: ScorePrimitives, region: Region, scores: Array
) -> tuple[Array, Pull | None]:
    """Return the scores after all options that change them, and the pullback through those options."""
    steepness: Array | None = None
    pull: Pull | None = None
    if problem.softcap is not None:
        scores = ops.tanh(scores)
        steepness = problem.softcap * (1.0 - scores * scores)
        scores = ops.multiply(scores, problem.softcap)
    if problem.score_mod is not None:
        made, pull = _score_mod(problem, ops, region, scores)
        scores = ops.replace(scores, made)
    scores = added(problem, ops, region, scores)
    return scores, pull if steepness is None else _through(ops, steepness, pull)


def _through(ops: ScorePrimitives, steepness: Array, pull: Pull | None) -> Pull:
    def pull_both(grad_scores: Array) -> tuple[Array, ...]:
        grad_scores, *captured = (grad_scores,) if pull is None else pull(grad_scores)
        return ops.multiply(grad_scores, steepness), *captured

    return pull_both


def _score_mod(problem: Problem, ops: ScorePrimitives, region: Region, scores: Array) -> tuple[Array, Pull]:
    """Differentiate `score_mod` by the library, or by the derivative that came with it."""
    function = problem.score_mod

    def modify(scores: Array, *operands: Array) -> Array:
        mod = function.holding(operands) if isinstance(function, Captured) else function
        return as_scores(problem, mod, region, scores)

    found = pullback(problem.xp, modify, scores, *(function.operands if isinstance(function, Captured) else ()))
    if found is not None:
        return found
    derivative = as_scores(problem, problem.score_derivative, region, scores)
    return changed(problem, region, scores), lambda grad_scores: (ops.multiply(grad_scores, derivative),)


def _lines_of_sinks(problem: Problem) -> Array:
    return problem.sinks[..., 0]  # type: ignore[index]  # (..., H, 1), or (..., 1)


def _sink_weights(problem: Problem, lse: Array) -> Array:
    """Return the share (..., H, Sq) of the sinks in the softmax of each row."""
    xp, sinks = problem.xp, _lines_of_sinks(problem)
    is_finite = xp.isfinite(lse)
    return xp.exp(xp.where(is_finite, sinks, -math.inf) - xp.where(is_finite, lse, 0.0))


def sink_gradients(problem: Problem, known: Known) -> Array | None:
    """Return the gradient of the sinks, in their shape."""
    if problem.sinks is None:
        return None
    xp = problem.xp
    # Where the output is 0, its gradient does not count, even if it is NaN: a row may attend nothing but the sink.
    known = known._replace(gradient=xp.where(known.output == 0.0, 0.0, known.gradient))
    grad_scores = -xp.sum(_sink_weights(problem, known.lse) * known.delta(problem), axis=-1)  # (..., H)
    if problem.batch:
        grad_scores = xp.sum(grad_scores, axis=tuple(range(len(problem.batch))))
    return xp.reshape(grad_scores, problem.sinks.shape)
