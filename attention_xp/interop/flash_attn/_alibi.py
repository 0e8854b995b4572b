"""ALiBi with slopes for each packed sequence.

In place of this, `AlibiBias` itself, once `varlen_attention` takes its slopes ``(N, H)`` as those of each sequence.
"""

from attention_xp._backend.values import within
from attention_xp._typing import Array
from attention_xp.biases import Bias
from attention_xp.masks import Region

__all__ = ["SequenceAlibi"]


class SequenceAlibi(Bias):
    """The rule of `AlibiBias` where each row looks up the slopes of its own sequence, ``(B, H)``."""

    may_exclude = False

    def __init__(self, slopes: Array) -> None:
        self.slopes = slopes

    def values(self, region: Region) -> Array:
        """Return the distances times the slopes, negative."""
        xp, (count, heads) = region.xp, self.slopes.shape
        at = within(xp, region.b, 0, count - 1) * heads + region.h  # rows behind the last sequence attend nothing
        flat = xp.reshape(region.floating(self.slopes), (-1,))
        slopes = xp.reshape(xp.take(flat, xp.reshape(at, (-1,)), axis=0), at.shape)
        return -slopes * region.floating(xp.abs(region.q_idx - region.kv_idx))
