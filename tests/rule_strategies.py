"""Random mask rules of every class and their combinations, each with what it says about a pair in plain Python."""

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from attention_xp.masks import (
    BlockMask,
    CausalMask,
    FunctionMask,
    GlobalMask,
    LengthMask,
    PrefixMask,
    SegmentMask,
    StridedMask,
    WindowMask,
    bigbird_mask,
    longformer_mask,
    sparse_transformer_mask,
)
from attention_xp.masks._position_rules import SameChunk
from tests.masks._cases import Case, get, same_id

__all__ = ["LEAVES", "rules"]


class Shapes:
    """The leading axes of the scores, and how arrays of them are drawn."""

    def __init__(self, draw: st.DrawFn, rng: np.random.Generator, batch: tuple[int, ...], heads: int) -> None:
        self.draw, self.rng, self.batch, self.heads = draw, rng, batch, heads

    def lead(self, lead: tuple[int, ...]) -> tuple[int, ...]:
        """Draw leading axes that broadcast to the given ones."""
        start = self.draw(st.integers(0, len(lead)))
        return tuple(n if self.draw(st.booleans()) else 1 for n in lead[start:])

    def integers(self, low: int, high: int, *shape: int) -> np.ndarray:
        """Numbers in ``[low, high]``."""
        return np.asarray(self.rng.integers(low, high + 1, shape))

    def flags(self, *shape: int) -> np.ndarray:
        """Booleans, half of them true."""
        return np.asarray(self.rng.random(shape) < 0.5)

    def counts(self) -> Any:
        """An int, or one for each batch item."""
        if self.draw(st.booleans()):
            return self.draw(st.integers(0, 8))
        return self.integers(0, 8, *self.lead(self.batch))


def made(make: Callable[[Any], Any], counts: Any) -> Any:
    """An array under test; a plain int stays one."""
    return counts if isinstance(counts, int) else make(counts)


def _causal(shapes: Shapes) -> Case:
    return Case(lambda make: CausalMask(), lambda b, h, q, k: k <= q)


def _window(shapes: Shapes) -> Case:
    left, right = (shapes.draw(st.none() | st.integers(0, 5)) for _ in range(2))
    return Case(
        lambda make: WindowMask(left, right),
        lambda b, h, q, k: (left is None or q - left <= k) and (right is None or k <= q + right),
    )


def _strided(shapes: Shapes) -> Case:
    stride = shapes.draw(st.integers(1, 4))
    return Case(lambda make: StridedMask(stride), lambda b, h, q, k: (q - k) % stride == 0)


def _chunks(shapes: Shapes) -> Case:
    size, starts = shapes.draw(st.integers(1, 4)), shapes.counts()
    each = np.broadcast_to(starts, shapes.batch).ravel()
    return Case(
        lambda make: SameChunk(size, made(make, starts)),
        lambda b, h, q, k: (q - each[b]) // size == (k - each[b]) // size,
    )


def _before(kind: Any) -> Callable[[Shapes], Case]:
    def case(shapes: Shapes) -> Case:
        counts = shapes.counts()
        each = np.broadcast_to(counts, shapes.batch).ravel()
        return Case(lambda make: kind(made(make, counts)), lambda b, h, q, k: k < each[b])

    return case


def _segments(shapes: Shapes) -> Case:
    q_ids = shapes.integers(0, 2, *shapes.lead(shapes.batch), 9)
    if shapes.draw(st.booleans()):
        q_ids = np.sort(q_ids, axis=-1)
    k_ids = shapes.integers(0, 2, *shapes.lead(shapes.batch), 8) if shapes.draw(st.booleans()) else None

    def says(b: int, h: int, q: int, k: int) -> bool:
        own = _row(shapes, q_ids, b)
        return bool(same_id(own, own if k_ids is None else _row(shapes, k_ids, b), q, k))

    return Case(lambda make: SegmentMask(make(q_ids), None if k_ids is None else make(k_ids)), says)


def _row(shapes: Shapes, array: np.ndarray, b: int) -> np.ndarray:
    return np.broadcast_to(array, (*shapes.batch, array.shape[-1])).reshape(-1, array.shape[-1])[b]


