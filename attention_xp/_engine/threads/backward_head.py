"""Some query heads on their way backward through NumPy's tiles: their rows, keys and values, with what rides in products."""

import math
from typing import NamedTuple

import numpy as np

from attention_xp._engine.problem import Problem
from attention_xp._engine.threads.heads import Ceiling, Range, is_finite
from attention_xp._engine.threads.in_place import SAFE
from attention_xp._engine.threads.place import Place
from attention_xp._engine.tile.backward_step import Known, Rows, shift_of
from attention_xp._engine.tile.base import base_of
from attention_xp._engine.tile.products import clean
from attention_xp._engine.tile.scores import survival_factor
from attention_xp._engine.tile.step import scale_in_base
from attention_xp._typing import Array

__all__ = ["HeadsOf", "Stretch"]


class Stretch(NamedTuple):
    """Some keys and values of the heads, and what is known of them."""

    keys: Array  # (G, n, D + 1), or without the ones for a shift
    values: Array  # (G, n, Dv + 1), likewise
    range: Range
    is_finite: bool  # and all rows


class HeadsOf:
    """The rows, keys and values of G query heads, with what rides in the products."""

    def __init__(
        self, problem: Problem, known: Known, place: Place, buffers: list[Array], *, rides: tuple[bool, bool]
    ) -> None:
        self.problem, self._rides = problem, rides
        at, width = place.at, problem.query.shape[-1]
        self._key, self._value = (_flat(place.shared(problem, a)) for a in (problem.key, problem.value))
        queries, gradients, self._keys, self._values = (buffer[: place.heads] for buffer in buffers)
        known = known.at(at)
        shift, delta = (_flat(a) for a in (shift_of(problem, known.lse), _delta(problem, known)[..., None]))
        _join(queries, _flat(problem.query[at]), -shift, factor=scale_in_base(problem))
        _join(gradients, _flat(known.gradient), -delta, factor=survival_factor(problem))
        real = queries[..., :width]
        self._norm = math.sqrt(float(np.max(np.vecdot(real, real))))
        self._shifts = float(np.min(shift)), float(np.max(shift))
        self._has_rules = len(problem.rules) > 0  # else nothing is excluded, and nothing can leak
        has_finite_rows = not self._has_rules or math.isfinite(self._norm)
        self._is_finite = has_finite_rows and (
            not self._has_rules or (is_finite(gradients) and (rides[1] or is_finite(delta)))
        )
        kept = real if has_finite_rows else clean(real)
        self._rows = Rows(queries, gradients, None if rides[0] else shift, None if rides[1] else delta, kept)

    def rows(self, row: int, stop: int) -> Rows:
        """Return some rows as the step wants them."""
        return Rows(*(None if a is None else a[:, row:stop] for a in self._rows))

    def stretch(self, first: int, last: int, ceiling: Ceiling) -> Stretch:
        """Return some keys and values."""
        key, value = self._key[:, first:last], self._value[:, first:last]
        keys, values = (a[: len(key), : last - first] for a in (self._keys, self._values))
        _join(keys, key, 1.0)
        _join(values, value, 1.0)
        real = keys[..., : key.shape[-1]]
        norm = math.sqrt(float(np.max(np.vecdot(real, real))))
        allows = self._allows(norm, ceiling, values=not self._has_rules or is_finite(values))
        return Stretch(keys, values, allows, allows.keys and allows.values and self._is_finite)

    def _allows(self, norm: float, ceiling: Ceiling, *, values: bool) -> Range:
        """Return what the size of scores allows: they ride with their shift, so that none can be large."""
        problem, base = self.problem, base_of(self.problem.xp)
        limit = ceiling(self._norm * norm * (1.0 if self._rides[0] else base.log_e))
        lowest, highest = self._shifts
        safe = SAFE * base.log_2
        is_far = limit + highest > safe or (self._has_rules and limit - lowest > safe)
        clip = math.isfinite(limit) and (is_far or len(problem.addends) > 0)
        is_tame = limit < 0.04 * float(np.finfo(problem.dtype).max)
        return Range(bounded=True, clip=clip, tame=is_tame, keys=math.isfinite(norm), values=values)


def _flat(array: Array) -> Array:
    """(..., G, m, W) -> (G, m, W), where all axes before are 1; heads there may be none."""
    return array.reshape(-1, *array.shape[-2:])


def _join(out: Array, array: Array, rider: Array | float, *, factor: float = 1.0) -> None:
    """Copy an array times a factor, and behind it, where there is room, the column that is to ride in a product."""
    width = array.shape[-1]
    if factor == 1.0:
        out[..., :width] = array
    else:
        np.multiply(array, factor, out=out[..., :width], dtype=out.dtype)
    out[..., width:] = rider


def _delta(problem: Problem, known: Known) -> Array:
    """Return the same as `Known.delta`, without an array of all products."""
    sums = np.vecdot(known.output, known.gradient)
    return sums if known.grad_lse is None else sums - known.grad_lse.astype(problem.dtype, copy=False)
