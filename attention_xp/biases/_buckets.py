"""A number for every bucket of distances (T5)."""

import math

from attention_xp._backend.libraries import common_namespace, device, padded
from attention_xp._backend.shapes import filled_up
from attention_xp._backend.values import FAR, all_above
from attention_xp._checks.arrays import check_floating, fits, shapes
from attention_xp._checks.numbers import check_count, check_flag
from attention_xp._scores.region import Region
from attention_xp._typing import Array, Namespace
from attention_xp.biases._bias import Bias, spread_over_lead
from attention_xp.masks._pairs import rule

__all__ = ["RelativePositionBias"]


@rule
class RelativePositionBias(Bias):
    r"""Every head adds a learned number for the bucket that the distance from query to key falls into.

    .. math:: b_{hqk} = T_{\mathrm{bucket}(k - q),\, h}

    With :math:`n` buckets for a direction, distances below :math:`e = \lfloor n / 2 \rfloor` have one each. The others
    share the rest, whose widths grow in proportion to the distance: bucket :math:`e + i` begins at
    :math:`e \, (d_{\max} / e)^{i / (n - e)}`, and the last one has no end.

    Parameters
    ----------
    table : array
        :math:`T`, ``(num_buckets, H)``; ``(num_buckets,)`` or ``(num_buckets, 1)`` is for all heads, or for inputs
        without a heads axis.
    bidirectional : bool, default: True
        Whether keys after the query have buckets of their own, the second half of the table, as in an encoder.
        Otherwise they share bucket 0 with the query itself, and the whole table is for keys before it.
    max_distance : int, default: 128
        :math:`d_{\max}`: keys from here on share the last bucket.

    Raises
    ------
    TypeError
        If `table` is no floating array, or an option is of the wrong kind.
    ValueError
        If `table` has an odd number of buckets for two directions, less than 2 for a direction, or, when it is used,
        another number of heads than the query; or if `max_distance` is not above :math:`e`.

    References
    ----------
    Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text transformer", JMLR 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import flash_attention
    >>> from attention_xp.biases import RelativePositionBias
    >>> x, table = np.ones((2, 8, 16, 64)), np.zeros((32, 8))
    >>> flash_attention(x, x, x, bias=RelativePositionBias(table), scale=1.0).shape
    (2, 8, 16, 64)
    """

    table: Array
    bidirectional: bool
    max_distance: int
    shift_invariant = True

    def __init__(self, table: Array, *, bidirectional: bool = True, max_distance: int = 128) -> None:
        check_floating(common_namespace(table=table), table=table)
        self.table = table
        self.bidirectional = check_flag("bidirectional", bidirectional)
        self.max_distance = check_count("max_distance", max_distance)
        if table.ndim not in (1, 2):
            raise ValueError(
                f"table must hold a number per bucket and head: expected table (num_buckets, H), {shapes(table=table)}"
            )
        directions = 2 if bidirectional else 1
        buckets = table.shape[0] // directions
        if table.shape[0] % directions or buckets < 2:
            least = "an even num_buckets from 4 on" if bidirectional else "num_buckets from 2 on"
            raise ValueError(f"table has {table.shape[0]} buckets: expected {least}, {shapes(table=table)}")
        if self.max_distance <= buckets // 2:
            raise ValueError(
                f"max_distance must be above {buckets // 2}, the number of buckets of one distance each, "
                f"got {max_distance} and table {tuple(table.shape)}"
            )
        self._starts = _starts(buckets, self.max_distance)

    @property
    def _axes(self) -> dict[str, str]:  # type: ignore[override]
        return {"table": ".h"[: self.table.ndim]}

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        """Return the number of heads of the table."""
        return tuple(self.table.shape[1:])

    def check(self, xp: Namespace, query: Array, batch: tuple[int, ...], heads: int | None) -> None:
        """Check library, device and the number of heads."""
        super().check(xp, query, batch, heads)
        if not fits(tuple(self.table.shape[1:]), (1 if heads is None else heads,)):
            given = "no heads axis" if heads is None else f"H = {heads}"
            raise ValueError(
                f"table must hold one number per head: expected table (num_buckets, H) with {given}, "
                f"{shapes(query=query, table=self.table)}"
            )

    def values(self, region: Region) -> Array:
        """Look up the bucket of each diagonal, and copy it along the diagonal; of each pair where positions jump."""
        if not _has_diagonals(region):
            return self._looked_up(region, region.kv_idx - region.q_idx, region.head)
        line = self._looked_up(region, _diagonals(region), region.head[..., 0])
        return _spread_out(region.xp, line, region.sizes[-2], region.sizes[-1])

    def _looked_up(self, region: Region, relative: Array, head: Array) -> Array:
        """Return the number for each position of a key relative to the query, and each head."""
        xp, table, place = region.xp, region.floating(self.table), self._bucket(region.xp, relative)
        if table.ndim > 1 and table.shape[1] > 1:
            place = place * table.shape[1] + head
        return xp.reshape(xp.take(xp.reshape(table, (-1,)), xp.reshape(place, (-1,)), axis=0), place.shape)

    @property
    def may_exclude(self) -> bool:  # type: ignore[override]
        """Return whether a number of the table may be minus infinity; True where its values are not on the host."""
        return not all_above(common_namespace(table=self.table), self.table, -math.inf)

    def bound(self, region: Region) -> float:
        """Return the largest number of the table."""
        return float(region.xp.max(region.xp.abs(region.floating(self.table))))

    def vjp(self, region: Region, grad_scores: Array) -> tuple[Array, ...]:
        """Sum up the gradient over the pairs of each bucket."""
        xp = region.xp
        sums = self._sums(region, grad_scores)  # (..., h, num_buckets)
        shape = tuple(self.table.shape)
        spread = spread_over_lead(region, sums, shape[1:])  # (H, num_buckets)
        return (xp.reshape(spread if spread.ndim == 1 else xp.matrix_transpose(spread), shape),)

    def _bucket(self, xp: Namespace, relative: Array) -> Array:
        """Return the bucket, int32, of the position of a key relative to the query."""
        starts = xp.asarray(self._starts, dtype=xp.int32, device=device(relative))
        before = xp.abs(relative) if self.bidirectional else xp.where(relative < 0, -relative, 0)
        found = xp.searchsorted(starts, xp.reshape(before, (-1,)), side="right")
        buckets = xp.reshape(xp.astype(found, xp.int32) - 1, relative.shape)
        return xp.where(relative > 0, buckets + len(self._starts), buckets) if self.bidirectional else buckets

    def _sums(self, region: Region, grad_scores: Array) -> Array:
        """Return the sums (..., h, num_buckets) over the pairs of each bucket."""
        xp, count = region.xp, self.table.shape[0]
        if not _has_diagonals(region):
            bucket = self._bucket(xp, region.kv_idx - region.q_idx)
            parts = [xp.sum(xp.where(bucket == i, grad_scores, 0.0), axis=(-2, -1)) for i in range(count)]
            return xp.stack(parts, axis=-1)
        sums = xp.expand_dims(_diagonal_sums(xp, grad_scores), axis=-2)  # (..., h, 1, L)
        every = xp.arange(count, dtype=xp.int32, device=device(sums))
        bucket = xp.expand_dims(self._bucket(xp, _diagonals(region)), axis=-1)
        is_bucket = bucket == filled_up(xp, every, bucket.ndim)  # (..., 1, L, num_buckets)
        return xp.matmul(sums, xp.astype(is_bucket, sums.dtype))[..., 0, :]


