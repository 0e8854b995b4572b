"""Few rows on pages of NumPy, which are read where they lie."""

from collections.abc import Callable
from typing import Any

import numpy as np

from attention_xp._engine.kernels.choose import attend_step
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Attended, Wanted
from attention_xp._engine.tile.formula import attend_at_once
from attention_xp._engine.walkers.numpy.pages import Pages
from attention_xp._engine.walkers.numpy.pages_in_place import as_arrays, attend_compiled
from attention_xp._typing import Array, DType, Namespace
from attention_xp.cache._by_position import Given
from attention_xp.cache._plain import plain

__all__ = ["attend_stated", "attend_where_they_lie", "pages_of"]


def attend_where_they_lie(
    xp: Namespace,
    query: Array,
    pages: tuple[Array, Array, Array, Array],
    given: Given,
    how: dict[str, Any],
    known: list[int],
    *,
    lse: bool,
) -> tuple[Array, Array]:
    """Return output and log-sum-exp over pages: keys, values, table and lengths; ``known`` are these lengths as ints."""
    key, value, table, lengths = pages
    columns = given.columns(xp, 0, max(known, default=0))
    how.pop("key_lengths", None)
    options = plain(how) if columns.mask is None and columns.bias is None else {**how, "bias": columns.bias}
    rate = options.pop("dropout_rate", 0.0)

    def state(key: Array, value: Array, **more: Any) -> Problem:
        return Problem.of(query, key, value, columns.mask, rate, options | more)  # type: ignore[arg-type]

    # For entries that are no page, items read some other page: what they give is replaced by NaN later on.
    pages = key, value, np.minimum(np.maximum(table, 0), len(key) - 1), lengths
    found = attend_stated(state, pages, pages_of(pages[2], known, key.shape[2]), known, Wanted(lse=lse))
    return found.output, found.lse


def pages_of(table: Array, known: list[int], size: int) -> list[list[int]]:
    """Return the pages of each item that its length reaches."""
    most = -(-max(known, default=0) // size)
    return [row[: -(-n // size)] for row, n in zip(table[:, :most].tolist(), known, strict=True)]


def attend_stated(
    state: Callable[..., Problem],
    arrays: tuple[Array, Array, Array, Array],
    pages: list[list[int]],
    known: list[int],
    wanted: Wanted,
) -> Attended:
    """Return the output over some pages of each item.

    `arrays` are keys, values, table and lengths; `pages` and `known` say the same as the last two. `state` makes the problem of
    keys and values (B, Hkv, Sk, D), with `key_lengths` where items differ. Pages that lie like an array are attended as one.
    Others are read by compiled loops, or else piece by piece.
    """
    key, value, _, lengths = arrays
    as_one = as_arrays(key, value, pages, known)
    if as_one is not None:
        return attend_step(state(*as_one), wanted)
    end = max(known, default=0)
    stand_ins = [_stand_in((len(known), a.shape[1], end, a.shape[3]), a.dtype) for a in (key, value)]
    problem = state(*stand_ins)
    found = attend_compiled(problem, key, value, pages, known, wanted)
    if found is None:
        stated = state(*stand_ins, key_lengths=lengths) if min(known, default=0) < end else problem
        found = _attend_by_pieces(stated, arrays[:3], known, wanted)
    return found


def _stand_in(shape: tuple[int, ...], dtype: DType) -> Array:
    """Return an array of a shape that takes no memory, to state a problem with."""
    return np.ndarray(shape, dtype, np.zeros(1, dtype), strides=(0,) * len(shape))


def _attend_by_pieces(
    problem: Problem, pages: tuple[Array, Array, Array], known: list[int], wanted: Wanted
) -> Attended:
    """Return the output of a problem by the formula, of which both products read pages piece by piece."""
    key, value, table = pages
    end = problem.key.shape[-2]  # a mask of lengths may have cut off the last keys
    if end:
        some, reached = table[:, : -(-end // key.shape[2])], [min(n, end) for n in known]
        rows = problem.query.shape[-2] * problem.group
        problem = problem.with_keys(*Pages.of(key, value, some, reached, problem.dtype, rows=rows))
    with np.errstate(invalid="ignore"):  # what lies in a page behind the end of an item may be infinite
        return attend_at_once(problem, wanted)
