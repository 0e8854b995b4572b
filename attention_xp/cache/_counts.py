"""How many rows an append adds: checked, as an array, and as plain numbers where these are known."""

from numbers import Integral
from typing import Any, NamedTuple

from attention_xp._backend.libraries import common_namespace, device
from attention_xp._backend.values import as_int32, known_integers, within
from attention_xp._checks.arrays import check_integers, check_placement, shapes
from attention_xp._checks.numbers import check_position
from attention_xp._typing import Array, Namespace
from attention_xp.cache._caches import Cache, PagedCache
from attention_xp.cache._written import Block

__all__ = ["Step", "batch_integers", "fields", "known_lengths", "most_of"]


def known_lengths(xp: Namespace, cache: Cache) -> list[int] | None:
    """Return the lengths of a cache as plain ints, where they are in host memory."""
    known = known_integers(xp, cache.lengths)
    if known and min(known) < 0:
        raise ValueError(f"the lengths of a cache must not be negative, got {known}")
    return known


class Step(NamedTuple):
    """The rows of an append."""

    xp: Namespace
    rows: int  # of the arrays
    old: Array  # the lengths before, (B,) int32
    given: Array | None  # how many of the rows count, (B,) int32; None for all of them
    new: Array  # the lengths afterwards, (B,) int32
    known: tuple[list[int], list[int]] | None  # the numbers of `old` and `counts`, where they lie in host memory
    known_new: list[int] | None  # those of `new`

    @classmethod
    def of(cls, xp: Namespace, cache: Cache, key: Array, lengths: Any) -> "Step":
        """Return the append of rows that were checked, of which so many count."""
        rows, old = key.shape[2], known_lengths(xp, cache)
        counts, added = None, None if old is None else [rows] * len(old)
        if lengths is not None:
            counts = batch_integers(xp, cache.lengths, "lengths", lengths)
            added = known_integers(xp, counts)
            if added is not None and not all(0 <= n <= rows for n in added):
                raise ValueError(f"lengths must lie between 0 and the {rows} rows of key, got {added}")
            counts = within(xp, counts, 0, rows)
        new = cache.lengths + (rows if counts is None else counts)
        if old is None or added is None:
            return cls(xp, rows, cache.lengths, counts, new, None, None)
        known_new = [a + b for a, b in zip(old, added, strict=True)]
        return cls(xp, rows, cache.lengths, counts, new, (old, added), known_new)

    @property
    def counts(self) -> Array:
        """How many of the rows count, (B,) int32."""
        if self.given is not None:
            return self.given
        like = self.old
        return self.xp.full((like.shape[0],), self.rows, dtype=self.xp.int32, device=device(like))

    def blocks(self, capacity: int) -> list[Block] | None:
        """Return the slots of each item, of so many that are filled in turns; ``None`` where they are not known, or go round."""
        if self.known is None:
            return None
        found = [(b, old % capacity, added) for b, (old, added) in enumerate(zip(*self.known, strict=True))]
        for _, start, count in found:
            if start + count > capacity:
                return None
        return found

    def refuse_beyond(self, capacity: int, what: str) -> None:
        """Refuse lengths that are known to exceed a capacity."""
        if self.known is None or max(self.known_new or (0,)) <= capacity:
            return
        for b, (old, added) in enumerate(zip(*self.known, strict=True)):
            if added > 0 and old + added > capacity:
                raise ValueError(
                    f"the cache overflows: item {b} has {old} positions and is given {added} more, but there is room for "
                    f"{capacity} ({what})"
                )

    def positions(self) -> tuple[Array, Array]:
        """Return the positions of the rows, and which of them count, both (B, rows)."""
        number = self.xp.arange(self.rows, dtype=self.xp.int32, device=device(self.old))[None, :]
        return self.old[:, None] + number, number < self.counts[:, None]


def batch_integers(xp: Namespace, like: Array, name: str, given: Any) -> Array:
    """Return an int, or an integer array of the batch shape, as an array (B,) int32.

    `like` has ``B`` as its first axis.
    """
    B = like.shape[0]
    if isinstance(given, Integral):
        return xp.full((B,), check_position(name, given), dtype=xp.int32, device=device(like))
    if hasattr(given, "dtype"):  # of another library, its dtypes would not be known
        common_namespace(cache=like, **{name: given})
    check_integers(xp, name, given, "an int or an integer array")
    check_placement(xp, cache=like, **{name: given})
    if tuple(given.shape) not in ((), (B,), (1,)):
        raise ValueError(f"{name} must hold one number for each batch item: expected ({B},), {shapes(**{name: given})}")
    return xp.broadcast_to(as_int32(xp, given), (B,))


def fields(cache: Cache) -> dict[str, Array]:
    """Return the arrays of a cache by the names that a message calls them."""
    return {f"cache.{name}": array for name, array in zip(cache._fields, cache, strict=True)}


def most_of(cache: Cache) -> int:
    """Return the number of positions that an item may have in memory."""
    if isinstance(cache, PagedCache):
        return int(cache.block_table.shape[1] * cache.key_pages.shape[2])
    return int(cache.key.shape[2])
