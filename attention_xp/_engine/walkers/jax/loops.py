"""Loops inside the compiled program of JAX, so that its size does not grow with the lengths."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial, reduce
from operator import and_
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attention_xp._backend.shapes import filled_up
from attention_xp._backend.sharding import spread_like
from attention_xp._backend.sizes import as_number, ceil_div, is_open
from attention_xp._backend.values import FAR
from attention_xp._engine.plan.tile_sizes import stack
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.step import scale_in_base
from attention_xp._engine.walkers.jax.guarded import TURNS, Guarded
from attention_xp._scores.frozen import freeze
from attention_xp._scores.region import Region, Span
from attention_xp._typing import Array, DType
from attention_xp.masks import Mask

__all__ = ["Loops", "dynamic_cut", "dynamic_put", "fold", "gradient_dtype", "is_moving", "zeros"]


_NEVER = 2**31 - 1  # behind all tiles
_TURN_BITS = TURNS.bit_length() - 1  # in a count of turns, those that number the turns of one tile

Step = Callable[..., Any]
"""What is done with a tile: ``step(state, tile, rules, mixed)``, with the number of the turn behind where it takes turns."""


def fold(first: Any, last: Any, step: Callable[[Array, Any], Any], state: Any) -> Any:
    """Loop with an int32 index, also where JAX counts in int64."""
    return jax.lax.fori_loop(jnp.int32(first), jnp.int32(last), step, state)


# To ask of each index whether it counts from the end takes time to compile; older JAX always asks.
_HOW = {"allow_negative_indices": False}
_HOW = _HOW if _HOW.keys() <= inspect.signature(jax.lax.dynamic_slice).parameters.keys() else {}


def dynamic_cut(array: Array, starts: Iterable[Any], sizes: Sequence[int]) -> Array:
    """Return a piece of an array at indices that the program computes."""
    return jax.lax.dynamic_slice(array, _as_indices(starts), sizes, **_HOW)


def dynamic_put(array: Array, piece: Array, starts: Iterable[Any]) -> Array:
    """Return an array with another piece at indices that the program computes."""
    return jax.lax.dynamic_update_slice(array, piece, _as_indices(starts), **_HOW)


def _as_indices(starts: Iterable[Any]) -> list[Array]:
    return [jnp.asarray(start, jnp.int32) for start in starts]


def zeros(problem: Problem, shape: tuple[int, ...], dtype: DType) -> Array:
    """Return zeros, as the initial state of a loop."""
    return spread_like(jnp.zeros(shape, dtype), problem.query)


def is_moving(array: Array) -> bool:
    """Whether JAX differentiates by an array: not by integers and booleans."""
    return bool(jnp.issubdtype(array.dtype, jnp.inexact))


def gradient_dtype(problem: Problem, array: Array) -> DType:
    """Return the dtype in which the gradient of an array is summed up."""
    return problem.dtype if jnp.issubdtype(array.dtype, jnp.floating) else array.dtype


@dataclasses.dataclass(frozen=True, eq=False)
class _FreshKeys(Mask):
    """Where the last tile begins early to have full size, excludes the keys that the tile before it contains."""

    first: Array

    def allowed(self, region: Region) -> Array:
        return region.column >= self.first


class Loops:
    """The loops of one call: over (batch items, heads, block of rows), and over tiles of keys of some sizes."""

    def __init__(self, problem: Problem, sizes: tuple[int, int]) -> None:
        self.m, self.n = sizes
        # These and the sizes of a tile may be symbols.
        self.Sq, self.Sk = problem.query.shape[-2], problem.key.shape[-2]
        self.stack = stack(problem)
        self.group = problem.group  # query heads of a key/value head; a tile may have only some of them
        heads = 1 if problem.heads is None else self.stack[-1]
        self.problem = dataclasses.replace(problem, group=min(heads, self.group))
        self.ops = Guarded(self.problem)
        self.blocks, self.tiles = ceil_div(self.Sq, self.m), ceil_div(self.Sk, self.n)
        self.ragged = self.tiles * self.n != self.Sk
        # Jobs along each leading axis, and along the rows.
        self.counts = (*(n // some for n, some in zip(problem.lead, self.stack, strict=True)), self.blocks)
        self.library = np if self._is_fixed() else jnp  # in which it is found out which tiles to visit
        if problem.rules:
            self.order, self.visits = self._schedule()

    def rows_of(self, job: Array) -> tuple[Region, Array]:
        """Return the rows of a job, over all keys, and the number of their block."""
        *lead, block = self._index_of(job)
        starts = (i * n for i, n in zip(lead, self.stack, strict=True))
        row = self._first(block, self.m, self.Sq)
        return Region(self.problem, (*starts, row, 0), (*self.stack, self.m, self.Sk), dynamic_cut), block

    def _index_of(self, job: Array) -> list[Array]:
        """Return which job this is along each leading axis, and along the rows."""
        index: list[Any] = []
        for count in reversed(self.counts):
            if isinstance(count, int) and count == 1:
                index.append(0)
                continue
            size = jnp.asarray(count, jnp.int32)
            index.append(jax.lax.rem(job, size))  # jobs are not negative, as `%` would ask
            job = jax.lax.div(job, size)
        return index[::-1]

    @staticmethod
    def _first(number: Array, size: int, length: int, xp: Any = jnp) -> Array:
        """Return where a block or tile begins; the last one begins early, so that all have the same size."""
        start = number * as_number(xp, size)
        is_divided = not is_open(size, length) and length % size == 0
        return start if is_divided else xp.minimum(start, as_number(xp, length - size))

    def scaled_query(self, region: Region) -> Array:
        """Return the rows of the query with the factor of the scores."""
        at, sizes = (*region.starts[:-1], 0), (*region.sizes[:-1], self.problem.query.shape[-1])
        query = dynamic_cut(self.problem.query, list(at), list(sizes))
        return query.astype(self.problem.dtype) * scale_in_base(self.problem)

    def each_tile(self, region: Region, block: Array, step: Step, state: Any) -> Any:
        """Fold ``step(state, tile, rules, mixed)`` over the tiles of a block of rows."""
        visits = self._visits(region, block)
        return fold(0, visits, lambda i, state: step(state, *self._visit(region, block, i)), state)

    def each_turn(self, region: Region, block: Array, step: Step, state: Any) -> Any:
        """Fold ``step(state, tile, rules, mixed, turn) -> (state, is_last)``, which may ask for more turns of its tile."""
        end = self._visits(region, block) * TURNS

        def one(at: tuple[Array, Any]) -> tuple[Array, Any]:
            count, state = at
            state, is_last = step(state, *self._visit(region, block, count >> _TURN_BITS), count & (TURNS - 1))
            return count + jax.lax.select(is_last, jnp.int32(TURNS), jnp.int32(1)), state

        first = spread_like(jnp.int32(0), self.problem.value)
        return jax.lax.while_loop(lambda at: at[0] < end, one, (first, state))[1]

    def _visits(self, region: Region, block: Array) -> Any:
        """Return the number of tiles of a block of rows."""
        return self._of_block(self.visits, region, block) if self.problem.rules else self.tiles

    def _visit(self, region: Region, block: Array, i: Array) -> tuple[Array, tuple[Mask, ...], Array]:
        """Return the number of a tile, its rules, and whether they are undecided there."""
        rules = self.problem.rules
        if rules:
            number = self._of_block(self.order, region, block, i)
            tile, mixed = number >> 1, (number & 1) == 1
        else:
            tile, mixed = i, i == as_number(jnp, self.tiles - 1)
        fresh = (_FreshKeys(tile * as_number(jnp, self.n)),) if self.ragged else ()
        return tile, (*rules, *fresh), mixed

    def tile(self, region: Region, tile: Any) -> tuple[Region, Array, Callable[[], Array]]:
        """Return a tile of a block of rows, its keys, and what cuts its values out."""
        column = self._first(tile, self.n, self.Sk)
        part = region._replace(starts=(*region.starts[:-1], column), sizes=(*region.sizes[:-1], self.n))
        key, value = self.problem.key, self.problem.value
        return part, self._keys(key, region, column), partial(self._keys, value, region, column)

    def _keys(self, array: Array, region: Region, column: Array) -> Array:
        """Return a tile of keys or values of the heads of a region, (..., n, D)."""
        lead = [0 if n == 1 else i for i, n in zip(self.kv_lead(region), array.shape[:-2], strict=True)]
        sizes = [1 if n == 1 else some for n, some in zip(array.shape[:-2], self._kv_stack(), strict=True)]
        piece = dynamic_cut(array, [*lead, column, 0], [*sizes, self.n, array.shape[-1]])
        return piece.astype(self.problem.dtype)

    def _kv_stack(self) -> list[int]:
        """Return the numbers of batch items and key/value heads of a tile."""
        sizes = list(self.stack)
        if self.problem.heads is not None:
            sizes[-1] = max(sizes[-1] // self.group, 1)
        return sizes

    def kv_lead(self, region: Region) -> list[Any]:
        """Return the leading indices of the keys of a region."""
        lead = list(region.starts[:-2])
        if self.problem.heads is not None:
            lead[-1] = lead[-1] if self.group == 1 else lead[-1] // self.group
        return lead

    def _is_fixed(self) -> bool:
        """Whether the tiles to visit depend on no number that only the program knows, as in a causal call without offset.

        They are then constants of it: there is less to compile, and nothing to sort in each call.
        """
        problem = self.problem
        if len(problem.rules) == 0:
            return False
        depends = problem.query_offset, problem.key_offset, problem.key_positions, problem.packing
        if any(place is not None for place in depends) or is_open(self.m, self.n, self.Sq, self.Sk):
            return False
        return problem.is_masked_alike and not problem.has_foreign_code() and not freeze(problem.rules)[1]

    def _schedule(self) -> tuple[Array, Array]:
        """Return for each block of rows the tiles that it visits, times 2, plus 1 for mixed ones; and their number."""
        problem, span, xp = self.problem, self.span(), self.library
        answers = [rule.reach(span) for rule in problem.rules if _has_reach(rule, problem)]
        certainly_unknown = len(answers) < len(problem.rules)
        possible: Any = reduce(and_, [a for a, _ in answers], True)
        certain: Any = reduce(and_, [c for _, c in answers], not certainly_unknown)
        numbers = self._numbers(self.tiles)
        if self.ragged:
            certain = certain & (numbers < as_number(xp, self.tiles - 1))
        order = xp.where(possible, 2 * numbers + xp.where(certain, 0, 1), _NEVER)
        order = xp.broadcast_to(order, (*order.shape[:-2], self.blocks, self.tiles))
        visits = xp.sum(order != _NEVER, axis=-1, dtype=xp.int32)
        order = xp.sort(order, axis=-1).astype(xp.int32)
        return (order, visits) if xp is jnp else (jnp.asarray(order[..., : max(visits.max(), 1)]), jnp.asarray(visits))

    def span(self) -> Span:
        """Return the bounds of all tiles."""
        problem, xp = self.problem, self.library
        row = self._first(self._numbers(self.blocks, behind=1), self.m, self.Sq, xp)
        column = self._first(self._numbers(self.tiles), self.n, self.Sk, xp)
        whole = Region.whole(problem)
        offset = 0 if problem.query_offset is None else whole.per_batch(problem.query_offset)
        q = row + offset
        items = whole.item if xp is jnp and math.prod(self.stack[: len(problem.batch)]) == 1 else None
        heads = whole.head if xp is jnp and math.prod(self.stack[len(problem.batch) :]) == 1 else None
        m, n = as_number(xp, self.m), as_number(xp, self.n)
        k = self._positions(column)
        return Span(xp, row, row + m - 1, q, q + m - 1, *k, items, heads, column, column + n - 1)

    def _positions(self, column: Array) -> tuple[Array, Array]:
        """Return the bounds of the positions of the keys of all tiles, given their first columns."""
        keys = self.problem.key_positions
        if keys is None:
            first = column if self.problem.key_offset is None else column + self.problem.key_offset
            return first, first + as_number(self.library, self.n) - 1
        columns = column.reshape(-1, 1) + jnp.arange(self.n, dtype=jnp.int32)[None, :]
        of_tiles = keys[..., columns]  # (..., 1, 1, tiles, n)
        # Negative positions mark empty slots, unless they count up: then they come from an offset.
        counts_up = of_tiles[..., -1:] - of_tiles[..., :1] == as_number(jnp, self.n) - 1
        filled = jnp.where((of_tiles < 0) & ~counts_up, FAR, of_tiles)
        least, greatest = jnp.min(filled, axis=-1), jnp.max(of_tiles, axis=-1)
        return jnp.minimum(least, greatest), greatest

    def _numbers(self, count: int, behind: int = 0) -> Array:
        return filled_up(
            self.library, self.library.arange(count, dtype=self.library.int32), self.problem.ndim, behind=behind
        )

    def _of_block(self, table: Array, region: Region, *behind: Array) -> Array:
        """Return the entry of one job in a table (..., blocks), or of a tile of it in one (..., blocks, tiles)."""
        lead = table.shape[: table.ndim - len(behind)]
        starts = region.starts[len(region.starts) - 2 - len(lead) : -2]
        at = [0 if n == 1 else i for i, n in zip(starts, lead, strict=True)]
        return jnp.reshape(dynamic_cut(table, [*at, *behind], [1] * table.ndim), ())


def _has_reach(rule: Mask, problem: Problem) -> bool:
    """Whether a rule can be asked about rectangles: where sequences are packed, positions jump, and few rules can."""
    packing = problem.packing
    return packing is None or rule._is_of_places or (packing.same and rule.shift_invariant)
