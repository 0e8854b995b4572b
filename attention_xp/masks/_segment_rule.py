"""The rule that positions attend their own segment."""

from typing import ClassVar

from attention_xp._backend.dtypes import dtype_name, is_alike
from attention_xp._backend.libraries import common_namespace
from attention_xp._backend.sizes import is_open
from attention_xp._checks.arrays import check_integers, shapes
from attention_xp._scores.region import Region, Span
from attention_xp._typing import Array
from attention_xp.masks._look_up import by_position, changes, remembered, summable
from attention_xp.masks._mask import Mask
from attention_xp.masks._pairs import Reach, rule
from attention_xp.masks._summaries import Extremes

__all__ = ["SegmentMask"]


@rule
class SegmentMask(Mask):
    r"""Queries attend keys of their own segment: :math:`s_q = s_k`.

    Several sequences packed into one attend only themselves, as the tokens of one image patch or document do.

    Parameters
    ----------
    query_ids : array
        ``(S,)``, or batch shape + ``(S,)``: the segment of each query position, as an integer.
    key_ids : array, optional
        The segment of each key position, likewise. Default: `query_ids`.

    Raises
    ------
    TypeError
        If the ids are no integer arrays of one library and one dtype.
    ValueError
        If they have no axis.

    Notes
    -----
    A position outside of the ids belongs to no segment: it attends nothing and is not attended. Ids may be any integers, negative
    ones too, and mean nothing but whether they are equal: a query id that no key has attends nothing, and a key id that no query
    has is not attended.

    Tiles are skipped, or taken whole, by the least and the largest id of their queries and keys. With ids that begin at one number
    and stay or rise by 1, no tile is asked about pair by pair without need; with others some are, and the result is the same.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp.masks import SegmentMask
    >>> SegmentMask(np.asarray([0, 0, 1])).to_array(3, 3)
    array([[ True,  True, False],
           [ True,  True, False],
           [False, False,  True]])
    """

    query_ids: Array
    key_ids: Array | None = None
    _axes: ClassVar = {"query_ids": "b.", "key_ids": "b."}

    def __init__(self, query_ids: Array, key_ids: Array | None = None) -> None:
        given = {"query_ids": query_ids} | ({} if key_ids is None else {"key_ids": key_ids})
        xp = common_namespace(**given)
        for name, ids in given.items():
            check_integers(xp, name, ids)
            if ids.ndim < 1:
                raise ValueError(f"{name} needs at least 1 axis: expected {name} (..., S), {shapes(**{name: ids})}")
        if key_ids is not None and not is_alike(key_ids.dtype, query_ids.dtype):
            kinds = dtype_name(key_ids.dtype), dtype_name(query_ids.dtype)
            raise TypeError(f"key_ids is {kinds[0]} but query_ids is {kinds[1]}: expected one dtype")
        self.query_ids = query_ids
        self.key_ids = key_ids

    @property
    def _keys(self) -> Array:
        return self.query_ids if self.key_ids is None else self.key_ids

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        """Return the batch shape and a head."""
        one, other = (tuple(ids.shape[:-1]) for ids in (self.query_ids, self._keys))
        longer, shorter = (one, other) if len(one) > len(other) else (other, one)
        shorter = (1,) * (len(longer) - len(shorter)) + shorter
        return (*(m if n == 1 else n for n, m in zip(longer, shorter, strict=True)), 1) if longer else ()

    @property
    def extent(self) -> tuple[int, int]:  # type: ignore[override]
        """Return how many positions have an id."""
        return self.query_ids.shape[-1], self._keys.shape[-1]

    def allowed(self, region: Region) -> Array:
        """Compare the ids of queries and keys."""
        q_ids, has_q = by_position(region, self.query_ids, region.q_idx)
        k_ids, has_k = by_position(region, self._keys, region.kv_idx)
        return (q_ids == k_ids) & has_q & has_k

    def seams(self, q_stop: int, k_stop: int) -> tuple[list[int], list[int]]:  # noqa: ARG002
        """Return where segments begin."""
        return tuple(changes(ids) if ids.ndim == 1 else [] for ids in (self.query_ids, self._keys))  # type: ignore[return-value]

    def reach(self, span: Span) -> Reach:
        """Compare the ranges of the ids of queries and keys."""
        q_ids, k_ids = summable(span, self.query_ids), summable(span, self._keys)
        shape = (*self.query_ids.shape, *self._keys.shape)
        if q_ids is None or k_ids is None or 0 in shape or is_open(*shape):
            return True, False
        q = remembered(self, "queries", q_ids[0], lambda: Extremes.of(*q_ids))
        k = remembered(self, "summed_keys", k_ids[0], lambda: Extremes.of(*k_ids))
        q_least, q_most, q_some, q_all = q.between(span, span.q_lo, span.q_hi)
        k_least, k_most, k_some, k_all = k.between(span, span.k_lo, span.k_hi)
        possible = (q_least <= k_most) & (k_least <= q_most) & q_some & k_some
        return possible, possible & (q_least == k_most) & (k_least == q_most) & (q_least == k_least) & q_all & k_all