def _starts(buckets: int, max_distance: int) -> tuple[int, ...]:
    """Return the least distance of each bucket of one direction, exactly, in integers."""
    exact = buckets // 2
    rest = buckets - exact
    starts = list(range(exact))
    for i in range(rest):
        # The least d with (d / exact) ** rest >= (max_distance / exact) ** i.
        wanted = max_distance**i * exact ** (rest - i)
        low, high = exact, max_distance
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if middle**rest >= wanted else (middle + 1, high)
        starts.append(min(low, FAR))
    return tuple(starts)


def _has_diagonals(region: Region) -> bool:
    """Whether positions along rows and keys rise by one; those of packed sequences jump."""
    return region.frame.keys_count_up and 0 not in region.sizes[-2:]


def _diagonals(region: Region) -> Array:
    """Return the position of keys relative to the query along each diagonal, from the lower left to the upper right.

    It is (..., 1, L) with ``L = m + n - 1``, and has no axis for the rows.
    """
    xp, (m, n) = region.xp, region.sizes[-2:]
    along = xp.arange(m + n - 1, dtype=xp.int32, device=device(region.frame.query))
    return region.kv_idx[..., 0, :1] - region.q_idx[..., -1, :] + filled_up(xp, along, region.frame.ndim - 1)


def _spread_out(xp: Namespace, line: Array, m: int, n: int) -> Array:
    """Return (..., m, n) with one number of a line (..., m + n - 1) along each diagonal.

    The line is repeated with one column more than it has, and read as rows without that column: each row begins one place
    earlier than the one before.
    """
    *lead, length = line.shape
    longer = xp.concat([line, line[..., :1]], axis=-1)
    rows = xp.reshape(xp.broadcast_to(longer[..., None, :], (*lead, m, length + 1)), (*lead, m * (length + 1)))
    return xp.reshape(rows[..., m - 1 : m - 1 + m * length], (*lead, m, length))[..., :n]


def _diagonal_sums(xp: Namespace, x: Array) -> Array:
    """Sum (..., m, n) along its diagonals: (..., m + n - 1), from the lower left corner to the upper right."""
    *lead, m, n = x.shape
    wide = padded(xp, xp.flip(x, axis=-2), [(0, 0)] * (x.ndim - 1) + [(0, m)])
    # One column less than there are: in memory, each row begins one place later than the row before.
    skewed = xp.reshape(wide, (*lead, m * (n + m)))[..., : m * (n + m - 1)]
    return xp.sum(xp.reshape(skewed, (*lead, m, n + m - 1)), axis=-2)
