"""Rules given by arrays of flags: of global positions, and of blocks."""

from typing import Any, ClassVar

from attention_xp._backend.dtypes import dtype_name, is_boolean
from attention_xp._backend.libraries import common_namespace
from attention_xp._backend.sizes import is_open
from attention_xp._backend.values import FAR, within
from attention_xp._checks.arrays import shapes
from attention_xp._checks.numbers import check_count
from attention_xp._scores.region import Region, Span
from attention_xp._typing import Array
from attention_xp.masks._look_up import by_position, changes, item_of, items, remembered, summable, taken
from attention_xp.masks._mask import Mask
from attention_xp.masks._pairs import Reach, rule
from attention_xp.masks._summaries import Counts

__all__ = ["BlockMask", "GlobalMask"]


@rule
class GlobalMask(Mask):
    r"""Global positions attend everything and are attended by everything: :math:`g_q \lor g_k`.

    Parameters
    ----------
    is_global : array
        ``(S,)``, boolean: whether a position is global.

    Raises
    ------
    TypeError
        If `is_global` is no boolean array.
    ValueError
        If it does not have one axis.

    Notes
    -----
    A position outside of `is_global` is not global.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp.masks import GlobalMask
    >>> GlobalMask(np.asarray([False, True, False])).to_array(3, 3)
    array([[False,  True, False],
           [ True,  True,  True],
           [False,  True, False]])
    """

    is_global: Array

    def __init__(self, is_global: Array) -> None:
        _check_boolean("is_global", is_global)
        if is_global.ndim != 1:
            raise ValueError(f"is_global must have 1 axis: expected is_global (S,), {shapes(is_global=is_global)}")
        self.is_global = is_global

    @property
    def extent(self) -> tuple[int, int]:  # type: ignore[override]
        """Return how many positions are known."""
        return self.is_global.shape[0], self.is_global.shape[0]

    def allowed(self, region: Region) -> Array:
        """Return the rows and columns of global positions."""
        q_global, has_q = by_position(region, self.is_global, region.q_idx)
        k_global, has_k = by_position(region, self.is_global, region.kv_idx)
        return (q_global & has_q) | (k_global & has_k)

    def seams(self, q_stop: int, k_stop: int) -> tuple[list[int], list[int]]:  # noqa: ARG002
        """Return where runs of global positions begin and end."""
        positions = changes(self.is_global)
        return positions, positions

    def reach(self, span: Span) -> Reach:
        """Count the global positions among the rows and among the columns."""
        found = summable(span, self.is_global)
        if found is None or is_open(*self.is_global.shape):
            return True, False
        xp, flags = found
        counts = remembered(self, "counts", xp, lambda: Counts.of(xp, flags[None, None, :]))
        q = counts.between(span, 0, (0, 0), (span.q_lo, span.q_hi))
        k = counts.between(span, 0, (0, 0), (span.k_lo, span.k_hi))
        return (q > 0) | (k > 0), (q == span.q_hi - span.q_lo + 1) | (k == span.k_hi - span.k_lo + 1)


