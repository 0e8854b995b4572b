"""What all guests need: rules and addends translated to their arguments, and padding made harmless."""

import math

from attention_xp._backend.dtypes import as_dtype
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Wanted
from attention_xp._engine.tile.arithmetic import allowed_pairs
from attention_xp._engine.tile.scores import of_real_rows
from attention_xp._scores.region import Region
from attention_xp._typing import Array
from attention_xp.biases import Bias
from attention_xp.masks import Mask

__all__ = [
    "added",
    "allowed",
    "attending",
    "band",
    "column_rules",
    "fill_empty_rows",
    "fill_padding",
    "four_axes",
    "has_array",
    "operand",
    "refused_rule",
    "starts_at_0",
    "unknown_option",
    "valid_lengths",
    "with_zero_keys",
]


def unknown_option(problem: Problem, wanted: Wanted) -> str | None:
    """Return the name of an option that no library's kernel takes."""
    if problem.output_dtype is not None:
        return "output_dtype but that of the query"
    if problem.softcap is not None:
        return "softcap"
    if problem.score_mod is not None:
        return "score_mod"
    if problem.sinks is not None:
        return "sinks"
    if problem.seed is not None:
        return "dropout with a reproducible draw"
    if problem.has_bias_rule:
        return "bias but an array of (Sq, Sk)"
    if problem.packing is not None:
        return "packed sequences"
    is_moved = not problem.keys_count_up or problem.key_offset is not None
    if is_moved and not all(rule._is_of_places for rule in problem.rules):
        return "key_offset or key_positions under a mask"
    if problem.is_empty:
        return "empty axes"
    if isinstance(problem.scale, float) and problem.scale <= 0.0:
        return "scale but a positive one"  # torch's multiplies it into the minus infinity of excluded pairs
    if not isinstance(problem.scale, float) and problem.query.dtype != problem.dtype:
        return "scale as an array in 16 bits"
    if not _fit(problem):
        return "additions in more than 16 bits"
    return "log-sum-exp in 32 bits" if wanted.lse else None


def _fit(problem: Problem) -> bool:
    """Whether what is added to the scores can be given in the dtype of the query without rounding."""
    is_wide = problem.query.dtype == problem.dtype
    return is_wide or len(problem.addends) == 0 or (len(problem.addends) == 1 and problem.narrow_addends)


def column_rules(problem: Problem) -> tuple[Mask, ...]:
    """Return the rules without those on rows alone: their rows are set to zero afterwards."""
    return tuple(rule for rule in problem.rules if not rule._is_of_rows) if problem.rules else ()


def refused_rule(rules: tuple[Mask, ...]) -> str | None:
    """Return why cuDNN cannot take a mask: it takes bands and lengths as numbers, and any other mask as an array."""
    if all(rule._as_array is not None or rule._as_band is not None or rule._as_lengths is not None for rule in rules):
        return None
    return "cuDNN's attention would need this mask as an array of (Sq, Sk)"


def has_array(problem: Problem, rules: tuple[Mask, ...]) -> bool:
    """Whether scores of (Sq, Sk) are added or excluded by an array."""
    return len(problem.addends) > 0 or any(rule._as_array is not None for rule in rules)


def band(rules: tuple[Mask, ...]) -> tuple[int | None, int | None]:
    """Return how many keys to its left and right a query may attend, ``None`` without a limit."""
    bands = [rule._as_band for rule in rules if rule._as_band is not None]
    lefts, rights = (
        [side for side in sides if side is not None] for sides in (zip(*bands, strict=True) if bands else ((), ()))
    )
    return min(lefts, default=None), min(rights, default=None)


def valid_lengths(problem: Problem, rules: tuple[Mask, ...]) -> tuple[Array | None, Array | None]:
    """Return the number of rows and of keys of each batch item that are no padding, (B,) int32."""
    xp = problem.xp
    Sq, Sk = problem.query.shape[-2], problem.key.shape[-2]
    rows = None if problem.query_lengths is None else _per_item(problem, problem.query_lengths, Sq)
    columns = [_per_item(problem, n, Sk) for rule in rules if (n := rule._as_lengths) is not None]
    return rows, xp.min(xp.stack(columns), axis=0) if columns else None


