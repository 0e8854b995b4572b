"""NumPy's primitives for the tile step, in the buffers of one thread.

The answers are those of `Arithmetic`. Scores that are the product alone, or meet arrays that vary along
one axis, are laid out keys x queries behind a transposed view: neither product needs a transposed copy,
and every operation along the keys runs down the first axis, which NumPy vectorises well. Where they meet
arrays of (Sq, Sk), whose transposition would cost more than it brings, they lie as those do.
"""

import math
from typing import NamedTuple

import numpy as np

from attention_xp._engine.arithmetic import LOG2_E, Arithmetic, allowed_pairs
from attention_xp._engine.plan import Bounds
from attention_xp._engine.problem import Problem
from attention_xp._engine.products import quarantined_key, quarantined_outputs
from attention_xp._engine.region import Region
from attention_xp._engine.rules import ArrayMask, RowMask
from attention_xp._typing import Array
from attention_xp.masks import LengthMask, Mask, PrefixMask

__all__ = ["Head", "InPlace"]

_SMALL = 40.0  # powers of two up to here, times values, are summed in float32 without a shift
_NEVER = 0.9  # of the largest number: taken off a score, it is no maximum and makes no NaN
_SAFE = 126.0  # float32 exp2 is fast for -126 ... 126, and up to two hundred times slower outside


class Head(NamedTuple):
    """What is known of the keys and values of a head."""

    norm: float  # of the longest key; not finite where a key is not
    finite: bool  # the values