@rule
class BlockMask(Mask):
    r"""Blocks of queries attend blocks of keys: :math:`L_{\lfloor q / n \rfloor, \lfloor k / m \rfloor}`.

    Parameters
    ----------
    layout : array
        ``(..., query blocks, key blocks)``, boolean: :math:`L`. Leading axes are heads, or batch and heads, and
        broadcast against those of the query.
    block_size : int or pair of int
        :math:`n` queries by :math:`m` keys in a block; an int stands for both.

    Raises
    ------
    TypeError
        If `layout` is no boolean array, or a block size is no int.
    ValueError
        If `layout` has fewer than two axes, or a block size is below 1.

    Notes
    -----
    Positions outside of the layout attend nothing and are not attended.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp.masks import BlockMask
    >>> BlockMask(np.asarray([[True, False], [False, True]]), (1, 2)).to_array(2, 4)
    array([[ True,  True, False, False],
           [False, False,  True,  True]])
    """

    layout: Array
    block_size: tuple[int, int]
    _axes: ClassVar = {"layout": "bh.."}

    @property
    def _blocks(self) -> list[tuple[int, int]]:
        return [self.block_size]

    def __init__(self, layout: Array, block_size: int | tuple[int, int]) -> None:
        _check_boolean("layout", layout)
        if layout.ndim < 2:
            raise ValueError(
                f"layout needs at least 2 axes: expected layout (..., query blocks, key blocks), {shapes(layout=layout)}"
            )
        sizes = block_size if isinstance(block_size, tuple | list) else (block_size, block_size)
        if len(sizes) != 2:
            raise ValueError(f"block_size must be an int or a pair of int, got {block_size!r}")
        self.layout = layout
        self.block_size = check_count("block_size", sizes[0]), check_count("block_size", sizes[1])

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        """Return the leading axes of the layout."""
        return tuple(self.layout.shape[:-2])

    @property
    def extent(self) -> tuple[int, int]:  # type: ignore[override]
        """Return how many positions the layout covers."""
        (rows, columns), (n, m) = self.layout.shape[-2:], self.block_size
        return rows * n, columns * m

    def allowed(self, region: Region) -> Array:
        """Look up the blocks of queries and keys."""
        allowed, inside = self._looked_up(region, self.layout)
        return allowed & inside

    def _looked_up(self, region: Region, table: Array) -> tuple[Array, Array]:
        """Return for each pair what a table, laid out as the layout, has for its block, and whether it has one."""
        xp, (n, m), (rows, columns) = region.xp, self._steps, table.shape[-2:]
        i, j = region.q_idx // n, region.kv_idx // m
        inside = (i >= 0) & (i < rows) & (j >= 0) & (j < columns)
        if 0 in table.shape:
            return inside, inside
        block = items(region, self.lead) * rows + within(xp, i, 0, rows - 1)
        flat = xp.reshape(region.own(table), (-1,))
        return taken(xp, flat, block * columns + within(xp, j, 0, columns - 1)), inside

    def seams(self, q_stop: int, k_stop: int) -> tuple[list[int], list[int]]:
        """Return where blocks begin."""
        n, m = self.block_size
        return list(range(n, q_stop, n)), list(range(m, k_stop, m))

    def reach(self, span: Span) -> Reach:
        """Count the blocks that the layout allows."""
        found = summable(span, self.layout)
        if found is None or 0 in self.layout.shape or is_open(*self.layout.shape):
            return True, False
        (n, m), item = self._steps, item_of(span, self.lead)
        rows, columns = (span.q_lo // n, span.q_hi // n), (span.k_lo // m, span.k_hi // m)
        some, every = (self._counted(span, *found, which, item, rows, columns) for which in ("any", "all"))
        return some > 0, every == (rows[1] - rows[0] + 1) * (columns[1] - columns[0] + 1)

    @property
    def _steps(self) -> tuple[int, int]:
        return min(self.block_size[0], FAR), min(self.block_size[1], FAR)

    def _counted(self, span: Span, xp: Any, layout: Array, which: str, item: Any, rows: Any, columns: Any) -> Any:
        """Count the blocks of one item, or those that any or all items allow."""
        layout = xp.reshape(layout, (-1, *layout.shape[-2:]))
        if item is None:
            counts = remembered(
                self, which, xp, lambda: Counts.of(xp, getattr(xp, which)(layout, axis=0, keepdims=True))
            )
        else:
            counts = remembered(self, "counts", xp, lambda: Counts.of(xp, layout))
        return counts.between(span, 0 if item is None else item, rows, columns)


def _check_boolean(name: str, array: Array) -> None:
    if not is_boolean(common_namespace(**{name: array}), array.dtype):
        raise TypeError(f"{name} must be a boolean array, got {dtype_name(array.dtype)}")
