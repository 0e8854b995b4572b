"""One query head on its way backward through NumPy's tiles: its rows, keys and values, with what rides in products."""

import math
from typing import NamedTuple

import numpy as np

from attention_xp._engine.backward_step import Known, Rows, shift_of
from attention_xp._engine.base import base_of
from attention_xp._engine.heads import Ceiling, Range, is_finite
from attention_xp._engine.in_place import SAFE
from attention_xp._engine.plan import Bounds
from attention_xp._engine.problem import Problem
from attention_xp._engine.products import clean
from attention_xp._engine.scores import survival_factor
from attention_xp._engine.step import scale_in_base
from attention_xp._typing import Array

__all__ = ["HeadOf", "KnownKeys", "Places", "TileRows"]


class KnownKeys(NamedTuple):
    """What is known of a stretch of keys and values."""

    norm: float  # of the longest key; not finite where a key is not
    finite: bool  # the values


class Places(NamedTuple):
    """Where a query head is found: its batch item and number, and the leading indices of its rows and keys."""

    b: int
    h: int
    at: tuple[int, ...]
    kv_at: tuple[int, ...]


class TileRows(NamedTuple):
    """Some rows of a head, and what is known of them."""

    rows: Rows
    norm: float  # of the longest query
    shifts: tuple[float, float]  # the smallest and the largest


class HeadOf:
    """The rows, keys and values of one query head, with what rides in the products."""

    def __init__(
        self, problem: Problem, known: Known, places: Places, buffers: list[Array], *, rides: tuple[bool, bool]
    ) -> None:
        self.problem, self.at, self.kv_at = problem, places.at, places.kv_at
        self.b, self.h = places.b, places.h
        self._rides = rides
        self._key, self._value = (a[_at(a, self.kv_at)] for a in (problem.key, problem.value))
        queries, gradients, self._keys, self._values = buffers
        known = known.at(self.at)
        self._shift, self._delta = shift_of(problem, known.lse), _delta(problem, known)[:, None]
        self._query = _joined(queries, problem.query[self.at], -self._shift, factor=scale_in_base(problem))
        real = self._query[:, : problem.query.shape[-1]]
        self._norms = np.sqrt(np.vecdot(real, real)) * (1.0 if self._rides[0] else base_of(problem.xp).log_e)
        self._gradient = _joined(gradients, known.gradient, -self._delta, factor=survival_factor(problem))
        self._has_rules = len(problem.rules) > 0  # else nothing is excluded, and nothing can leak
        has_finite_rows = not self._has_rules or is_finite(self._norms)
        self._kept = real if has_finite_rows else clean(real)
        self.is_finite = not self._has_rules or (
            has_finite_rows and is_finite(self._gradient) and is_finite(self._delta)
        )
        self._known: dict[Bounds, TileRows] = {}

    def rows(self, row: int, stop: int) -> TileRows:
        """Return some rows as the step wants them."""
        if (row, stop) not in self._known:
            part, ones = slice(row, stop), (1,) * len(self.at)
            arrays = (
                self._query,
                self._gradient,
                None if self._rides[0] else self._shift,
                None if self._rides[1] else self._delta,
                self._kept,
            )
            rows = Rows(*(None if a is None else a[part].reshape(*ones, stop - row, -1) for a in arrays))
            shift = self._shift[part]
            shifts = float(np.min(shift)), float(np.max(shift))
            self._known[row, stop] = TileRows(rows, float(np.max(self._norms[part])), shifts)
        return self._known[row, stop]

    def allows(self, rows: TileRows, keys: KnownKeys, ceiling: Ceiling) -> Range:
        """Return what the size of scores allows: they ride with their shift, so that none can be large."""
        problem = self.problem
        limit = ceiling(rows.norm * keys.norm)
        lowest, highest = rows.shifts
        safe = SAFE * base_of(problem.xp).log_2
        is_far = limit + highest > safe or (len(problem.rules) > 0 and limit - lowest > safe)
        clip = math.isfinite(limit) and (is_far or len(problem.addends) > 0)
        is_tame = limit < 0.04 * float(np.finfo(problem.dtype).max)
        return Range(bounded=True, clip=clip, tame=is_tame, keys=math.isfinite(keys.norm), values=keys.finite)

    def keys(self, first: int, last: int) -> tuple[Array, Array, KnownKeys]:
        """Return a stretch of keys and values, and what is known of them."""
        key, value = self._key[first:last], self._value[first:last]
        keys = _joined(self._keys[: last - first], key, 1.0)
        values = _joined(self._values[: last - first], value, 1.0)
        real = keys[:, : key.shape[1]]
        norm = math.sqrt(float(np.max(np.vecdot(real, real))))
        return keys, values, KnownKeys(norm, not self._has_rules or is_finite(values))


def _joined(out: Array, array: Array, rider: Array | float, *, factor: float = 1.0) -> Array:
    """Copy an array times a factor, and behind it, where there is room, the column that is to ride in a product."""
    width = array.shape[1]
    if factor == 1.0:
        out[:, :width] = array
    else:
        np.multiply(array, factor, out=out[:, :width], dtype=out.dtype)
    out[:, width:] = rider
    return out


def _delta(problem: Problem, known: Known) -> Array:
    """Return the same as `Known.delta`, without an array of all products."""
    sums = np.vecdot(known.output, known.gradient)
    return sums if known.grad_lse is None else sums - known.grad_lse.astype(problem.dtype, copy=False)


def _at(array: Array, index: tuple[int, ...]) -> tuple[int, ...]:
    """Return a leading index of an array whose leading axes may be 1."""
    return tuple(0 if n == 1 else i for i, n in zip(index, array.shape[:-2], strict=True))
