"""NumPy's primitives for the tile step forward, in the buffers of one thread."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from attention_xp._engine.plan.plan import side_by_side
from attention_xp._engine.plan.tile_sizes import CROWDED, TileShape
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.products import quarantined_key, quarantined_outputs
from attention_xp._engine.walkers.numpy.compiled.passes import Tile
from attention_xp._engine.walkers.numpy.few_rows import is_in_blocks, scores_into, weighted
from attention_xp._engine.walkers.numpy.gather import joined
from attention_xp._engine.walkers.numpy.in_place import InPlace, by_key_head
from attention_xp._engine.walkers.numpy.lines import APART, apart, windows
from attention_xp._engine.walkers.numpy.products import multiply_into
from attention_xp._typing import Array

__all__ = ["InPlaceForward"]

Pieces = list[Array]  # of the keys, or the values, of a tile


class _Views(NamedTuple):
    """Views of the buffers for a tile of G heads, stacked or folded; for a band of C steps, (G, C, m, n)."""

    whole: Array  # all the memory of the scores, including gaps between lines
    product: Array  # the scores as the product writes them
    by_keys: bool  # whether these lie as keys x queries
    tile: Tile  # the same memory for compiled passes
    rows: Array  # (G, m, n), or (1, G * m, n)
    scores: Array  # (..., G, m, n)
    sums: "_Outputs"  # sums of weighted values
    more: "_Outputs"  # what one tile adds to them
    ones: Array  # (n, 1)


class _Outputs(NamedTuple):
    """Rows of weighted values in a buffer."""

    rows: Array  # (G, m, Dv), or (1, G * m, Dv)
    output: Array  # (..., G, m, Dv)


class InPlaceForward(InPlace):
    """Primitives that allocate no arrays of the size of a tile."""

    @staticmethod
    def lengths(problem: Problem, shape: TileShape) -> tuple[int, int, int]:
        """Return how many numbers the buffers hold: of scores, of sums, and of what a tile adds to them."""
        rows = shape.heads * shape.rows
        sums = rows * problem.value.shape[-1]
        return shape.scores + shape.heads * APART * shape.columns, sums, sums

    def __init__(self, problem: Problem, shape: TileShape, buffers: Sequence[Array]) -> None:
        super().__init__(problem)
        dtype = problem.dtype
        self._shape = shape
        rows = shape.heads * shape.rows if shape.folded else problem.query.shape[-2]
        self._are_few = is_in_blocks(rows)
        self.by_keys = self.by_keys and not self._are_few  # keys lie as they are given, and are cut into blocks
        self._scores, self._sums, self._more = buffers
        self._ones = np.ones((shape.columns, 1), dtype)  # made longer where a tile of few rows has more keys
        self._shifted = np.empty(0, dtype)  # keys with a column of ones, where the query has a column with the shift
        self._views: dict[tuple[tuple[int, ...], int, int, bool], _Views] = {}
        self._at: _Views  # of the tile at hand
        self.output: Array  # (..., G, m, Dv), where the rows at hand belong

    @property
    def lies_by_keys(self) -> bool:
        return self._at.by_keys

    def divide(self, x: Array, y: Array) -> Array:
        """Return x / y where the rows at hand belong."""
        return np.divide(x, y, out=self.output)

    def query_key(self, query: Array, key: Pieces, *, exclusive: bool) -> Array:
        """(G, m, D) and (K, n, D) -> (..., G, m, n), or (1, G * m, D) and (1, n, D) where rows are folded.

        For a band, (G, C, m, D) -> (..., G, C, m, n); the first piece of the keys is then that of all steps along the
        diagonal, longer by (C - 1) * m than the keys of a single step, and all steps attend the other pieces.
        """
        steps, rows = query.shape[1:-2], query.shape[-2]  # (), or (C,)
        keys = sum(piece.shape[-2] for piece in key) - sum(rows * (count - 1) for count in steps)
        views = self._at = self._tile(steps, rows // self._shape.heads if self._shape.folded else rows, keys)
        poisoned = exclusive and not self.magnitudes.keys
        for piece, columns in self._beside(key):
            met, poison = quarantined_key(piece) if poisoned else (piece, None)
            if met.shape[-1] < query.shape[-1]:  # the last column of the query is the shift
                met = self._with_ones(met)
            rows, scores = (by_key_head(x, met, x.ndim - 1) for x in (query, views.rows[..., columns]))
            if views.by_keys:
                multiply_into(scores.mT, self._met(met, scores), rows.mT)
            elif self._are_few:
                scores_into(scores, rows, self._met(met, scores))
            else:
                np.matmul(rows, self._met(met, scores).mT, out=scores)
            if poison is not None:
                np.add(scores, self._met(poison[..., None], scores).mT, out=scores)
        return views.scores

    def _met(self, piece: Array, scores: Array) -> Array:
        """Return keys or values (K, S, W) with the axes of scores (..., m, n), for their product.

        They are (K, 1, n, W); in a band (K, 1, C, n, W), the keys of each step, where S is more than n, and (K, 1, 1, n, W)
        where all steps have the same keys.
        """
        if self._at.rows.ndim > 3:
            m, n = scores.shape[-2:]
            piece = piece[:, None] if piece.shape[1] == n else windows(piece, m, n)
        return piece[:, None]

    def _with_ones(self, key: Array) -> Array:
        """(..., n, D) -> (..., n, D + 1), with a last column of ones."""
        shape = *key.shape[:-1], key.shape[-1] + 1
        if self._shifted.size < math.prod(shape):
            self._shifted = np.empty(math.prod(shape), key.dtype)
        return joined([key], 1, self._shifted)

    def _tile(self, steps: tuple[int, ...], m: int, n: int) -> _Views:
        # Where maxima are needed, the few rows of a step are faster as queries x keys.
        by_keys = self.by_keys and (len(steps) == 0 or self.magnitudes.bounded)
        name = steps, m, n, by_keys
        known = self._views.get(name)
        if known is None:
            known = self._views[name] = self._viewed(*name)
        return known

    def _viewed(self, steps: tuple[int, ...], m: int, n: int, by_keys: bool) -> _Views:
        """Return views of the buffers for a tile of m rows, or of so many steps of m rows, and n keys."""
        heads = self._shape.heads
        stacked = (1,) if self._shape.folded else (heads, *steps)
        rows = heads * m if self._shape.folded else m
        lines, length = (n, rows) if by_keys else (rows, n)
        room = apart(length, CROWDED) if by_keys else length
        whole = self._scores[: math.prod(stacked) * lines * room].reshape(*stacked, lines, room)
        product = whole[..., :length]
        by_rows = product.mT if by_keys else product
        lead = (*self._lead, heads) if self.problem.lead else ()
        scores = by_rows.reshape(*lead, *steps, m, n)
        sums, more = (self._outputs(buffer, *steps, m) for buffer in (self._sums, self._more))
        if len(self._ones) < n:
            self._ones = np.ones((n, 1), self._ones.dtype)
        tile = Tile(whole.reshape(-1, lines, room), length, by_keys)
        return _Views(whole, product, by_keys, tile, by_rows, scores, sums, more, self._ones[:n])

    def _outputs(self, buffer: Array, *rows_of_a_head: int) -> _Outputs:
        heads, width = self._shape.heads, self.problem.value.shape[-1]
        shape = *rows_of_a_head, width
        rows = buffer[: heads * math.prod(shape)].reshape((1, -1, width) if self._shape.folded else (heads, *shape))
        return _Outputs(rows, rows.reshape(*self._lead, *((heads,) if self.problem.lead else ()), *shape))

    def sums(self, m: int) -> Array:
        """Return the buffer in which the weighted values of m rows are summed, (..., G, m, Dv)."""
        return self._outputs(self._sums, m).output

    def plus_weights_value(
        self, output: Array | None, weights: Array, value: Callable[[], Pieces], *, exclusive: bool
    ) -> Array:
        """(..., G, m, Dv) + (..., G, m, n) @ (K, n, Dv), in the output; values are fetched when they are needed."""
        views = self._at
        weights = views.rows if weights is views.scores else weights.reshape(views.rows.shape)
        for piece, columns in self._beside(value()):
            product = views.sums if output is None else views.more
            some, rows = (by_key_head(x, piece, x.ndim - 1) for x in (weights[..., columns], product.rows))
            if exclusive and not self.magnitudes.values:
                np.copyto(rows, quarantined_outputs(some, self._met(piece, some), self.problem.xp))
            elif self._are_few:
                np.copyto(rows, weighted(some, self._met(piece, some)))
            else:
                multiply_into(rows, some, self._met(piece, some))
            output = product.output if output is None else self.add(output, product.output)
        return output

    def _beside(self, pieces: Pieces) -> Iterator[tuple[Array, slice]]:
        """Return each piece with its columns of the tile; the keys along a band come first."""
        if len(pieces) == 1:
            return iter([(pieces[0], slice(None))])
        sizes = [piece.shape[-2] for piece in pieces]
        sizes[0] = self._at.rows.shape[-1] - sum(sizes[1:])
        return zip(pieces, side_by_side(sizes), strict=True)

    def row_sum(self, weights: Array) -> Array:
        """(..., m, n) @ (n, 1) -> (..., m, 1): a product is twice as fast as a sum."""
        if self._sums_of_rows is not None:
            return self._sums_of_rows
        return np.matmul(weights, self._at.ones)

    def tile(self, scores: Array) -> Tile:  # noqa: ARG002  # these are the scores of the tile at hand
        """Return the memory of scores, and the gaps between its lines."""
        return self._at.tile

    def _whole(self, scores: Array) -> Array:
        """Return all the memory of the scores, gaps included: one operation on it is faster than one on strided lines."""
        views = self._at
        if scores is not views.scores or views.whole.shape == views.product.shape:
            return scores
        views.whole[..., views.product.shape[-1] :] = 0.0
        return views.whole
