"""One of every bias that is a rule, with what it says about a single pair, in plain Python."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from attention_xp.biases import AlibiBias, Bias, RelativePositionBias


class GaussianBias(Bias):
    """A bias as a user writes it."""

    def __init__(self, width):
        self.width = width

    def values(self, region):
        return -0.5 * (region.floating(region.q_idx - region.kv_idx) / region.per_head(self.width)) ** 2


class ItemBias(Bias):
    """A bias without arrays that sees batch item and head, and excludes some pairs as minus infinity does."""

    def values(self, region):
        xp = region.problem.xp
        value = region.floating((region.b + 2 * region.h + region.kv_idx) % 3)
        return xp.where((region.q_idx + region.kv_idx) % 5 == 0, -math.inf, value)


def bucket(relative: int, count: int, *, bidirectional: bool, max_distance: int) -> int:
    """The bucket of ``k - q``, by logarithms."""
    first, distance = 0, max(-relative, 0)
    if bidirectional:
        count //= 2
        first, distance = count * (relative > 0), abs(relative)
    exact = count // 2
    if distance < exact:
        return first + distance
    share = math.log(distance / exact) / math.log(max_distance / exact)
    return first + min(exact + int(share * (count - exact) + 1e-9), count - 1)


class Case(NamedTuple):
    """A bias whose arrays come from `make`, and ``says(b, h, q, k)``."""

    build: Callable[[Callable[[Any], Any]], Bias]
    says: Callable[[int, int, int, int], float]
    heads: int = 1  # 1: any number of heads

    def table(self, batch: int, heads: int, rows: range, columns: range) -> np.ndarray:
        """Ask about every pair: (batch, heads, rows, columns)."""
        pairs = [[[[self.says(b, h, q, k) for k in columns] for q in rows] for h in range(heads)] for b in range(batch)]
        return np.asarray(pairs, dtype=float).reshape(batch, heads, len(rows), len(columns))


_RNG = np.random.default_rng(5)
SLOPES = _RNG.random(4).astype(np.float32)
TABLE, NARROW = (_RNG.standard_normal(shape).astype(np.float32) for shape in ((12, 4), (5,)))
WIDTHS = np.asarray([0.7, 1.5, 3.0, 10.0], np.float32)


def _narrow(q: int, k: int) -> float:
    return float(NARROW[bucket(k - q, 5, bidirectional=False, max_distance=6)])


CASES = {
    "alibi": Case(lambda make: AlibiBias(make(SLOPES)), lambda b, h, q, k: -float(SLOPES[h]) * abs(q - k), 4),
    "one slope": Case(lambda make: AlibiBias(make(SLOPES[:1])), lambda b, h, q, k: -float(SLOPES[0]) * abs(q - k)),
    "buckets": Case(
        lambda make: RelativePositionBias(make(TABLE), max_distance=9),
        lambda b, h, q, k: float(TABLE[bucket(k - q, 12, bidirectional=True, max_distance=9), h]),
        4,
    ),
    "buckets before": Case(
        lambda make: RelativePositionBias(make(NARROW), bidirectional=False, max_distance=6),
        lambda b, h, q, k: _narrow(q, k),
    ),
    "of a user": Case(
        lambda make: GaussianBias(make(WIDTHS)), lambda b, h, q, k: -0.5 * ((q - k) / float(WIDTHS[h])) ** 2, 4
    ),
    "with exclusions": Case(
        lambda make: ItemBias(), lambda b, h, q, k: -math.inf if (q + k) % 5 == 0 else float((b + 2 * h + k) % 3)
    ),
}
