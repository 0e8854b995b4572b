"""Where the scores of a call lie: their library, axes and positions, without how they are computed."""

from dataclasses import dataclass

from attention_xp._backend.dtypes import computation_dtype
from attention_xp._scores.packing import Packing
from attention_xp._typing import Array, DType, Namespace

__all__ = ["Frame", "frame_of"]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The scores ``(..., H, Sq, Sk)``: their library and axes, and the positions of rows and keys."""

    xp: Namespace
    query: Array  # for the device and Sq
    dtype: DType  # of the computation
    batch: tuple[int, ...]
    heads: int | None
    Sk: int
    query_offset: int | Array | None = None
    key_offset: int | Array | None = None  # an array (), only in a program of JAX
    key_positions: Array | None = None  # (..., 1, 1, Sk) int32, where positions are not columns plus an offset
    item_ids: Array | None = None  # (..., 1, 1, 1) int32, where batch items are not numbered from 0
    head_ids: Array | None = None  # (H, 1, 1) int32, likewise
    packing: Packing | None = None  # for packed sequences whose bounds only the device knows

    @property
    def ndim(self) -> int:
        """Number of axes of the scores."""
        return len(self.batch) + (2 if self.heads is None else 3)

    @property
    def lead(self) -> tuple[int, ...]:
        """Leading axes of the scores: batch, then heads where there are heads."""
        return self.batch if self.heads is None else (*self.batch, self.heads)

    @property
    def keys_count_up(self) -> bool:
        """Whether the positions of the keys rise by one from column to column."""
        return self.key_positions is None and self.packing is None

    @property
    def shape(self) -> tuple[int, ...]:
        """``(..., H, Sq, Sk)``."""
        return (*self.lead, self.query.shape[-2], self.Sk)


def frame_of(xp: Namespace, query: Array, batch: tuple[int, ...], heads: int | None, Sk: int) -> Frame:
    """Return the frame of the scores of a query and so many keys, both from position 0 on."""
    return Frame(xp=xp, query=query, dtype=computation_dtype(xp, query.dtype), batch=batch, heads=heads, Sk=Sk)
