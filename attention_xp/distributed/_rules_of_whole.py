"""Rules of a whole in a call on a block of it, where they look up what they hold for batch items, heads, rows and columns."""

import math
from functools import partial
from typing import Any, NamedTuple

from attention_xp._scores.alignment import without_surplus
from attention_xp._scores.attributes import with_parts
from attention_xp._scores.frame import Frame
from attention_xp._scores.region import Region, Span
from attention_xp._typing import Array, Namespace
from attention_xp.biases import Bias
from attention_xp.masks import Mask
from attention_xp.masks._mask import ArrayMask
from attention_xp.masks._pairs import Reach, parts_of, rule

__all__ = ["Place", "constant", "rule_of_whole"]


class Place(NamedTuple):
    """Where the scores of a block lie in those of the whole."""

    starts: tuple[int, ...]  # along every axis of the scores (..., H, Sq, Sk)
    sizes: tuple[int, ...]  # likewise
    batch: tuple[int, ...]  # of the whole
    heads: int | None  # of the whole

    @property
    def lead(self) -> tuple[int, ...]:
        """The leading axes of the block, with a head where the scores have no heads axis."""
        return (*self.sizes[:-2], *((1,) if self.heads is None else ()))

    def lead_of(self, rule: Mask | Bias) -> tuple[int, ...]:
        """Return the leading axes of a rule of the whole in the block."""
        given = rule.lead
        return tuple(
            1 if n == 1 else own for n, own in zip(given, self.lead[len(self.lead) - len(given) :], strict=True)
        )

    @property
    def is_split(self) -> bool:
        """Whether the block holds some of the batch items or heads."""
        return self.lead != (*self.batch, 1 if self.heads is None else self.heads)

    def span(self, span: Span) -> Span:
        """Return a rectangle of the block as one of the whole; its positions are those of the whole already."""
        row, column = self.starts[-2:]
        moved = span._replace(row_lo=span.row_lo + row, row_hi=span.row_hi + row, b=None, h=None)
        return (
            moved if span.col_lo is None else moved._replace(col_lo=span.col_lo + column, col_hi=span.col_hi + column)
        )

    def cut(self, array: Array) -> Array:
        """Return what belongs to the block of an array that broadcasts to the scores of the whole."""
        shape = without_surplus(tuple(array.shape), len(self.starts), self.heads)
        first = len(self.starts) - len(shape)
        pairs = zip(shape, self.starts[first:], self.sizes[first:], strict=True)
        pieces = tuple(slice(None) if n == 1 else slice(start, start + size) for n, start, size in pairs)
        return array.reshape(shape)[pieces]

    def region(self, block: Region) -> Region:
        """Return a region of the block as one of the whole."""
        frame = block.frame
        own = {name: getattr(frame, name) for name in ("query_offset", "key_offset", "key_positions")}
        whole = Frame(
            xp=frame.xp, query=frame.query, dtype=frame.dtype, batch=self.batch, heads=self.heads, Sk=frame.Sk, **own
        )
        starts = tuple(a + b for a, b in zip(block.starts, self.starts, strict=True))
        region = _RegionOfWhole(whole, starts, block.sizes, block.cut)
        region.block, region.place = block, self
        return region


class _RegionOfWhole(Region):
    """A region of a block as one of the whole; positions, and the numbers of items and heads, are those of the call."""

    block: Region
    place: Place

    def part(self, rows: tuple[int, int], columns: tuple[int, int]) -> Region:
        return self.place.region(self.block.part(rows, columns))

    @property
    def q_idx(self) -> Array:
        return self.block.q_idx

    @property
    def kv_idx(self) -> Array:
        return self.block.kv_idx

    @property
    def b(self) -> Array:
        return self.block.b

    @property
    def h(self) -> Array:
        return self.block.h


@rule
class _MaskOfWhole(Mask):
    """A mask of the whole in a block."""

    inner: Mask
    place: Place

    def __init__(self, inner: Mask, place: Place) -> None:
        self.inner, self.place = inner, place

    @property
    def relative(self) -> bool:  # type: ignore[override]
        return self.inner.relative

    @property
    def shift_invariant(self) -> bool:  # type: ignore[override]
        return self.inner.shift_invariant

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.place.lead_of(self.inner)

    def check(self, xp: Namespace, query: Array, batch: tuple[int, ...], heads: int | None) -> None:  # noqa: ARG002
        self.inner.check(xp, query, self.place.batch, self.place.heads)

    def allowed(self, region: Region) -> Array:
        return self.inner.allowed(self.place.region(region))

    def reach(self, span: Span) -> Reach:
        return self.inner.reach(self.place.span(span))

    def seams(self, q_stop: int, k_stop: int) -> tuple[list[int], list[int]]:
        return self.inner.seams(q_stop, k_stop)

    @property
    def _author(self) -> str:
        return self.inner._author


@rule
class _BiasOfWhole(Bias):
    """A bias of the whole in a block; the gradients of its arrays are those of the whole, as far as the block adds to them."""

    inner: Bias
    place: Place

    def __init__(self, inner: Bias, place: Place) -> None:
        self.inner, self.place = inner, place

    @property
    def may_exclude(self) -> bool:  # type: ignore[override]
        return self.inner.may_exclude

    @property
    def arrays(self) -> tuple[Array, ...]:
        return self.inner.arrays

    def check(self, xp: Namespace, query: Array, batch: tuple[int, ...], heads: int | None) -> None:  # noqa: ARG002
        self.inner.check(xp, query, self.place.batch, self.place.heads)

    def values(self, region: Region) -> Array:
        return self.inner.values(self.place.region(region))

    def bound(self, region: Region) -> float:
        return self.inner.bound(self.place.region(region))

    def vjp(self, region: Region, grad_scores: Array) -> tuple[Array, ...]:
        return self.inner.vjp(self.place.region(region), grad_scores)


class _Constant(Bias):
    """A bias in whose arrays nothing is differentiated."""

    def __init__(self, inner: Bias) -> None:
        self.inner = inner
        self.may_exclude = inner.may_exclude

    @property
    def arrays(self) -> tuple[Array, ...]:
        return ()

    def check(self, xp: Namespace, query: Array, batch: tuple[int, ...], heads: int | None) -> None:
        self.inner.check(xp, query, batch, heads)

    def values(self, region: Region) -> Array:
        return self.inner.values(region)

    def bound(self, region: Region) -> float:
        return self.inner.bound(region)

    def vjp(self, region: Region, grad_scores: Array) -> tuple[Array, ...]:  # noqa: ARG002
        return ()


def constant(bias: Bias) -> Bias:
    """Return a bias that has no gradients, which it need not be able to give."""
    return _Constant(bias)


def rule_of_whole(rule: Any, place: Place) -> Any:
    """Return a mask or a bias of the whole as one of a block; those that know positions alone, and no rules, as they are."""
    if isinstance(rule, Bias):
        return _BiasOfWhole(rule, place) if _is_looked_up(rule, place) else rule
    if not isinstance(rule, Mask):
        return rule
    if rule._is_ours and parts_of(rule):
        return with_parts(rule, partial(rule_of_whole, place=place))
    if isinstance(rule, ArrayMask):
        return ArrayMask(place.cut(rule.array))
    return _MaskOfWhole(rule, place) if _is_looked_up(rule, place) else rule


def _is_looked_up(rule: Mask | Bias, place: Place) -> bool:
    """Whether a rule has entries of its own for items or heads, of which a block has some, or may ask for anything."""
    return not rule._is_ours or (place.is_split and math.prod(rule.lead) != 1)
