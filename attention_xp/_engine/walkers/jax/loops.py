"""Loops inside the compiled program of JAX, so that its size does not grow with the lengths."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from attention_xp._backend.shapes import filled_up
from attention_xp._backend.sharding import spread_like
from attention_xp._backend.sizes import as_number, ceil_div
from attention_xp._backend.values import FAR
from attention_xp._engine.plan.tile_sizes import stack
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.arithmetic import Arithmetic
from attention_xp._engine.tile.products import query_key
from attention_xp._engine.tile.step import scale_in_base
from attention_xp._scores.region import Region, Span
from attention_xp._typing import Array, DType
from attention_xp.masks import Mask

__all__ = ["Guarded", "Loops", "dynamic_cut", "fold", "gradient_dtype", "guarded", "is_moving", "zeros"]


def fold(first: Any, last: Any, step: Callable[[Array, Any], Any], state: Any) -> Any:
    """Loop with an int32 index, also where JAX counts in int64."""
    return jax.lax.fori_loop(jnp.int32(first), jnp.int32(last), step, state)


def dynamic_cut(array: Array, starts: list[Any], sizes: list[int]) -> Array:
    """Return a piece of an array at indices that the program computes."""
    return jax.lax.dynamic_slice(array, [jnp.int32(start) for start in starts], sizes)


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


class Guarded(Arithmetic):
    """Primitives that guard against NaN by a condition inside the program, where a tile is not finite.

    They are never differentiated: the derivative of a loop is another loop.
    """

    def query_key(self, query: Array, key: Array, *, exclusive: bool) -> Array:
        """(..., H, m, D) @ (..., Hkv, n, D)^T -> (..., H, m, n)."""
        return guarded(partial(query_key, self.problem, product=_inner_products), query, key, exclusive=exclusive)

    def weights_value(self, weights: Array, value: Array, *, exclusive: bool) -> Array:
        """(..., H, m, n) @ (..., Hkv, n, Dv) -> (..., H, m, Dv)."""
        return guarded(super().weights_value, weights, value, exclusive=exclusive)


def _inner_products(query: Array, key: Array) -> Array:
    """(..., m, D) x (..., n, D) -> (..., m, n): as one contraction, for which XLA copies no transposed keys."""
    return jnp.einsum("...md,...nd->...mn", query, key)


def guarded(product: Callable[..., Array], rows: Array, tile: Array, *, exclusive: bool) -> Array:
    """Return a product, with the exclusive version where the tile is not finite."""
    if not exclusive:
        return product(rows, tile, exclusive=False)
    is_finite = jnp.all(jnp.isfinite(tile))
    return jax.lax.cond(
        is_finite, lambda: product(rows, tile, exclusive=False), lambda: product(rows, tile, exclusive=True)
    )


class Loops:
    """The loops of one call: over (batch items, heads, block of rows), and over tiles of keys of some sizes."""

    def __init__(self, problem: Problem, sizes: tuple[int, int]) -> None:
        self.m, self.n = sizes
        self.Sq, self.Sk = (
            problem.query.shape[-2],
            problem.key.shape[-2],
        )  # these and the sizes of a tile may be symbols
        self.stack = stack(problem)
        self.group = problem.group  # query heads of a key/value head; a tile may have only some of them
        heads = 1 if problem.heads is None else self.stack[-1]
        self.problem = dataclasses.replace(problem, group=min(heads, self.group))
        self.ops = Guarded(self.problem)
        self.blocks, self.tiles = ceil_div(self.Sq, self.m), ceil_div(self.Sk, self.n)
        self.ragged = self.tiles * self.n != self.Sk
        # Jobs along each leading axis, and along the rows.
        self.counts = (*(n // some for n, some in zip(problem.lead, self.stack, strict=True)), self.blocks)
        if problem.rules:
            self.order, self.full, self.some = self._schedule()

    def rows_of(self, job: Array) -> tuple[Region, Array]:
        """Return the rows of a job, over all keys, and the number of their block."""
        *lead, block = self._index_of(job)
        starts = (i * n for i, n in zip(lead, self.stack, strict=True))
        row = self._first(block, self.m, self.Sq)
        return Region(self.problem, (*starts, row, 0), (*self.stack, self.m, self.Sk), dynamic_cut), block

    def _index_of(self, job: Array) -> list[Array]:
        """Return which job this is along each leading axis, and along the rows."""
        index = []
        for size in map(partial(as_number, jnp), reversed(self.counts)):
            index.append(job % size)
            job = job // size
        return index[::-1]

    @staticmethod
    def _first(number: Array, size: int, length: int) -> Array:
        """Return where a block or tile begins; the last one begins early, so that all have the same size."""
        return jnp.minimum(number * as_number(jnp, size), as_number(jnp, length - size))

    def scaled_query(self, region: Region) -> Array:
        """Return the rows of the query with the factor of the scores."""
        at, sizes = (*region.starts[:-1], 0), (*region.sizes[:-1], self.problem.query.shape[-1])
        query = dynamic_cut(self.problem.query, list(at), list(sizes))
        return query.astype(self.problem.dtype) * scale_in_base(self.problem)

    def each_tile(
        self, region: Region, block: Array, step: Callable[[Any, Any, tuple[Mask, ...]], Any], state: Any
    ) -> Any:
        """Fold ``step(state, tile, rules)`` over the tiles of a block of rows, the full ones first."""
        if not self.problem.rules:
            whole = self.tiles - self.ragged
            state = fold(0, whole, lambda t, s: step(s, t, ()), state)
            return step(state, whole, (self._fresh(whole),)) if self.ragged else state

        def mixed_step(t: Array, state: Any) -> Any:
            fresh = (self._fresh(order[t]),) if self.ragged else ()
            return step(state, order[t], (*self.problem.rules, *fresh))

        order = self._of_block(self.order, 1, region, block)
        full, some = (self._of_block(table, 0, region, block) for table in (self.full, self.some))
        state = fold(0, full, lambda t, s: step(s, order[t], ()), state)
        return fold(full, some, mixed_step, state)

    def _fresh(self, tile: Any) -> _FreshKeys:
        return _FreshKeys(tile * as_number(jnp, self.n))

    def tile(self, region: Region, tile: Any) -> tuple[Region, Array, Array]:
        """Return a tile of a block of rows, and its keys and values."""
        column = self._first(tile, self.n, self.Sk)
        key, value = (
            self._keys(a, region, column).astype(self.problem.dtype) for a in (self.problem.key, self.problem.value)
        )
        part = region._replace(starts=(*region.starts[:-1], column), sizes=(*region.sizes[:-1], self.n))
        return part, key, value

    def _keys(self, array: Array, region: Region, column: Array) -> Array:
        """Return a tile of keys or values of the heads of a region, (..., n, D)."""
        lead = [0 if n == 1 else i for i, n in zip(self.kv_lead(region), array.shape[:-2], strict=True)]
        sizes = [1 if n == 1 else some for n, some in zip(array.shape[:-2], self._kv_stack(), strict=True)]
        return dynamic_cut(array, [*lead, column, 0], [*sizes, self.n, array.shape[-1]])

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
            lead[-1] = lead[-1] // self.group
        return lead

    def _schedule(self) -> tuple[Array, Array, Array]:
        """Return the order of tiles for each block of rows, full ones first, and the counts of full and of visited ones."""
        problem, span = self.problem, self.span()
        answers = [rule.reach(span) for rule in problem.rules if _has_reach(rule, problem)]
        certainly_unknown = len(answers) < len(problem.rules)
        possible = _all([a for a, _ in answers])
        certain = _all([c for _, c in answers]) & (not certainly_unknown)
        if self.ragged:
            certain = certain & (self._numbers(self.tiles) < as_number(jnp, self.tiles - 1))
        state = jnp.where(possible, jnp.where(certain, 0, 1), 2)
        state = jnp.broadcast_to(state, (*state.shape[:-2], self.blocks, self.tiles))
        order = jnp.argsort(state, axis=-1, stable=True).astype(jnp.int32)
        full, some = (jnp.sum(state <= limit, axis=-1, dtype=jnp.int32) for limit in (0, 1))
        return order, full, some

    def span(self) -> Span:
        """Return the bounds of all tiles."""
        problem = self.problem
        row = self._first(self._numbers(self.blocks, behind=1), self.m, self.Sq)
        column = self._first(self._numbers(self.tiles), self.n, self.Sk)
        whole = Region.whole(problem)
        offset = 0 if problem.query_offset is None else whole.per_batch(problem.query_offset)
        q = row + offset
        items = whole.item if math.prod(self.stack[: len(problem.batch)]) == 1 else None
        heads = whole.head if math.prod(self.stack[len(problem.batch) :]) == 1 else None
        m, n = as_number(jnp, self.m), as_number(jnp, self.n)
        k = self._positions(column)
        return Span(jnp, row, row + m - 1, q, q + m - 1, *k, items, heads, column, column + n - 1)

    def _positions(self, column: Array) -> tuple[Array, Array]:
        """Return the bounds of the positions of the keys of all tiles, given their first columns."""
        keys = self.problem.key_positions
        if keys is None:
            first = column if self.problem.key_offset is None else column + self.problem.key_offset
            return first, first + as_number(jnp, self.n) - 1
        columns = column.reshape(-1, 1) + jnp.arange(self.n, dtype=jnp.int32)[None, :]
        of_tiles = keys[..., columns]  # (..., 1, 1, tiles, n)
        # Negative positions mark empty slots, unless they count up: then they come from an offset.
        counts_up = of_tiles[..., -1:] - of_tiles[..., :1] == as_number(jnp, self.n) - 1
        filled = jnp.where((of_tiles < 0) & ~counts_up, FAR, of_tiles)
        least, greatest = jnp.min(filled, axis=-1), jnp.max(of_tiles, axis=-1)
        return jnp.minimum(least, greatest), greatest

    def _numbers(self, count: int, behind: int = 0) -> Array:
        return filled_up(jnp, jnp.arange(count, dtype=jnp.int32), self.problem.ndim, behind=behind)

    def _of_block(self, table: Array, axes: int, region: Region, block: Array) -> Array:
        """Return the entry of one job in a table (..., blocks) whose entries have some axes of their own."""
        lead = table.shape[: table.ndim - axes - 1]
        starts = region.starts[len(region.starts) - 2 - len(lead) : -2]
        return table[(*(0 if n == 1 else i for i, n in zip(starts, lead, strict=True)), block)]


def _has_reach(rule: Mask, problem: Problem) -> bool:
    """Whether a rule can be asked about rectangles: where sequences are packed, positions jump, and few rules can."""
    packing = problem.packing
    return packing is None or rule._is_of_places or (packing.same and rule.shift_invariant)


def _all(answers: list[Any]) -> Array:
    result = jnp.asarray(True)
    for answer in answers:
        result = result & answer
    return result
