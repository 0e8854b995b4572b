"""The two mask rules that only the engine makes: a given array, and a limit on query rows."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from attention_xp._typing import Array
from attention_xp.masks import Mask

if TYPE_CHECKING:
    from attention_xp._engine.region import Region

__all__ = ["ArrayMask", "RowMask"]


@dataclass(frozen=True, eq=False)
class ArrayMask(Mask):
    """A boolean array that is aligned with the scores: look it up."""

    array: Array

    def allowed(self, region: "Region") -> Array:
        """Return the piece of the array that covers the region."""
        return region.look_up(self.array)


@dataclass(frozen=True, eq=False)
class RowMask(Mask):
    """Query rows before ``lengths[b]``, counted from the first row whatever its position."""

    lengths: int | Array

    def allowed(self, region: "Region") -> Array:
        """Return True for the rows that are no padding."""
        return region.row < region.per_batch(self.lengths)