def _global(shapes: Shapes) -> Case:
    flags = shapes.flags(7) & shapes.flags(7)
    return Case(
        lambda make: GlobalMask(make(flags)),
        lambda b, h, q, k: get(flags, q, default=False) or get(flags, k, default=False),
    )


def _blocks(shapes: Shapes) -> Case:
    rows, columns = (shapes.draw(st.integers(1, 4)) for _ in range(2))
    lead = shapes.lead((*shapes.batch, shapes.heads))
    layout = shapes.flags(*lead, 4, 5)
    return Case(
        lambda make: BlockMask(make(layout), (rows, columns)),
        lambda b, h, q, k: get(_layout(shapes, layout, b, h), q // rows, k // columns, default=False),
    )


def _layout(shapes: Shapes, layout: np.ndarray, b: int, h: int) -> np.ndarray:
    return np.broadcast_to(layout, (*shapes.batch, shapes.heads, 4, 5)).reshape(-1, 4, 5)[b * shapes.heads + h]


def _function(shapes: Shapes) -> Case:
    return Case(
        lambda make: FunctionMask(lambda b, h, q, k: ((q + b >= k) & (k != h)) | (k % 3 == q % 3)),
        lambda b, h, q, k: (q + b >= k and k != h) or k % 3 == q % 3,
    )


def _sparse_transformer(shapes: Shapes) -> Case:
    if shapes.draw(st.booleans()):
        return Case(
            lambda make: sparse_transformer_mask(3), lambda b, h, q, k: k <= q and (q - k <= 3 or (q - k) % 3 == 0)
        )
    return Case(
        lambda make: sparse_transformer_mask(3, "fixed"),
        lambda b, h, q, k: k <= q and (q // 3 == k // 3 or k % 3 == 2),
    )


def _longformer(shapes: Shapes) -> Case:
    flags = shapes.flags(7) & shapes.flags(7)

    def says(b: int, h: int, q: int, k: int) -> bool:
        return abs(q - k) <= 2 or bool(get(flags, q, default=False) or get(flags, k, default=False))

    return Case(lambda make: longformer_mask(2, make(flags)), says)


def _bigbird(shapes: Shapes) -> Case:
    # Which blocks are drawn is tested elsewhere: here they are read back.
    mask = bigbird_mask(4, 2, num_random=1, num_global=1, window_blocks=1, rng=int(shapes.integers(0, 99)))
    allowed = np.asarray(mask.to_array(8, 8))
    return Case(lambda make: mask, lambda b, h, q, k: get(allowed, q, k, default=False))


LEAVES: dict[str, Callable[[Shapes], Case]] = {
    "causal": _causal,
    "window": _window,
    "strided": _strided,
    "chunks": _chunks,
    "prefix": _before(PrefixMask),
    "length": _before(LengthMask),
    "segments": _segments,
    "global": _global,
    "blocks": _blocks,
    "function": _function,
    "sparse transformer": _sparse_transformer,
    "longformer": _longformer,
    "bigbird": _bigbird,
}


@st.composite
def rules(
    draw: st.DrawFn,
    rng: np.random.Generator,
    batch: tuple[int, ...],
    heads: int,
    names: tuple[str, ...] = tuple(LEAVES),
) -> Case:
    """Draw one rule, or up to three of them combined."""
    shapes = Shapes(draw, rng, batch, heads)
    case = _signed(draw, LEAVES[draw(st.sampled_from(names))](shapes))
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        other = _signed(draw, LEAVES[draw(st.sampled_from(names))](shapes))
        case = _both(case, other) if draw(st.booleans()) else _either(case, other)
    return case


def _signed(draw: st.DrawFn, case: Case) -> Case:
    if draw(st.sampled_from([True, True, False])):
        return case
    return Case(lambda make: ~case.build(make), lambda b, h, q, k: not case.says(b, h, q, k))


def _both(one: Case, two: Case) -> Case:
    return Case(lambda make: one.build(make) & two.build(make), lambda *pair: one.says(*pair) and two.says(*pair))


def _either(one: Case, two: Case) -> Case:
    return Case(lambda make: one.build(make) | two.build(make), lambda *pair: one.says(*pair) or two.says(*pair))
