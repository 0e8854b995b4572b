"""Rules of a call with all heads, in a call with some of them."""

from dataclasses import replace
from typing import Any

from attention_xp._scores.region import Region
from attention_xp._typing import Array, Namespace
from attention_xp.biases import Bias
from attention_xp.masks import Mask

__all__ = ["BiasOfHeads", "MaskOfHeads"]


class _OfHeads:
    """A rule for all heads, seen from some of them.

    Parameters
    ----------
    rule : Mask or Bias
        The rule.
    first : int
        Where the heads begin.
    heads : int
        How many there are in all.
    head_ids : integer array or None
        Of all heads, where they are not numbered from 0.
    """

    def __init__(self, rule: Any, first: int, heads: int, head_ids: Any) -> None:
        self.rule, self.first, self.heads, self.head_ids = rule, first, heads, head_ids

    def check(self, xp: Namespace, query: Array, batch: tuple[int, ...], heads: int | None) -> None:  # noqa: ARG002
        """Check the rule for all heads."""
        self.rule.check(xp, query, batch, self.heads)

    def _in_all(self, region: Region) -> Region:
        """Return a region in the scores of all heads."""
        ids = self.head_ids if self.head_ids is None or self.head_ids.ndim == 0 else self.head_ids[:, None, None]
        starts = (*region.starts[:-3], region.starts[-3] + self.first, *region.starts[-2:])
        return region._replace(frame=replace(region.frame, heads=self.heads, head_ids=ids), starts=starts)


class MaskOfHeads(_OfHeads, Mask):
    """A mask for all heads, seen from some of them."""

    @property
    def relative(self) -> bool:  # type: ignore[override]
        """Whether the answer depends on how queries and keys are aligned."""
        return bool(self.rule.relative)

    def allowed(self, region: Region) -> Array:
        """Return what the mask allows."""
        return self.rule.pairs(self._in_all(region))


class BiasOfHeads(_OfHeads, Bias):
    """A bias for all heads, seen from some of them."""

    @property
    def may_exclude(self) -> bool:  # type: ignore[override]
        """Whether minus infinity may be among the values."""
        return bool(self.rule.may_exclude)

    def values(self, region: Region) -> Array:
        """Return what the bias adds."""
        return self.rule.values(self._in_all(region))
