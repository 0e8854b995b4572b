"""The rows of some query heads, and their keys, as the backward step on NumPy wants them.

The arrays have the axes (K, G, ...): K key/value heads, and the G query heads of each. Where there is no dropout, the
gradient has ``-delta`` as a further column and the values a column of ones, so that one product gives
``gradient @ value^T - delta``.
"""

import math

import numpy as np

from attention_xp._engine.plan.plan import Bounds, Tile
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.backward_step import Rows, shift_of
from attention_xp._engine.tile.base import base_of
from attention_xp._engine.tile.gradients import Known
from attention_xp._engine.tile.products import clean
from attention_xp._engine.tile.scores import product_factor, survival_factor
from attention_xp._engine.tile.step import scale_in_base
from attention_xp._engine.walkers.numpy.compiled.constants import LEAST
from attention_xp._engine.walkers.numpy.gather import joined
from attention_xp._engine.walkers.numpy.heads import Magnitudes, ceiling, is_finite, longest, longest_of_sample
from attention_xp._engine.walkers.numpy.in_place import SAFE
from attention_xp._engine.walkers.numpy.lines import length_beside, turned
from attention_xp._engine.walkers.numpy.place import Place, for_heads
from attention_xp._typing import Array

__all__ = ["Common", "KeysOf", "Run", "delta_of"]

_CALM = -20.0, 40.0  # powers of two: for sums of weights between them, neither weights nor gradients lose digits


def _more_columns(problem: Problem) -> int:
    """Return the number of further columns in gradients and values: one for ``-delta``, unless there is dropout.

    Dropout applies to the product before ``delta`` is subtracted.
    """
    return int(problem.seed is None)


class Common:
    """What depends on the rows of all heads, computed once per call: many small operations would take longer."""

    def __init__(self, problem: Problem, known: Known) -> None:
        self.problem, self.known = problem, known
        self.exclusive = len(problem.rules) > 0
        self._ceiling, self._base = ceiling(problem), base_of(problem.xp)
        shift = shift_of(problem, known.lse)
        self._bounds = float(np.min(shift, initial=0.0)), float(np.max(shift, initial=0.0))
        lowest, highest = (bound / self._base.log_2 for bound in self._bounds)
        is_calm = _CALM[0] < lowest and highest < _CALM[1]
        # Without a shift the powers of the scores are then far from the largest number. The weights lack the factor
        # exp(-lse) of each row, which is multiplied into gradient and delta instead.
        self.shift: Array | None = None if is_calm else shift
        self.share: Array | float = self._base.power(-shift) if is_calm else 1.0
        # Without rules no excluded pair can make NaN of others, so that bounds from a sample suffice.
        self._likely = None if self.exclusive else self._magnitudes(*self._sample(), has_finite_values=True)

    def _sample(self) -> tuple[float, float]:
        """Return the largest lengths of queries, with their factor, and of keys in a sample."""
        query, key = longest_of_sample(self.problem)
        return abs(scale_in_base(self.problem)) * query, key

    def magnitudes(self, query: float, keys: "KeysOf") -> Magnitudes:
        """Return what the size of scores allows, from the largest lengths of queries, with their factor, and keys."""
        return self._likely or self._magnitudes(query, keys.norm, has_finite_values=keys.has_finite_values)

    def _magnitudes(self, query: float, key: float, *, has_finite_values: bool) -> Magnitudes:
        """Scores of allowed pairs are small, or shifted by the log-sum-exp, so that their powers are bounded."""
        problem = self.problem
        limit = self._ceiling(query * key * (1.0 if problem.is_product else self._base.log_e * product_factor(problem)))
        lowest, highest = (0.0, 0.0) if self.shift is None else self._bounds
        safe = SAFE * self._base.log_2
        is_far = limit + highest > LEAST * self._base.log_2 or (self.exclusive and limit - lowest > safe)
        clip = math.isfinite(limit) and (is_far or len(problem.addends) > 0)
        is_tame = limit < 0.04 * float(np.finfo(problem.dtype).max)
        return Magnitudes(bounded=True, clip=clip, tame=is_tame, keys=math.isfinite(key), values=has_finite_values)


