"""NumPy's primitives for the tile step, in the buffers of one thread.

The answers are those of `Arithmetic`. The scores are laid out keys x queries behind a transposed view:
neither product needs a transposed copy, and every operation along the keys runs down the first axis,
which NumPy vectorises well.
"""

import math
from typing import NamedTuple

import numpy as np

from attention_xp._engine.arithmetic import Arithmetic, allowed_pairs
from attention_xp._engine.plan import Bounds
from attention_xp._engine.problem import Problem
from attention_xp._engine.products import quarantined_key, quarantined_outputs
from attention_xp._engine.region import Region
from attention_xp._typing import Array
from attention_xp.masks import Mask

__all__ = ["Head", "InPlace"]

_SMALL = 90.0  # powers of two up to here are summed in float32 without a shift
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

    def prepare(self, head: "Head", limit: float) -> None:
        """Get ready for a block of rows of a head whose scores cannot exceed a limit."""
        self.head = head
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

    def tanh(self, x: Array) -> Array:
        """Return the hyperbolic tangent in x."""
        return np.tanh(x, out=x)

    def replace(self, old: Array, new: Array) -> Array:
        """Return `new` in the memory of `old`, which may be a part of a larger array."""
        np.copyto(old, new)
        return old

    def query_key(self, query: Array, key: Array, *, exclusive: bool) -> Array:
        """(..., D, m) and (n, D) -> a view (..., m, n) of the product (n, m)."""
        *lead, D, m = query.shape
        n, rows = key.shape[0], m * math.prod(lead)
        columns = query if len(lead) == 0 else np.moveaxis(query, -2, 0)  # (..., D, m) -> (D, ..., m)
        buffer = self._scores[: n * rows].reshape(n, rows)
        poison = None
        if exclusive and not math.isfinite(self.head.norm):
            key, poison = quarantined_key(key)
        if key.shape[1] < D:  # the last row of the query is a shift
            key = np.concat([key, self._ones[:n]], axis=1)
        np.matmul(key, columns.reshape(D, rows), out=buffer)
        if poison is not None:
            buffer += poison[:, None]
        scores = buffer.reshape(n, *lead, m)
        return scores.transpose(*range(1, scores.ndim), 0)

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
        """Return 1.0 where all rules agree and 0.0 elsewhere, in the layout of the scores.

        The triangle of a causal mask is the same all along the diagonal: made once, kept.
        """
        if len(rules) == 0:
            return None
        if not self.problem.shift_invariant(rules):
            return self._floats(allowed_pairs(rules, region))
        name = (rules, region.starts[-2] - region.starts[-1], region.sizes[-2:])
        if name not in self._keep:
            self._keep[name] = self._floats(allowed_pairs(rules, region))
        return self._keep[name]

    def _floats(self, allowed: Array) -> Array:
        keep = np.empty(allowed.shape[::-1], self._scores.dtype).T
        keep[...] = allowed
        return keep

    def exclude(self, scores: Array, allowed: Array, mixed: Bounds) -> Array:
        """Keep what is not allowed out of the maximum."""
        if not self.bounded:
            np.copyto(scores[..., slice(*mixed), :], -math.inf, where=allowed == 0.0)
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
