"""The rule that blocks of pairs have patterns, each of which is stored once."""

from typing import ClassVar

from attention_xp._backend.libraries import common_namespace
from attention_xp._scores.region import Region, Span
from attention_xp._typing import Array
from attention_xp.masks._flag_rules import BlockMask
from attention_xp.masks._look_up import remembered, taken
from attention_xp.masks._pairs import Reach, rule

__all__ = ["PatternMask"]


@rule
class PatternMask(BlockMask):
    r"""Blocks of pairs with one of a few patterns: :math:`P_{L_{\lfloor q / n \rfloor, \lfloor k / m \rfloor},\, q \bmod n,\, k \bmod m}`.

    A causal mask in blocks has three: nothing, everything and a triangle. So what would take long to evaluate is looked up.

    Parameters
    ----------
    numbers : array
        ``(..., query blocks, key blocks)``, int32: the pattern of each block, :math:`L`.
    patterns : array
        ``(patterns, n, m)``, boolean: :math:`P`. The first allows nothing, the second everything.

    Notes
    -----
    Positions outside of the blocks attend nothing and are not attended.
    """

    numbers: Array
    patterns: Array
    _axes: ClassVar = {"layout": "bh..", "numbers": "bh.."}

    def __init__(self, numbers: Array, patterns: Array) -> None:
        super().__init__(numbers > 0, tuple(patterns.shape[1:]))
        self.numbers = numbers
        self.patterns = patterns

    def allowed(self, region: Region) -> Array:
        """Look up the patterns of the blocks, and the pairs in these."""
        number, inside = self._looked_up(region, self.numbers)
        if 0 in self.numbers.shape:
            return inside
        n, m = self._steps
        pair = (number * n + region.q_idx % n) * m + region.kv_idx % m
        flat = region.xp.reshape(region.own(self.patterns), (-1,))
        return taken(region.xp, flat, pair) & inside

    def reach(self, span: Span) -> Reach:
        """Count the blocks that are not empty, and those that are full."""
        xp = common_namespace(numbers=self.numbers)
        full = remembered(self, "full", xp, lambda: BlockMask(self.numbers == 1, self.block_size))
        return super().reach(span)[0], full.reach(span)[1]