class KeysOf:
    """The keys and values of some query heads."""

    def __init__(self, problem: Problem, place: Place) -> None:
        self.heads = max(place.heads // problem.group, 1)
        pair = problem.key, problem.value
        key, value = (place.by_head(problem, a).astype(problem.dtype, copy=False) for a in pair)
        self._pairs = [for_heads(a, self.heads) for a in (key, value)]
        self._ones = 0, _more_columns(problem)
        exclusive = len(problem.rules) > 0
        self.norm = longest(problem, key) if exclusive else math.nan
        self.has_finite_values = not exclusive or is_finite(value)

    @staticmethod
    def lengths(problem: Problem, heads: int, n: int) -> list[int]:
        """Return how many numbers the buffers hold, for tiles of so many keys."""
        pairs = (problem.key, 0), (problem.value, _more_columns(problem))
        return [heads * n * (a.shape[-1] + ones) for a, ones in pairs]

    def of_tile(self, tile: Tile, buffers: list[Array]) -> list[Array]:
        """Return the keys and the values of a tile, (K, 1, n, W), the latter with the column of ones."""
        return [
            joined([a[:, slice(*stretch)] for stretch in tile.columns], ones, buffer)[:, None]
            for a, ones, buffer in zip(self._pairs, self._ones, buffers, strict=True)
        ]


class Run:
    """Adjacent rows, prepared together."""

    @staticmethod
    def lengths(problem: Problem, heads: int, m: int) -> list[int]:
        """Return how many numbers the buffers hold, for so many rows: in row order, and in column order."""
        widths = problem.query.shape[-1], problem.value.shape[-1] + _more_columns(problem)
        return [*(heads * m * width for width in widths), *(length_beside(heads, m, width) for width in widths)]

    def __init__(
        self, common: Common, place: Place, rows: Bounds, keys: KeysOf, buffers: list[Array], *, by_keys: bool
    ) -> None:
        problem, at = common.problem, (*place.at, slice(*rows))
        known, shape = common.known.at(*at), (keys.heads, place.heads // keys.heads, rows[1] - rows[0])
        query = _scaled(shape, problem.query[at], scale_in_base(problem), None, buffers[0])
        delta, factor = delta_of(problem, known)[..., None], survival_factor(problem)
        share = common.share if isinstance(common.share, float) else common.share[at]
        delta = delta * share
        column = -delta if _more_columns(problem) else None
        gradient = _scaled(shape, known.gradient, share * factor, column, buffers[1])
        norm = longest(problem, query) if common.exclusive else math.nan
        self.is_finite = not common.exclusive or (
            math.isfinite(norm)
            and is_finite(gradient)
            and is_finite(delta)
            and math.isfinite(keys.norm)
            and keys.has_finite_values
        )
        self.magnitudes = common.magnitudes(norm, keys)
        kept = clean(query) if common.exclusive and not math.isfinite(norm) else query
        shift = None if common.shift is None else common.shift[at]
        self._first = rows[0]
        factors = (turned(query, buffers[2]), turned(gradient, buffers[3])) if by_keys else (query, gradient)
        self._rows = Rows(*factors, shift, delta if column is None else None, kept, gradient)

    def rows(self, row: int, stop: int) -> Rows:
        """Return some rows as the step wants them."""
        part = slice(row - self._first, stop - self._first)
        return Rows(*(None if a is None else a[..., part, :] for a in self._rows))


def _scaled(
    shape: tuple[int, int, int], array: Array, factor: float | Array, column: Array | None, buffer: Array
) -> Array:
    """(..., W) -> (K, G, r, W) or (K, G, r, W + 1): an array times a factor, and behind it the further column."""
    width = array.shape[-1]
    room = width if column is None else width + 1
    out = buffer[: math.prod(shape) * room].reshape(*shape, room)
    if not isinstance(factor, float):
        factor = factor.reshape(*shape, 1)
    np.multiply(array.reshape(*shape, width), factor, out=out[..., :width], dtype=out.dtype)
    if column is not None:
        out[..., width:] = column.reshape(*shape, 1)
    return out


def delta_of(problem: Problem, known: Known) -> Array:
    """Return the same as `Known.delta`, without an array of all products."""
    sums = np.vecdot(known.output, known.gradient)
    return sums if known.grad_lse is None else sums - known.grad_lse.astype(problem.dtype, copy=False)