class InPlace(Arithmetic):
    """Primitives that allocate nothing of the size of a tile."""

    def __init__(self, problem: Problem, rows: int, columns: int) -> None:
        super().__init__(problem)
        dtype = problem.dtype
        self._scores = np.empty(rows * columns, dtype)
        self._output = np.empty(rows * problem.value.shape[-1], dtype)
        self._ones = np.ones((columns, 1), dtype)
        self._keep: dict[object, Array] = {}
        self.head = Head(0.0, finite=True)
        self._by_keys = _meets_lines_only(problem)

    def prepare(self, head: "Head", limit: float) -> None:
        """Get ready for a block of rows of a head whose scores cannot exceed a limit."""
        self.head = head
        self.excess = _NEVER * float(np.finfo(self.problem.dtype).max)
        # Where a product may be near that, or NaN, only an assignment takes it out.
        self.is_tame = limit < 0.05 * self.excess
        # Small scores need no shift, and no exclusion before the powers.
        self.bounded = limit < _SMALL
        # Beyond that, and where an addend may be -inf, they are kept in the range of fast powers.
        self.clip = math.isfinite(limit) and (not self.bounded or len(self.problem.addends) > 0)

    def add(self, x: Array, y: Array) -> Array:
        """Return x + y in x."""
        return np.add(x, y, out=x)

    def multiply(self, x: Array, y: Array | float) -> Array:
        """Return x * y in x."""
        return np.multiply(x, y, out=x)

    def in_base_2(self, scores: Array) -> Array:
        """Multiply in place; what a rule does not exclude stays finite."""
        if len(self.problem.addends) > 0:
            np.clip(scores, -0.05 * self.excess, None, out=scores)
        return np.multiply(scores, LOG2_E, out=scores)

    def tanh(self, x: Array) -> Array:
        """Return the hyperbolic tangent in x."""
        return np.tanh(x, out=x)

    def replace(self, old: Array, new: Array) -> Array:
        """Return `new` in the memory of `old`, which may be a part of a larger array."""
        if new is not old:
            np.copyto(old, new)
        return old

    def query_key(self, query: Array, key: Array, *, exclusive: bool) -> Array:
        """(..., D, m) and (n, D) -> (..., m, n)."""
        *lead, D, m = query.shape
        n, rows = key.shape[0], m * math.prod(lead)
        columns = query.reshape(D, m) if rows == m else np.moveaxis(query, -2, 0).reshape(D, rows)
        poison = None
        if exclusive and not math.isfinite(self.head.norm):
            key, poison = quarantined_key(key)
        if key.shape[1] < D:  # the last row of the query is a shift
            key = np.concat([key, self._ones[:n]], axis=1)
        scores = self._product(columns, key)
        if poison is not None:
            scores += poison
        return scores.reshape(*lead, m, n)

    def _product(self, columns: Array, key: Array) -> Array:
        """(D, m) and (n, D) -> (m, n), in the memory order of the tile."""
        m, n = columns.shape[1], key.shape[0]
        buffer = self._scores[: n * m]
        if self._by_keys:
            return np.matmul(key, columns, out=buffer.reshape(n, m)).T
        return np.matmul(columns.T, key.T, out=buffer.reshape(m, n))

    def weights_value(self, weights: Array, value: Array, *, exclusive: bool) -> Array:
        """(..., m, n) @ (n, Dv) -> (..., m, Dv)."""
        *lead, n = weights.shape
        rows, width = math.prod(lead), value.shape[1]
        weights = weights.reshape(rows, n)
        if exclusive and not self.head.finite:
            return quarantined_outputs(weights, value).reshape(*lead, width)
        buffer = self._output[: rows * width].reshape(rows, width)
        np.matmul(weights, value, out=buffer)
        return buffer.reshape(*lead, width)

    def row_sum(self, weights: Array) -> Array:
        """(..., m, n) @ (n, 1) -> (..., m, 1): a product is twice as fast as a sum."""
        *lead, n = weights.shape
        return (weights.reshape(-1, n) @ self._ones[:n]).reshape(*lead, 1)

    def allowed(self, rules: tuple[Mask, ...], region: Region) -> Array | None:
        """Return where all rules agree, in the layout of the scores.

        The triangle of a causal mask is the same all along the diagonal: made once, kept.
        """
        if len(rules) == 0 or not self.problem.shift_invariant(rules):
            return allowed_pairs(rules, region)
        name = (*map(id, rules), region.starts[-2] - region.starts[-1], region.sizes[-2:])
        if name not in self._keep:
            allowed = np.asarray(allowed_pairs(rules, region), self._scores.dtype)
            self._keep[name] = np.asarray(allowed, order="F" if self._by_keys else "C")
        return self._keep[name]

    def exclude(self, scores: Array, allowed: Array, mixed: Bounds) -> Array:
        """Keep what is not allowed out of the maximum."""
        part = scores[..., slice(*mixed), :]
        if not self.is_tame:
            np.copyto(part, -math.inf, where=allowed == 0)
        elif not self.bounded:
            np.subtract(part, np.multiply(allowed == 0, self.excess, dtype=scores.dtype), out=part)
        return scores

    def powers(self, scores: Array, shift: Array | None, allowed: Array | None, mixed: Bounds) -> Array:
        """Raise in place, inside the range that is fast, and multiply by 0 what is not allowed."""
        if shift is not None:
            np.subtract(scores, shift, out=scores)
        if self.clip:
            np.clip(scores, -_SAFE, _SAFE, out=scores)
        np.exp2(scores, out=scores)
        if allowed is not None:
            part = scores[..., slice(*mixed), :]
            np.multiply(part, allowed, out=part)
        return scores


def _meets_lines_only(problem: Problem) -> bool:
    """Whether nothing of (Sq, Sk) is combined with the scores but triangles, which are kept in any layout."""
    is_uniform = problem.score_mod is None and problem.seed is None
    return (
        is_uniform
        and all(map(_is_line, problem.addends))
        and all(
            rule.shift_invariant
            or isinstance(rule, LengthMask | PrefixMask | RowMask)
            or (isinstance(rule, ArrayMask) and _is_line(rule.array))
            for rule in problem.rules
        )
    )


def _is_line(array: Array) -> bool:
    return array.ndim < 2 or 1 in array.shape[-2:]
