"""Rows of some query heads on their way backward through NumPy's tiles, and the keys that they meet.

The arrays have the axes (K, G, ...): K key/value heads, and the G query heads of each.
"""

import math
from typing import NamedTuple, Self

import numpy as np

from attention_xp._engine.planning.plan import Bounds, Tile
from attention_xp._engine.problem import Problem
from attention_xp._engine.threads.gather import with_ones
from attention_xp._engine.threads.heads import Ceiling, Range, is_finite
from attention_xp._engine.threads.in_place import SAFE
from attention_xp._engine.threads.place import Place
from attention_xp._engine.tile.backward_step import Known, Rows, shift_of
from attention_xp._engine.tile.base import base_of
from attention_xp._engine.tile.products import clean
from attention_xp._engine.tile.scores import survival_factor
from attention_xp._engine.tile.step import scale_in_base
from attention_xp._typing import Array

__all__ = ["KeysOf", "Rides", "Run"]


class Rides(NamedTuple):
    """How many columns ride in the products: numbers that meet ones, and spare a pass over the tile."""

    shift: int  # behind the query
    delta: int  # behind the gradient

    @classmethod
    def of(cls, problem: Problem) -> Self:
        """Return what can ride, because nothing is done to the product before."""
        return cls(int(problem.is_product), int(problem.seed is None))


class KeysOf:
    """The keys and values of some query heads."""

    def __init__(self, problem: Problem, place: Place) -> None:
        self.heads = max(place.heads // problem.group, 1)
        pairs = [place.shared(problem, a).reshape(-1, *a.shape[-2:]) for a in (problem.key, problem.value)]
        key, value = (a.astype(problem.dtype, copy=False) for a in pairs)
        self._pairs = [np.broadcast_to(a, (self.heads, *a.shape[-2:])) for a in pairs]  # batch items may share them
        self.norm = math.sqrt(float(np.max(np.vecdot(key, key))))
        self.has_finite_values = is_finite(value)

    def of_tile(self, tile: Tile, rides: Rides, buffers: list[Array]) -> list[Array]:
        """Return the keys and the values of a tile, (K, 1, n, W), with ones for what rides."""
        return [
            with_ones([a[:, slice(*stretch)] for stretch in tile.columns], ones, buffer)[:, None]
            for a, ones, buffer in zip(self._pairs, rides, buffers, strict=True)
        ]


class Run:
    """Rows that follow each other, with what rides in their products."""

    def __init__(
        self, problem: Problem, known: Known, place: Place, rows: Bounds, keys: KeysOf, buffers: list[Array]
    ) -> None:
        self._problem, self._first, self._keys = problem, rows[0], keys
        at, rides = (*place.at, slice(*rows)), Rides.of(problem)
        known, query = known.at(at), problem.query[at]
        shape = keys.heads, place.heads // keys.heads, rows[1] - rows[0]
        shift, delta = shift_of(problem, known.lse), _delta(problem, known)[..., None]
        queries = _joined(shape, query, -shift, rides.shift, buffers[0], scale_in_base(problem))
        gradients = _joined(shape, known.gradient, -delta, rides.delta, buffers[1], survival_factor(problem))
        real = queries[..., : query.shape[-1]]
        self._norm = math.sqrt(float(np.max(np.vecdot(real, real))))
        self._shifts = float(np.min(shift)), float(np.max(shift))
        self._is_finite = math.isfinite(self._norm) and is_finite(gradients) and is_finite(delta)
        # Without rules nothing is excluded, and nothing can leak.
        kept = real if len(problem.rules) == 0 or math.isfinite(self._norm) else clean(real)
        self._rows = Rows(queries, gradients, None if rides.shift else shift, None if rides.delta else delta, kept)

    def rows(self, row: int, stop: int) -> Rows:
        """Return some rows as the step wants them."""
        part = slice(row - self._first, stop - self._first)
        return Rows(*(None if a is None else a[..., part, :] for a in self._rows))

    def range(self, ceiling: Ceiling) -> Range:
        """Return what the size of scores allows: they ride with their shift, so that none can be large."""
        problem, keys, base = self._problem, self._keys, base_of(self._problem.xp)
        limit = ceiling(self._norm * keys.norm * (1.0 if problem.is_product else base.log_e))
        lowest, highest = self._shifts
        safe = SAFE * base.log_2
        is_far = limit + highest > safe or (len(problem.rules) > 0 and limit - lowest > safe)
        clip = math.isfinite(limit) and (is_far or len(problem.addends) > 0)
        is_tame = limit < 0.04 * float(np.finfo(problem.dtype).max)
        return Range(
            bounded=True, clip=clip, tame=is_tame, keys=math.isfinite(keys.norm), values=keys.has_finite_values
        )

    @property
    def is_finite(self) -> bool:
        """Whether all rows, keys and values are, so that an exclusion by a weight of 0 is enough."""
        return self._is_finite and math.isfinite(self._keys.norm) and self._keys.has_finite_values


def _joined(shape: tuple[int, int, int], array: Array, rider: Array, rides: int, buffer: Array, factor: float) -> Array:
    """(..., W) -> (K, G, r, W + rides): an array times a factor, and behind it the column that is to ride."""
    width = array.shape[-1]
    out = buffer[: math.prod(shape) * (width + rides)].reshape(*shape, -1)
    np.multiply(array.reshape(*shape, width), factor, out=out[..., :width], dtype=out.dtype)
    out[..., width:] = rider.reshape(*shape, 1)
    return out


def _delta(problem: Problem, known: Known) -> Array:
    """Return the same as `Known.delta`, without an array of all products."""
    sums = np.vecdot(known.output, known.gradient)
    return sums if known.grad_lse is None else sums - known.grad_lse.astype(problem.dtype, copy=False)
