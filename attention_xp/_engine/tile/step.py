"""One tile of attention, forward: the online softmax, written once for every library and walker.

Scores are in a base whose powers are fast; where the score is the scaled product alone, the factor of the base is
multiplied into the scale of the query. See Milakov and Gimelshein, "Online normalizer calculation for softmax",
2018, and Dao, "FlashAttention-2", 2023.
"""

import math
from typing import Any, NamedTuple

from attention_xp._engine.plan.plan import Bounds
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.base import Base, base_of, lowest_score
from attention_xp._engine.tile.primitives import AllowedT, ForwardPrimitives, KeyT_contra, ValueT_contra
from attention_xp._engine.tile.scores import dropped, is_bent, modified, of_real_rows, query_factor, survival_factor
from attention_xp._engine.tile.sink import sink_of
from attention_xp._scores.region import Region
from attention_xp._softmax import log_sum, nonzero
from attention_xp._typing import Array
from attention_xp.masks import Mask

__all__ = [
    "Running",
    "advance",
    "factor_of_base",
    "finish",
    "log_sum_exp",
    "normalized",
    "scale_in_base",
    "scored",
    "start",
]


class Running(NamedTuple):
    """The state of a block of rows between two tiles: the largest score so far, and sums relative to it."""

    peak: Array | None  # (..., m, 1) in the base; None where the shift is fixed
    total: Array  # (..., m, 1), the sum of weights; None stands for zeros
    output: Array  # (..., m, Dv), the sum of weighted values; likewise


def scale_in_base(problem: Problem) -> float | Array:
    """Return the factor of the query."""
    return query_factor(problem) * factor_of_base(problem)


def factor_of_base(problem: Problem) -> float:
    """Return the factor of the base in that of the query: 1 where it is applied to the scores instead."""
    return base_of(problem.xp).log_e if problem.is_product else 1.0


def start(
    problem: Problem, region: Region, empty: Array, *, shift: Array | float | None, base: Base | None = None
) -> Running:
    """Return the state before the first tile, with the sinks. `empty` is (..., m, Dv) of zeros.

    `shift` is subtracted from all scores, in the base; ``None`` stands for the largest score so far. The base is by default
    that of the library.
    """
    xp, base = problem.xp, base or base_of(problem.xp)
    total = xp.zeros_like(empty[..., :1]) if empty.shape[-1] else xp.sum(empty, axis=-1, keepdims=True)
    logits = sink_of(problem, region)
    if logits is None:
        return Running(total - math.inf if shift is None else None, total, empty)
    if base.log_e != 1.0:  # numbers at both ends must not overflow by the factor
        least = lowest_score(xp, logits.dtype)
        logits = xp.where(xp.isfinite(logits), xp.clip(logits, least, -least), logits)
    sink = total + logits * base.log_e
    if shift is not None:
        return Running(None, base.power(sink - shift), empty)
    return Running(sink, base.power(sink - xp.where(xp.isfinite(sink), sink, 0.0)), empty)


def advance(
    ops: ForwardPrimitives[AllowedT, KeyT_contra, ValueT_contra],
    region: Region,
    query: Array,
    key: KeyT_contra,
    value: ValueT_contra,
    running: Running,
    *,
    rules: tuple[Mask, ...],
    mixed: Bounds,
) -> Running:
    """Return the state after one more tile. `rules` are undecided on the `mixed` rows of it."""
    xp = ops.xp
    scores, allowed = scored(ops, region, query, key, rules=rules, mixed=mixed)
    if running.peak is None:
        peak = shift = fade = None
    else:
        peak = ops.peak(running.peak, scores)
        shift = xp.where(xp.isfinite(peak), peak, 0.0)
        fade = ops.base.power(running.peak - shift)
    weights = ops.powers(scores, shift, allowed, mixed)
    total, output = running.total, running.output
    if fade is not None:
        peak = ops.replace(running.peak, peak)
        total, output = (None if sums is None else ops.multiply(sums, fade) for sums in (total, output))
    total = ops.plus_row_sum(total, weights)
    # (..., m, Dv) + (..., m, n) @ (..., n, Dv)
    output = ops.plus_weights_value(output, dropped(ops, region, weights), value, exclusive=len(rules) > 0)
    return Running(peak, total, output)


def scored(
    ops: ForwardPrimitives[AllowedT, KeyT_contra, ValueT_contra],
    region: Region,
    query: Array,
    key: KeyT_contra,
    *,
    rules: tuple[Mask, ...],
    mixed: Bounds,
) -> tuple[Array, AllowedT | None]:
    """Return the scores of a tile in the base, (..., m, n), and which of its `mixed` rows are allowed."""
    problem, exclusive = ops.problem, len(rules) > 0
    scores = ops.query_key(query, key, exclusive=exclusive)  # (..., m, D) @ (..., D, n) -> (..., m, n)
    allowed = ops.allowed(rules, region.of_rows(*mixed)) if exclusive else None
    if not problem.is_product:
        if allowed is not None and is_bent(problem):
            scores = ops.shielded(scores, query, key, allowed)
        scores = ops.in_base(modified(problem, ops, region, scores))
    return scores if allowed is None else ops.exclude(scores, allowed, mixed), allowed


def finish(ops: ForwardPrimitives[Any, Any, Any], region: Region, running: Running) -> tuple[Array, Array]:
    """Return the output (..., m, Dv) and the log-sum-exp (..., m) of a block of rows."""
    return normalized(ops, running), log_sum_exp(ops.problem, region, running)


def normalized(ops: ForwardPrimitives[Any, Any, Any], running: Running) -> Array:
    """Return the output (..., m, Dv): the weighted sum of values over the sum of the weights."""
    total = running.total if ops.problem.never_empty else nonzero(running.total, xp=ops.xp)
    return ops.divide(running.output, total if ops.problem.seed is None else total / survival_factor(ops.problem))


def log_sum_exp(problem: Problem, region: Region, running: Running, base: Base | None = None) -> Array:
    """Return the natural logarithm (..., m) of the sum of the exponentials of the scores, from a state in the base."""
    xp, base, peak = problem.xp, base or base_of(problem.xp), running.peak
    shift = 0.0 if peak is None else xp.where(xp.isfinite(peak), peak, 0.0) / base.log_e
    lse = of_real_rows(problem, region, log_sum(running.total, shift, xp=xp))
    return xp.squeeze(lse, axis=-1)
