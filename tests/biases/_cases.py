"""One of every bias that is a rule, with what it says about a single pair, in plain Python."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

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
        xp = region.xp
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
    items: int = 1  # likewise, of batch items

    def table(self, batch: int, heads: int, rows: range, columns: range) -> np.ndarray:
        """Ask about every pair: (batch, heads, rows, columns)."""
        pairs = [[[[self.says(b, h, q, k) for k in columns] for q in rows] for h in range(heads)] for b in range(batch)]
        return np.asarray(pairs, dtype=float).reshape(batch, heads, len(rows), len(columns))


def alibi(slopes: np.ndarray) -> Case:
    """Linear biases."""
    return Case(
        lambda make: AlibiBias(make(slopes)),
        lambda b, h, q, k: -float(slopes[h % slopes.size]) * abs(q - k),
        slopes.size,
    )


def alibi_of_items(slopes: np.ndarray) -> Case:
    """Linear biases with slopes for each batch item."""
    items, heads = slopes.shape
    return Case(
        lambda make: AlibiBias(make(slopes)),
        lambda b, h, q, k: -float(slopes[b % items, h % heads]) * abs(q - k),
        heads,
        items,
    )


def buckets(table: np.ndarray, max_distance: int, *, bidirectional: bool = True) -> Case:
    """A number for each bucket, and for each head where the table has two axes."""
    heads = table.shape[1] if table.ndim > 1 else 1

    def says(b: int, h: int, q: int, k: int) -> float:
        i = bucket(k - q, table.shape[0], bidirectional=bidirectional, max_distance=max_distance)
        return float(table.reshape(-1, heads)[i, h % heads])

    return Case(
        lambda make: RelativePositionBias(make(table), bidirectional=bidirectional, max_distance=max_distance),
        says,
        heads,
    )


def gaussian(widths: np.ndarray) -> Case:
    """The class of a user."""
    return Case(
        lambda make: GaussianBias(make(widths)),
        lambda b, h, q, k: -0.5 * ((q - k) / float(widths[h % widths.size])) ** 2,
        widths.size,
    )


WITH_EXCLUSIONS = Case(
    lambda make: ItemBias(), lambda b, h, q, k: -math.inf if (q + k) % 5 == 0 else float((b + 2 * h + k) % 3)
)

_RNG = np.random.default_rng(5)
SLOPES = _RNG.random(4).astype(np.float32)
TABLE, NARROW = (_RNG.standard_normal(shape).astype(np.float32) for shape in ((12, 4), (5,)))

CASES = {
    "alibi": alibi(SLOPES),
    "one slope": alibi(SLOPES[:1]),
    "alibi of items": alibi_of_items(_RNG.random((2, 4)).astype(np.float32)),
    "one slope for each item": alibi_of_items(_RNG.random((2, 1)).astype(np.float32)),
    "buckets": buckets(TABLE, 9),
    "buckets before": buckets(NARROW, 6, bidirectional=False),
    "of a user": gaussian(np.asarray([0.7, 1.5, 3.0, 10.0], np.float32)),
    "with exclusions": WITH_EXCLUSIONS,
}


def drawn(rng: np.random.Generator, heads: int) -> st.SearchStrategy[Case]:
    """Draw a bias of any class for a number of heads."""
    count = st.sampled_from([1, heads])
    return st.one_of(
        st.builds(lambda n: alibi(rng.standard_normal(n).astype(np.float32)), count),
        st.builds(
            lambda n, width, far, both: buckets(
                rng.standard_normal((2 * width, n)).astype(np.float32), width + far, bidirectional=both
            ),
            count, st.integers(2, 5), st.integers(1, 9), st.booleans(),
        ),
        st.builds(lambda n: gaussian(rng.uniform(0.5, 5.0, n).astype(np.float32)), count),
        st.just(WITH_EXCLUSIONS),
    )  # fmt: skip
