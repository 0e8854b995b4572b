"""The mask rules that only the engine makes, of arrays, lengths and biases of a call."""

import math
from dataclasses import dataclass
from typing import ClassVar

from attention_xp._backend.values import on_host
from attention_xp._scores.region import Region, Span
from attention_xp._typing import Array
from attention_xp.biases._bias import Bias, evaluated
from attention_xp.masks import Mask
from attention_xp.masks._length_rules import batch_and_head, before
from attention_xp.masks._pairs import Reach

__all__ = ["AlignedMask", "BiasMask", "RowMask", "UnseenMask"]


@dataclass(frozen=True, eq=False)
class AlignedMask(Mask):
    """A boolean array that is aligned with the scores: look it up."""

    array: Array
    batch: tuple[int, ...]
    has_heads: bool
    _is_of_places = True

    @property
    def _as_array(self) -> Array:  # type: ignore[override]
        return self.array

    @property
    def _axes(self) -> dict[str, str]:  # type: ignore[override]
        return {"array": "bhq." if self.has_heads else "bq."}

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        """The leading axes of the array, the heads last."""
        lead = tuple(self.array.shape[:-2])
        return lead if self.has_heads or len(lead) == 0 else (*lead, 1)

    def allowed(self, region: Region) -> Array:
        """Return the piece of the array that covers the region."""
        return region.look_up(self.array)

    def reach(self, span: Span) -> Reach:
        """Look at the values where they are in host memory; otherwise nothing is known."""
        if span.b is None or span.h is None or not on_host(span.xp, self.array) or isinstance(span.col_lo, int):
            return True, False
        return _reduced(self._matrix(span.b, span.h), span)

    def _matrix(self, b: int, h: int) -> Array:
        """Return the mask of one batch item and head, (Sq or 1, Sk or 1)."""
        import numpy as np  # noqa: PLC0415

        if self.array.ndim < 2:
            return self.array.reshape(1, -1)
        index = [*map(int, np.unravel_index(b, self.batch))] if self.batch else []
        index += [h] if self.has_heads else []
        leading = self.array.shape[:-2]
        index = index[len(index) - len(leading) :]
        return self.array[tuple(0 if n == 1 else i for i, n in zip(index, leading, strict=True))]


@dataclass(frozen=True, eq=False)
class UnseenMask(AlignedMask):
    """The same without a look at the values: nothing is known of rectangles, and batch items and heads count as one."""

    lead = ()

    def reach(self, span: Span) -> Reach:  # noqa: ARG002
        """Return that nothing is known."""
        return True, False


def _reduced(matrix: Array, span: Span) -> tuple[Array, Array]:
    """Return whether any, and whether all, of each rectangle of a grid is true."""
    import numpy as np  # noqa: PLC0415

    answers = []
    for ufunc in (np.logical_or, np.logical_and):
        part = matrix
        for axis, lo, hi in ((0, span.row_lo.ravel(), span.row_hi.max()), (1, span.col_lo.ravel(), span.col_hi.max())):
            if part.shape[axis] > 1:
                part = part[: hi + 1] if axis == 0 else part[:, : hi + 1]
                part = ufunc.reduceat(part, lo, axis=axis)
        answers.append(part)
    return answers[0], answers[1]


@dataclass(frozen=True, eq=False)
class BiasMask(Mask):
    """Pairs to which a bias does not add minus infinity."""

    bias: Bias

    def allowed(self, region: Region) -> Array:
        """Look at what the bias adds."""
        return evaluated(self.bias, region) != -math.inf


@dataclass(frozen=True, eq=False)
class RowMask(Mask):
    """Query rows before ``lengths[b]``, counted from row 0, whatever the positions."""

    lengths: int | Array
    _numbers = ("lengths",)
    _axes: ClassVar = {"lengths": "b"}
    _is_of_rows = True
    _is_of_places = True

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        """The batch shape of the limits, and a head."""
        return batch_and_head(self.lengths)

    def allowed(self, region: Region) -> Array:
        """Return True for the rows that are no padding."""
        return region.row < region.per_batch(self.lengths)

    def reach(self, span: Span) -> Reach:
        """Compare the first and the last row with the length."""
        return before(span, (span.row_lo, span.row_hi), self.lengths)
