"""One of every rule, with what it says about a single pair, in plain Python."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from attention_xp.masks import (
    BlockMask,
    CausalMask,
    FunctionMask,
    GlobalMask,
    LengthMask,
    Mask,
    PrefixMask,
    SegmentMask,
    StridedMask,
    WindowMask,
    sparse_transformer_mask,
)
from attention_xp.masks._pattern_rule import PatternMask


class Case(NamedTuple):
    """A mask whose arrays come from `make`, and ``says(b, h, q, k)``."""

    build: Callable[[Callable[[Any], Any]], Mask]
    says: Callable[[int, int, int, int], bool]
    lead: tuple[int, ...] = ()

    def table(self, batch: int, heads: int, rows: range, columns: range) -> np.ndarray:
        """Ask about every pair: (batch, heads, rows, columns)."""
        pairs = [
            [[[bool(self.says(b, h, q, k)) for k in columns] for q in rows] for h in range(heads)] for b in range(batch)
        ]
        return np.asarray(pairs, dtype=bool).reshape(batch, heads, len(rows), len(columns))


IDS = np.asarray([[0, 0, 1, 1, 1, 2, 3, 3], [0, 1, 1, 1, 1, 1, 1, 2]])
JUMBLED = np.asarray([3, 0, 3, 7, 7, 0, 1, 3, 3])
GLOBAL = np.asarray([True, False, False, True, False, False, False])
LAYOUT = np.random.default_rng(3).random((2, 3, 4, 5)) < 0.5
NUMBERS = np.random.default_rng(4).integers(0, 4, (2, 1, 4, 3), dtype=np.int32)
PATTERNS = np.asarray([[[0, 0, 0]] * 2, [[1, 1, 1]] * 2, [[1, 0, 0], [1, 1, 0]], [[0, 1, 1], [0, 0, 1]]], dtype=bool)
LENGTHS = np.asarray([2, 7])


def get(values, *index, default):
    """An entry of an array, the default outside of it."""
    inside = all(0 <= i < n for i, n in zip(index, values.shape, strict=True))
    return values[index] if inside else default


def same_id(q_ids, k_ids, q, k):
    """Whether two positions have an id and it is the same."""
    q_id, k_id = get(q_ids, q, default=None), get(k_ids, k, default=None)
    return q_id is not None and q_id == k_id


CASES = {
    "causal": Case(lambda make: CausalMask(), lambda b, h, q, k: k <= q),
    "window": Case(lambda make: WindowMask(2, 1), lambda b, h, q, k: q - 2 <= k <= q + 1),
    "left window": Case(lambda make: WindowMask(2, None), lambda b, h, q, k: k >= q - 2),
    "right window": Case(lambda make: WindowMask(None, 3), lambda b, h, q, k: k <= q + 3),
    "open window": Case(lambda make: WindowMask(None, None), lambda b, h, q, k: True),
    "vast window": Case(lambda make: WindowMask(2**31 - 1, 2**63), lambda b, h, q, k: True),
    "strided": Case(lambda make: StridedMask(3), lambda b, h, q, k: (q - k) % 3 == 0),
    "stride of 1": Case(lambda make: StridedMask(1), lambda b, h, q, k: True),
    "prefix": Case(lambda make: PrefixMask(4), lambda b, h, q, k: k < 4),
    "prefixes": Case(lambda make: PrefixMask(make(LENGTHS)), lambda b, h, q, k: k < LENGTHS[b], (2, 1)),
    "length": Case(lambda make: LengthMask(5), lambda b, h, q, k: k < 5),
    "lengths": Case(lambda make: LengthMask(make(LENGTHS)), lambda b, h, q, k: k < LENGTHS[b], (2, 1)),
    "segments": Case(lambda make: SegmentMask(make(IDS[0])), lambda b, h, q, k: same_id(IDS[0], IDS[0], q, k)),
    "jumbled segments": Case(
        lambda make: SegmentMask(make(JUMBLED)), lambda b, h, q, k: same_id(JUMBLED, JUMBLED, q, k)
    ),
    "segments of a batch": Case(
        lambda make: SegmentMask(make(IDS)), lambda b, h, q, k: same_id(IDS[b], IDS[b], q, k), (2, 1)
    ),
    "segments of queries and keys": Case(
        lambda make: SegmentMask(make(JUMBLED), make(IDS)), lambda b, h, q, k: same_id(JUMBLED, IDS[b], q, k), (2, 1)
    ),
    "global": Case(
        lambda make: GlobalMask(make(GLOBAL)),
        lambda b, h, q, k: get(GLOBAL, q, default=False) or get(GLOBAL, k, default=False),
    ),
    "blocks": Case(
        lambda make: BlockMask(make(LAYOUT[0, 0]), (3, 2)),
        lambda b, h, q, k: get(LAYOUT[0, 0], q // 3, k // 2, default=False),
    ),
    "blocks of heads": Case(
        lambda make: BlockMask(make(LAYOUT[0]), 2),
        lambda b, h, q, k: get(LAYOUT[0, h], q // 2, k // 2, default=False),
        (1, 3),
    ),
    "blocks of batch and heads": Case(
        lambda make: BlockMask(make(LAYOUT), (2, 3)),
        lambda b, h, q, k: get(LAYOUT[b, h], q // 2, k // 3, default=False),
        (2, 3),
    ),
    "blocks of a batch": Case(
        lambda make: BlockMask(make(LAYOUT[:, :1]), 4),
        lambda b, h, q, k: get(LAYOUT[b, 0], q // 4, k // 4, default=False),
        (2, 1),
    ),
    "patterns of a batch": Case(
        lambda make: PatternMask(make(NUMBERS), make(PATTERNS)),
        lambda b, h, q, k: PATTERNS[get(NUMBERS[b, 0], q // 2, k // 3, default=0), q % 2, k % 3],
        (2, 1),
    ),
    "function": Case(
        lambda make: FunctionMask(lambda b, h, q, k: (q + b >= k) & (k != h), batch=2, heads=3),
        lambda b, h, q, k: q + b >= k and k != h,
        (2, 3),
    ),
    "prefix LM": Case(lambda make: CausalMask() | PrefixMask(3), lambda b, h, q, k: k <= q or k < 3),
    "causal segments": Case(
        lambda make: CausalMask() & SegmentMask(make(IDS)),
        lambda b, h, q, k: k <= q and same_id(IDS[b], IDS[b], q, k),
        (2, 1),
    ),
    "neither": Case(
        lambda make: ~(BlockMask(make(LAYOUT[0]), 2) | LengthMask(make(LENGTHS))),
        lambda b, h, q, k: not (get(LAYOUT[0, h], q // 2, k // 2, default=False) or k < LENGTHS[b]),
        (2, 3),
    ),
    "strided Sparse Transformer": Case(
        lambda make: sparse_transformer_mask(3), lambda b, h, q, k: k <= q and (q - k <= 3 or (q - k) % 3 == 0)
    ),
    "fixed Sparse Transformer": Case(
        lambda make: sparse_transformer_mask(3, "fixed"),
        lambda b, h, q, k: k <= q and (q // 3 == k // 3 or k % 3 == 2),
    ),
}

# Rules whose `reach` decides every rectangle by itself, where batch item and head are known.
EXACT = [
    name
    for name in CASES
    if name not in {"jumbled segments", "segments of queries and keys", "function", "patterns of a batch"}
    and name
    not in {"prefix LM", "causal segments", "neither", "strided Sparse Transformer", "fixed Sparse Transformer"}
]

# Another one of the same class holds the same arrays, if any: a library does the same to both.
ALIKE = {
    "left window", "right window", "open window", "stride of 1", "prefixes", "jumbled segments", "segments of a batch",
    "blocks of heads", "blocks of a batch", "causal segments", "strided Sparse Transformer", "fixed Sparse Transformer",
}  # fmt: skip
