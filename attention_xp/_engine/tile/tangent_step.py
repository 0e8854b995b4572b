"""One tile of attention, forward mode: what small changes of the arguments change in output and log-sum-exp.

With ``p`` the weights before dropout and ``z`` what dropout multiplies them by::

    dlse = rowsum(p dscore)        doutput = (z p dscore) value + (z p) dvalue - output dlse

It is the transpose of `backward_step`.
"""

from typing import NamedTuple

from attention_xp._engine.plan.plan import Bounds
from attention_xp._engine.tile.arithmetic import Arithmetic
from attention_xp._engine.tile.backward_step import key_factor, modified_with_pull
from attention_xp._engine.tile.scores import survival_factor
from attention_xp._scores.region import Region
from attention_xp._typing import Array
from attention_xp.masks import Mask

__all__ = ["Changing", "Sums", "advance_sums"]


class Changing(NamedTuple):
    """An array and its change."""

    at: Array
    by: Array


class Sums(NamedTuple):
    """What a block of rows has gathered so far."""

    total: Array  # (..., m, 1), of the changes of the scores, weighted
    output: Array  # (..., m, Dv)


def advance_sums(
    ops: Arithmetic,
    region: Region,
    query: Changing,
    shift: Array,
    key: Changing,
    value: Changing,
    addends: tuple[Array | None, ...],
    sums: Sums,
    *,
    rules: tuple[Mask, ...],
    mixed: Bounds,
) -> Sums:
    """Return the sums after one more tile.

    `query` has the factor of the scores, its change that of the products alone; `shift` is the log-sum-exp in
    the base, and `addends` are the changes of those of the problem.
    """
    problem, exclusive = ops.problem, len(rules) > 0
    scores, pull = modified_with_pull(problem, ops, region, ops.query_key(query.at, key.at, exclusive=exclusive))
    if not problem.is_product:
        scores = ops.in_base(scores)
    allowed = ops.allowed(rules, region.of_rows(*mixed))
    if allowed is not None:
        scores = ops.exclude(scores, allowed, mixed)
    weights = ops.powers(scores, shift, allowed, mixed)
    change = ops.query_key(query.by, key.at, exclusive=exclusive)
    change = change + ops.query_key(query.at, key.by, exclusive=exclusive) * key_factor(problem)
    if pull is not None:
        change = pull(change)[0]  # score by score, and so its own transpose
    for addend in addends:
        change = change if addend is None else change + region.look_up(addend)
    change = change * weights
    if allowed is not None:
        change = ops.silence(change, allowed, mixed)
    total = ops.row_sum(change)
    if problem.seed is not None:
        keep, factor = ops.survivors(region), survival_factor(problem)
        change, weights = ops.thin(change, keep) * factor, ops.thin(weights, keep) * factor
    output = ops.slopes_key(change, value.at, exclusive=exclusive)
    output = output + ops.slopes_key(weights, value.by, exclusive=exclusive)
    return Sums(sums.total + total, sums.output + output)
