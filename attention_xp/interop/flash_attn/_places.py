"""Where the keys of each item lie in a cache: in a row of their own, or in pages."""

from typing import Any, NamedTuple

from attention_xp._backend.libraries import common_namespace, device, is_jax_namespace
from attention_xp._backend.rows import along, put_rows
from attention_xp._backend.values import as_int32, known_integers, within
from attention_xp._checks.arrays import check_integers, check_placement, shapes
from attention_xp._typing import Array, Namespace
from attention_xp.cache._counts import batch_integers
from attention_xp.cache._pages import missing
from attention_xp.interop.flash_attn._layout import swapped
from attention_xp.interop.flash_attn._options import check_axes

__all__ = ["Places", "item_integers"]


class Places(NamedTuple):
    """The pages of each item, of which a cache without a block table has one each, and how far they are filled."""

    xp: Namespace
    table: Array  # (B, pages of an item) int32
    size: int  # of a page
    is_plain: bool  # whether the items are the first of the cache, in order
    old: Array  # how many keys each item has before new ones are written, (B,) int32
    new: Array  # and afterwards
    wrong: Array | None  # which items have no room or no page, (B,); None where it is known that all have

    @classmethod
    def of(
        cls, cache: Array, batch: int, seqlens: Any, items: Any, block_table: Any, rows: int, *, xp: Namespace
    ) -> "Places":
        """Check the arguments that say where keys lie."""
        count, size = cache.shape[0], cache.shape[1]
        if items is not None and block_table is not None:
            raise ValueError(
                "cache_batch_idx cannot be given together with block_table, which says which pages belong to an item"
            )
        if block_table is not None:
            table = _checked_table(xp, cache, block_table, batch)
        elif items is not None:
            table = item_integers(xp, cache, batch, "cache_batch_idx", items)[:, None]
        else:
            table = xp.arange(batch, dtype=xp.int32, device=device(cache))[:, None]
            if count < batch:
                raise ValueError(
                    f"k_cache has {count} items but q has {batch}: expected as many, or cache_batch_idx, {shapes(k_cache=cache)}"
                )
        room = table.shape[1] * size
        if room == 0:
            pages = {} if block_table is None else {"block_table": table}
            raise ValueError(
                f"k_cache has no room: expected k_cache (B, capacity, Hkv, D), {shapes(k_cache=cache, **pages)}"
            )
        old = item_integers(xp, cache, batch, "cache_seqlens", room if seqlens is None else seqlens)
        new = old + rows
        wrong = missing(xp, table, new, size, count) | (old < 0)
        known = known_integers(xp, xp.astype(wrong, xp.int32))
        if known is not None and 1 in known:
            raise ValueError(_complaint(known.index(1), table, old, new, room))
        return cls(xp, table, size, items is block_table is None, old, new, wrong if known is None else None)

    @property
    def room(self) -> int:
        """How many positions an item may have."""
        return int(self.table.shape[1]) * self.size

    @property
    def ends(self) -> Any:
        """The lengths afterwards, as one int where they are known to be that, which is cheaper."""
        known = None if is_jax_namespace(self.xp) else known_integers(self.xp, self.new)
        return known[0] if known and known.count(known[0]) == len(known) else self.new

    def positions(self, rows: int) -> Array:
        """Return the positions of new rows, (B, rows)."""
        return self.old[:, None] + self.xp.arange(rows, dtype=self.xp.int32, device=device(self.old))[None, :]

    def write(self, cache: Array, rows: Array) -> Array:
        """Write rows (B, n, H, D) into a cache, and return it; on JAX, return another."""
        xp, (B, n) = self.xp, rows.shape[:2]
        position = self.positions(n)
        pages = along(xp, self.table, within(xp, position // self.size, 0, self.table.shape[1] - 1), axis=1)
        units, slots = (xp.reshape(a, (B * n,)) for a in (pages, position % self.size))
        keep = None
        if self.wrong is not None:
            keep = xp.reshape(xp.broadcast_to(~self.wrong[:, None], (B, n)), (B * n,))
        return swapped(
            xp, put_rows(xp, swapped(xp, cache), units, slots, keep, xp.reshape(rows, (B * n, *rows.shape[2:])))
        )


def item_integers(xp: Namespace, cache: Array, batch: int, name: str, given: Any) -> Array:
    """Return an int, or integers of each item of the query, as an array (B,) int32."""
    if hasattr(given, "shape") and tuple(given.shape) != (batch,):
        raise ValueError(
            f"{name} must hold one number for each item of q: expected (B,) = {(batch,)}, {shapes(**{name: given})}"
        )
    if hasattr(given, "dtype"):
        common_namespace(k_cache=cache, **{name: given})
    like = xp.zeros((batch,), dtype=xp.int32, device=device(cache))
    return batch_integers(xp, like, name, given)


def _checked_table(xp: Namespace, cache: Array, table: Array, batch: int) -> Array:
    common_namespace(k_cache=cache, block_table=table)
    check_integers(xp, "block_table", table)
    check_placement(xp, k_cache=cache, block_table=table)
    check_axes("block_table", table, "(B, any)")
    if table.shape[0] != batch:
        raise ValueError(
            f"block_table must hold the pages of each item of q: expected ({batch}, any), {shapes(block_table=table)}"
        )
    return as_int32(xp, table)


def _complaint(item: int, table: Array, old: Array, new: Array, room: int) -> str:
    before, after = int(old[item]), int(new[item])
    if before < 0:
        return f"cache_seqlens[{item}] must not be negative, got {before}"
    if after > room:
        return f"cache_seqlens[{item}] is {before}, with new keys {after}, but there is room for {room} in the cache"
    return f"item {item} reaches an entry of cache_batch_idx or block_table that the cache does not have, got {table[item, ...].tolist()}"