def _per_item(problem: Problem, lengths: int | Array, most: int) -> Array:
    xp = problem.xp
    lengths = xp.clip(xp.astype(xp.asarray(lengths), xp.int32), 0, most)
    return xp.reshape(xp.broadcast_to(lengths, problem.batch), (-1,))


def starts_at_0(problem: Problem) -> bool:
    """Whether the first query of every batch item has the position of the first key."""
    return problem.query_offset is None or (isinstance(problem.query_offset, int) and problem.query_offset == 0)


def allowed(problem: Problem, rules: tuple[Mask, ...]) -> Array | None:
    """Return which pairs all rules allow, as an array that broadcasts to the scores."""
    return allowed_pairs(rules, Region.whole(problem)) if rules else None


def added(problem: Problem) -> Array | None:
    """Return the sum of bias and floating mask, ``None`` without either."""
    if len(problem.addends) == 0:
        return None
    first, *others = (addend for addend in problem.addends if not isinstance(addend, Bias))  # rules are refused
    return sum(others, start=as_dtype(problem.xp, first, problem.dtype) if others else first)


def four_axes(problem: Problem, a: Array) -> Array:
    """Return (B, H, S, D) of what broadcasts to the scores, or of keys and values, leading axes joined."""
    if a.ndim == 4 == problem.ndim:
        return a
    xp = problem.xp
    lead = problem.batch if problem.heads is None else (*problem.batch, a.shape[-3])
    heads = lead[-1] if problem.heads is not None else 1
    return xp.reshape(xp.broadcast_to(a, (*lead, *a.shape[-2:])), (-1, heads, *a.shape[-2:]))


def operand(problem: Problem, a: Array) -> Array:
    """Return (B, H, S, D) of query, keys or values, with all batch items."""
    a, items = four_axes(problem, a), math.prod(problem.batch)
    return a if a.shape[0] == items else problem.xp.broadcast_to(a, (items, *a.shape[1:]))


def with_zero_keys(problem: Problem, rules: tuple[Mask, ...], a: Array) -> Array:
    """Return keys or values with zeros for the padding: where it is NaN, so is its product with a weight of 0."""
    for rule in rules:
        if rule._as_lengths is not None:
            real = rule.allowed(Region.whole(problem))[..., 0, :]  # (..., 1, Sk)
            a = problem.xp.where(problem.xp.expand_dims(real, axis=-1), a, 0.0)
    return a


def fill_padding(problem: Problem, rows: Array, value: float = 0.0) -> Array:
    """Return rows (..., Sq, n) of output or query, with one value wherever they are padding."""
    if problem.query_lengths is None:  # as of most calls, which need no region
        return rows
    return of_real_rows(problem, Region.whole(problem), rows, value)


def fill_empty_rows(problem: Problem, rules: tuple[Mask, ...], rows: Array, value: float = 0.0) -> Array:
    """Return rows (..., Sq, n) of the output, with one value where a row may attend nothing: guests average keys there."""
    if not has_array(problem, rules):  # without arrays, only lengths are taken to leave a row empty
        rules = tuple(rule for rule in rules if rule._as_lengths is not None)
    attends = attending(problem, allowed(problem, rules), added(problem))
    return rows if attends is None else problem.xp.where(attends, rows, value)


def attending(problem: Problem, keep: Array | None, total: Array | None) -> Array | None:
    """Return which rows attend a key, (..., Sq or 1, 1), by the pairs that are allowed and what is added; ``None``: all."""
    xp = problem.xp
    if total is not None:
        keep = total != -xp.inf if keep is None else keep & (total != -xp.inf)
    return None if keep is None else xp.any(keep, axis=-1, keepdims=True)
