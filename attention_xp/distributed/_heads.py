"""Rules of all heads, for a rank that computes some of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from attention_xp._engine.problem.foreign import is_foreign
from attention_xp._scores.region import Region, Span, cut
from attention_xp._typing import Array, Namespace
from attention_xp.biases import Bias
from attention_xp.masks import Mask
from attention_xp.masks._mask import Both
from attention_xp.masks._pairs import Reach

__all__ = ["Heads", "of_heads"]


@dataclass(frozen=True, eq=False)
class Heads:
    """Adjacent heads: the first, of how many there are in the whole, and what the call says that they are called."""

    first: Any  # an int; in JAX a traced one
    count: int
    ids: Array | None = None  # (H,) of the whole
    # A function of its own where only the program knows which is the first.
    cut: Callable[[Array, list[Any], list[int]], Array] = cut

    def region(self, region: Region) -> Region:
        """Return a region of the scores of these heads as one of the scores of all."""
        frame, starts = region.frame, list(region.starts)
        ids = None if self.ids is None else region.xp.reshape(self.ids, (-1, 1, 1))
        starts[-3] = starts[-3] + self.first
        return region._replace(frame=replace(frame, heads=self.count, head_ids=ids), starts=tuple(starts), cut=self.cut)


def of_heads(rule: Any, heads: Heads) -> Any:
    """Return a mask or a bias as it is for some heads; what is no rule, and what is alike for all heads, stays as it is."""
    if isinstance(rule, Both):
        return of_heads(rule.left, heads) & of_heads(rule.right, heads)
    if isinstance(rule, Mask):
        return _MaskOfHeads(rule, heads) if is_foreign(rule) or _has_heads(rule) else rule
    if isinstance(rule, Bias):
        return _BiasOfHeads(rule, heads) if not rule._is_ours or _has_heads(rule) else rule
    return rule


def _has_heads(rule: Any) -> bool:
    return bool(rule.lead) and rule.lead[-1] != 1


class _OfHeads:
    """What a mask and a bias of some heads have in common: they are asked as a rule of all heads."""

    inner: Any
    heads: Heads

    def check(self, xp: Namespace, query: Array, batch: tuple[int, ...], heads: int | None) -> None:  # noqa: ARG002
        """Check the rule as one of all heads."""
        self.inner.check(xp, query, batch, self.heads.count)


@dataclass(frozen=True, eq=False)
class _MaskOfHeads(_OfHeads, Mask):
    inner: Mask
    heads: Heads

    @property
    def _is_ours(self) -> bool:  # type: ignore[override]
        return not is_foreign(self.inner)

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.inner.lead

    @property
    def relative(self) -> bool:  # type: ignore[override]
        return self.inner.relative

    @property
    def shift_invariant(self) -> bool:  # type: ignore[override]
        return self.inner.shift_invariant

    def allowed(self, region: Region) -> Array:
        return self.inner.pairs(self.heads.region(region))

    def reach(self, span: Span) -> Reach:
        return self.inner.reach(span if span.h is None else span._replace(h=span.h + self.heads.first))


@dataclass(frozen=True, eq=False)
class _BiasOfHeads(_OfHeads, Bias):
    inner: Bias
    heads: Heads

    @property
    def _is_ours(self) -> bool:  # type: ignore[override]
        return self.inner._is_ours

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.inner.lead

    @property
    def may_exclude(self) -> bool:  # type: ignore[override]
        return self.inner.may_exclude

    @property
    def shift_invariant(self) -> bool:  # type: ignore[override]
        return self.inner.shift_invariant

    @property
    def arrays(self) -> tuple[Array, ...]:
        return self.inner.arrays

    def values(self, region: Region) -> Array:
        return self.inner.values(self.heads.region(region))

    def bound(self, region: Region) -> float:
        return self.inner.bound(self.heads.region(region))

    def vjp(self, region: Region, grad_scores: Array) -> tuple[Array, ...]:
        return self.inner.vjp(self.heads.region(region), grad_scores)
