"""NumPy's primitives for the tile step, in the buffers of one thread.

The answers are those of `Arithmetic`. Scores that are the product alone, or meet arrays that vary along
one axis, are laid out keys x queries behind a transposed view: neither product needs a transposed copy,
and every operation along the keys runs down the first axis, which NumPy vectorises well. Where they meet
arrays of (Sq, Sk), whose transposition would cost more than it brings, they lie as those do.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from attention_xp._engine.plan import Bounds
from attention_xp._engine.problem import Problem
from attention_xp._engine.region import Region
from attention_xp._engine.rules import ArrayMask, RowMask
from attention_xp._engine.threads.heads import Range
from attention_xp._engine.tile.arithmetic import Arithmetic, allowed_pairs
from attention_xp._engine.tile.products import quarantined_key, quarantined_outputs
from attention_xp._engine.tile_sizes import CROWDED, TileShape
from attention_xp._random_in_place import Survivors
from attention_xp._random_survivors import head_key
from attention_xp._typing import Array
from attention_xp.biases import Bias
from attention_xp.masks import Mask

__all__ = ["SAFE", "InPlace"]

_NEVER = 0.9  # of the largest number: taken off a score, it is no maximum and makes no NaN
_APART = 16  # numbers that keep lines apart which would compete for the same places in a cache
SAFE = 124.0  # powers of two in float32 are fast from -124 to 124; subnormal ones take up to a hundred times as long
_WHOLE_RUN = 32  # columns without an exclusion, at least, that are worth being passed over

Pieces = list[Array]  # of the keys, or the values, of a tile
Patches = list[tuple[slice, Array]]  # columns of a tile, and which of its pairs there are allowed


class _Views(NamedTuple):
    """A tile in the buffers, G heads stacked or folded."""

    whole: Array  # the memory of the scores, with what lies between their lines
    product: Array  # as the product writes it
    rows: Array  # (G, m, n), or (1, G * m, n)
    scores: Array  # (..., G, m, n)
    sums: "_Outputs"  # of the values, weighted
    more: "_Outputs"  # what a tile adds to them
    ones: Array  # (n, 1)


class _Outputs(NamedTuple):
    """Rows of weighted values in a buffer."""

    rows: Array  # (G, m, Dv), or (1, G * m, Dv)
    output: Array  # (..., G, m, Dv)


class InPlace(Arithmetic):
    """Primitives that allocate nothing of the size of a tile."""

    def __init__(self, problem: Problem, shape: TileShape) -> None:
        super().__init__(problem)
        dtype, rows = problem.dtype, shape.heads * shape.rows
        self._shape, self._lead = shape, (1,) * (len(problem.lead) - 1)
        self._scores = np.empty((rows + shape.heads * _APART) * shape.columns, dtype)
        self._sums, self._more = (np.empty(rows * problem.value.shape[-1], dtype) for _ in range(2))
        self._ones = np.ones((shape.columns, 1), dtype)  # made longer where a tile of few rows has more keys
        self._shifted = np.empty(0, dtype)  # keys, with ones for a shift that rides in the query
        self._views: dict[tuple[int, int], _Views] = {}
        self._at: _Views  # of the tile at hand
        self._keep: dict[object, Patches] = {}
        self._by_keys = _meets_lines_only(problem)
        self._survivors = Survivors(problem.dropout_rate)
        self._head_keys: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        self._safe = SAFE * self.base.log_2
        self._excess = _NEVER * float(np.finfo(dtype).max)
        self.range: Range  # of the heads at hand
        self.output: Array  # (..., G, m, Dv), where the rows at hand belong

    def add(self, x: Array, y: Array) -> Array:
        """Return x + y in x."""
        return np.add(x, y, out=x)

    def multiply(self, x: Array, y: Array | float) -> Array:
        """Return x * y in x."""
        return np.multiply(x, y, out=x)

    def divide(self, x: Array, y: Array) -> Array:
        """Return x / y where the rows at hand belong."""
        return np.divide(x, y, out=self.output)

    def in_base(self, scores: Array) -> Array:
        """Multiply in place; what a rule does not exclude stays finite."""
        if self.base.log_e == 1.0:
            return scores
        if len(self.problem.addends) > 0 and not (self.range.bounded and self.range.tame):
            if not self.range.clip:  # minus infinity may be among the scores
                return self.replace(scores, super().in_base(scores))
            np.clip(scores, -0.05 * self._excess, None, out=scores)
        return np.multiply(scores, self.base.log_e, out=scores)

    def tanh(self, x: Array) -> Array:
        """Return the hyperbolic tangent in x."""
        return np.tanh(x, out=x)

    def replace(self, old: Array, new: Array) -> Array:
        """Return `new` in the memory of `old`, which may be a part of a larger array."""
        if new is not old:
            np.copyto(old, new)
        return old

    def query_key(self, query: Array, key: Pieces, *, exclusive: bool) -> Array:
        """(G, D, m) and (G, n, D) -> (..., G, m, n), or (1, D, G * m) and (1, n, D) where rows are folded."""
        rows, keys = query.shape[-1], sum(piece.shape[-2] for piece in key)
        views = self._at = self._tile(rows // self._shape.heads if self._shape.folded else rows, keys)
        for piece, columns in _beside(key):
            self._product(query, piece, views.rows[..., columns], poisoned=exclusive and not self.range.keys)
        return views.scores

    def _product(self, query: Array, key: Array, scores: Array, *, poisoned: bool) -> None:
        """Write the products of some keys to their columns of the scores."""
        key, poison = quarantined_key(key) if poisoned else (key, None)
        if key.shape[-1] < query.shape[-2]:  # the last row of the query is a shift
            key = self._with_ones(key)
        if self._by_keys:
            np.matmul(key, query, out=scores.transpose(0, 2, 1))
        else:
            np.matmul(query.transpose(0, 2, 1), key.transpose(0, 2, 1), out=scores)
        if poison is not None:
            np.add(scores, poison[..., None, :], out=scores)

    def _with_ones(self, key: Array) -> Array:
        """(..., n, D) -> (..., n, D + 1), with a last column of ones."""
        shape = *key.shape[:-1], key.shape[-1] + 1
        if self._shifted.size < math.prod(shape):
            self._shifted = np.empty(math.prod(shape), key.dtype)
        target = self._shifted[: math.prod(shape)].reshape(shape)
        target[..., :-1], target[..., -1] = key, 1.0
        return target

    def _tile(self, m: int, n: int) -> _Views:
        known = self._views.get((m, n))
        if known is None:
            known = self._views[m, n] = self._viewed(m, n)
        return known

    def _viewed(self, m: int, n: int) -> _Views:
        """Lay a tile of m rows and n keys out in the buffers."""
        heads = self._shape.heads
        stacked = 1 if self._shape.folded else heads
        rows = heads // stacked * m
        lines, length = (n, rows) if self._by_keys else (rows, n)
        room = length + _APART if self._by_keys and length % CROWDED == 0 else length
        whole = self._scores[: stacked * lines * room].reshape(stacked, lines, room)
        product = whole[..., :length]
        by_rows = product.transpose(0, 2, 1) if self._by_keys else product
        lead = (*self._lead, heads) if self.problem.lead else ()
        sums, more = (self._outputs(buffer, m) for buffer in (self._sums, self._more))
        if len(self._ones) < n:
            self._ones = np.ones((n, 1), self._ones.dtype)
        return _Views(whole, product, by_rows, by_rows.reshape(*lead, m, n), sums, more, self._ones[:n])

    def _outputs(self, buffer: Array, m: int) -> _Outputs:
        heads, width = self._shape.heads, self.problem.value.shape[-1]
        rows = buffer[: heads * m * width].reshape((1, -1, width) if self._shape.folded else (heads, m, width))
        return _Outputs(rows, rows.reshape(*self._lead, *((heads,) if self.problem.lead else ()), m, width))

    def sums(self, m: int) -> Array:
        """Return where the values of m rows are summed, (..., G, m, Dv)."""
        return self._outputs(self._sums, m).output

    def plus_weights_value(self, output: Array | None, weights: Array, value: Pieces, *, exclusive: bool) -> Array:
        """(..., G, m, Dv) + (..., G, m, n) @ (G, n, Dv), in the output."""
        views = self._at
        weights = views.rows if weights is views.scores else weights.reshape(views.rows.shape)
        for piece, columns in _beside(value):
            product = views.sums if output is None else views.more
            if exclusive and not self.range.values:
                np.copyto(product.rows, quarantined_outputs(weights[..., columns], piece))
            else:
                np.matmul(weights[..., columns], piece, out=product.rows)
            output = product.output if output is None else self.add(output, product.output)
        return output

    def row_sum(self, weights: Array) -> Array:
        """(..., m, n) @ (n, 1) -> (..., m, 1): a product is twice as fast as a sum."""
        return np.matmul(weights, self._at.ones)

    def allowed(self, rules: tuple[Mask, ...], region: Region) -> Patches | None:
        """Return where all rules agree, in the layout of the scores, but for columns where they allow everything.

        The triangle of a causal mask is the same all along the diagonal: made once, kept.
        """
        if len(rules) == 0:
            return None
        if not self.problem.shift_invariant(rules):
            allowed = allowed_pairs(rules, region)
            return [(slice(region.sizes[-1]), _by_columns(allowed) if self._by_keys else allowed)]
        name = (*map(id, rules), region.starts[-2] - region.starts[-1], region.sizes[-2:])
        if name not in self._keep:
            allowed = np.asarray(allowed_pairs(rules, region), self._scores.dtype)
            allowed = np.broadcast_to(allowed, region.sizes[-2:])
            self._keep[name] = list(_patches(np.asarray(allowed, order="F" if self._by_keys else "C")))
        return self._keep[name]

    def exclude(self, scores: Array, allowed: Patches, mixed: Bounds) -> Array:
        """Keep what is not allowed out of the maximum."""
        if self.range.tame and self.range.bounded:
            return scores
        for columns, pairs in allowed:
            part = scores[..., slice(*mixed), columns]
            if self.range.tame:
                np.subtract(part, np.multiply(pairs == 0, self._excess, dtype=scores.dtype), out=part)
            else:
                np.copyto(part, -math.inf, where=pairs == 0)
        return scores

    def powers(self, scores: Array, shift: Array | None, allowed: Patches | None, mixed: Bounds) -> Array:
        """Raise in place, inside the range that is fast, and multiply by 0 what is not allowed."""
        if shift is not None:
            np.subtract(scores, shift, out=scores)
        whole = self._whole(scores)
        if self.range.clip:
            np.clip(whole, -self._safe, self._safe, out=whole)
        self.base.power(whole, out=whole)
        for columns, pairs in allowed or ():
            part = scores[..., slice(*mixed), columns]
            np.multiply(part, pairs, out=part)
        return scores

    def survivors(self, region: Region) -> Array:
        """Return which weights survive dropout, keys x queries behind a transposed view."""
        if self.problem.packing is not None:
            return super().survivors(region)
        *lead, m, n = region.sizes
        at = tuple(region.starts[:-2])
        if at not in self._head_keys:
            words = head_key(self.problem.seed, b=region.b, h=region.h)  # type: ignore[arg-type]
            pair = (np.broadcast_to(word, (*lead, 1, 1)).astype(np.uint32).ravel().tolist() for word in words)
            self._head_keys[at] = list(zip(*pair, strict=True))
        rows, columns = (int(index.flat[0]) for index in (region.q_idx, region.kv_idx))
        return self._survivors.of_tile(self._head_keys[at], (rows, columns), (m, n)).reshape(region.sizes)

    def thin(self, x: Array, keep: Array) -> Array:
        """Multiply x in place by 0 what does not survive."""
        return np.multiply(x, keep, out=x)

    def _whole(self, scores: Array) -> Array:
        """Return all the memory of the scores, which is faster to go through than its lines one by one."""
        views = self._at
        if scores is not views.scores or views.whole.shape == views.product.shape:
            return scores
        views.whole[..., views.product.shape[-1] :] = 0.0
        return views.whole


def _meets_lines_only(problem: Problem) -> bool:
    """Whether hardly anything of (Sq, Sk) is combined with the scores.

    Triangles are kept in any layout, and other rules that tell which tiles they leave whole meet few.
    """
    return (
        problem.score_mod is None
        and all(map(_is_line, problem.addends))
        and all(
            rule.shift_invariant
            or isinstance(rule, RowMask)
            or (_is_line(rule.array) if isinstance(rule, ArrayMask) else rule.tells)
            for rule in problem.rules
        )
    )


def _is_line(array: Array | Bias) -> bool:
    return not isinstance(array, Bias) and (array.ndim < 2 or 1 in array.shape[-2:])


def _by_columns(allowed: Array) -> Array:
    """Lay flags (..., m, n) out keys x queries."""
    return np.ascontiguousarray(allowed.mT).mT if allowed.ndim > 1 else allowed


def _beside(pieces: Pieces) -> Iterator[tuple[Array, slice]]:
    """Yield each piece with the columns of the tile that are its own."""
    start = 0
    for piece in pieces:
        yield piece, slice(start, start + piece.shape[-2])
        start += piece.shape[-2]


def _patches(allowed: Array) -> Iterator[tuple[slice, Array]]:
    """Yield the columns (m, n) in which something is excluded, those that are close together as one patch."""
    columns = np.flatnonzero(np.min(allowed, axis=0) == 0)
    for run in np.split(columns, np.flatnonzero(np.diff(columns) > _WHOLE_RUN) + 1):
        if len(run):
            patch = slice(int(run[0]), int(run[-1]) + 1)
            yield patch, allowed[..., patch]
