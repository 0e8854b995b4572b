"""Pages: which item gets which when it grows, and which are copied because others show them."""

from typing import Any, NamedTuple

from attention_xp._backend.libraries import cumulative_sum, device
from attention_xp._backend.rows import along, counted
from attention_xp._backend.values import host_view, known_integers, within
from attention_xp._typing import Array, Namespace
from attention_xp.cache._caches import PagedCache, page_bounds
from attention_xp.cache._counts import Step
from attention_xp.cache._written import Block, Rows, in_host_memory, untouched_first, write, write_blocks

__all__ = ["append_to_pages", "laid_out", "missing", "reached", "readable", "recounted"]


class _Granted(NamedTuple):
    """The pages after an append, and what has to be copied before rows are written."""

    table: Array
    references: Array
    copied: Array  # (B,) whether the last page of an item is copied
    source: Array  # (B,) that page
    target: Array  # (B,) where it is copied to


def append_to_pages(cache: PagedCache[Any], step: Step, key: Array, value: Array) -> PagedCache[Any]:
    """Return a cache with more rows; pages that other items share are copied first."""
    xp = step.xp
    most, size, _ = page_bounds(xp, cache)
    step.refuse_beyond(most * size, "the pages of an item")
    blocks = _within_pages(cache, step)
    if blocks is not None and in_host_memory(cache.key_pages, cache.value_pages, key, value):
        written = write_blocks(xp, cache.key_pages, cache.value_pages, blocks, (key, value), lambda: _shown(xp, cache))
        return PagedCache(written[0], written[1], cache.block_table, step.new, cache.references)
    granted = None if blocks is not None else _grant(cache, step)
    table, references = (cache.block_table, cache.references) if granted is None else granted[:2]
    position, counts = step.positions()
    pages = along(xp, table, within(xp, position // size, 0, most - 1), axis=1)
    keep = counts & (pages >= 0) & (position < most * size)
    flat = [xp.reshape(a, (-1,)) for a in (pages, position % size, keep)]
    new = [xp.reshape(xp.permute_dims(a, (0, 2, 1, 3)), (-1, a.shape[1], a.shape[3])) for a in (key, value)]
    rows = Rows(flat[0], flat[1], flat[2], new[0], new[1])
    if granted is not None:
        rows = _with_copies(cache, step, granted, rows)
    written = write(
        xp, cache.key_pages, cache.value_pages, rows, lambda: _shown(xp, cache), known=step.known is not None
    )
    return PagedCache(written[0], written[1], table, step.new, references)


def reached(xp: Namespace, table: Array, lengths: Array, size: int) -> Array:
    """Return which entries of a table (B, most) the lengths reach."""
    columns = xp.arange(table.shape[1], dtype=xp.int32, device=device(table))[None, :]
    return columns * size < lengths[:, None]


def readable(xp: Namespace, table: Array, lengths: Array, size: int, count: int) -> Array:
    """Return a table in which entries that no length reaches, or that are no page, name the first page."""
    is_read = reached(xp, table, lengths, size) & (table >= 0) & (table < count)
    return xp.where(is_read, table, 0)


def laid_out(xp: Namespace, key: Array, value: Array, table: Array) -> tuple[Array, Array, Array]:
    """Return the pages (num_pages, size, Hkv, D) of all items one behind the other, (T, Hkv, D), and their bounds (B + 1,)."""
    B, slots = table.shape[0], table.shape[1] * key.shape[1]
    pages = xp.reshape(table, (-1,))
    bounds = xp.arange(B + 1, dtype=xp.int32, device=device(table)) * slots
    key, value = (xp.reshape(xp.take(a, pages, axis=0), (B * slots, *a.shape[2:])) for a in (key, value))
    return key, value, bounds


def missing(xp: Namespace, table: Array, lengths: Array, size: int, count: int) -> Array:
    """Return which items have an entry in their table that their length reaches and that is no page, (B,)."""
    is_wrong = reached(xp, table, lengths, size) & ((table < 0) | (table >= count))
    return xp.any(is_wrong, axis=1) | (lengths > table.shape[1] * size)


def recounted(xp: Namespace, table: Array, lengths: Array, size: int, count: int) -> Array:
    """Return how many items have each page in their table, (num_pages,) int32."""
    return counted(xp, table, reached(xp, table, lengths, size) & (table >= 0), count)


def _pages_of(lengths: Array, size: int) -> Array:
    return (lengths + (size - 1)) // size


def _within_pages(cache: PagedCache[Any], step: Step) -> list[Block] | None:
    """Return the places of the rows where it is known that no item needs another page."""
    if step.known is None:
        return None
    size, blocks = cache.key_pages.shape[2], list[Block]()
    for b, (old, added) in enumerate(zip(*step.known, strict=True)):
        if added == 0:
            blocks.append((0, 0, 0))
            continue
        page = int(cache.block_table[b, old // size]) if old % size else -1
        is_page = 0 <= page < cache.references.shape[0]
        if not is_page or old % size + added > size or int(cache.references[page]) != 1:
            return None
        blocks.append((page, old % size, added))
    return blocks


def _grant(cache: PagedCache[Any], step: Step) -> _Granted:
    """Give pages to items that grow. Those that need few come first, so that who is left out could not be served."""
    xp, table, references = step.xp, cache.block_table, cache.references
    most, size, columns = page_bounds(xp, cache)
    count = cache.key_pages.shape[0]
    writes = (step.counts > 0) & ~missing(xp, table, step.old, size, count) & (step.new <= most * size)
    held, wanted = _pages_of(step.old, size), _pages_of(step.new, size)
    source, copied = _copied(cache, step, writes)
    need = xp.where(writes, wanted - held + xp.astype(copied, xp.int32), 0)
    order = xp.argsort(need, stable=True)
    total = cumulative_sum(xp, xp.take(need, order, axis=0), axis=0, dtype=xp.int32)
    total = xp.take(total, xp.argsort(order, stable=True), axis=0)  # pages of an item and of all that come before it
    fits = total <= xp.sum(xp.astype(references == 0, xp.int32), dtype=xp.int32)
    if step.known is not None and 0 in (known_integers(xp, xp.astype(fits, xp.int32)) or ()):
        wants, has = (int(n) for n in (xp.sum(need), xp.sum(xp.astype(references == 0, xp.int32))))
        raise ValueError(f"the cache overflows: pages needed are {wants}, and free ones {has} of {count}")
    granted, starts = writes & fits, held - xp.astype(copied, xp.int32)
    free = _free_first(cache, step, order, need, starts)
    number = columns - starts[:, None]  # of a new page, among those of its item
    page = xp.take(free, xp.reshape(within(xp, number + (total - need)[:, None], 0, count - 1), (-1,)), axis=0)
    is_new = granted[:, None] & (number >= 0) & (number < need[:, None])
    # Without a page of its own, an item must not write into that which it shares.
    is_kept = (columns < held[:, None]) & ~((copied & ~fits)[:, None] & (number == 0))
    new = xp.where(is_new, xp.reshape(page, table.shape), xp.where(is_kept, table, -1))
    target = along(xp, new, within(xp, starts, 0, most - 1)[:, None], axis=1)[:, 0]
    freed = counted(xp, source, copied, count)
    taken = counted(xp, new, is_new, count)
    return _Granted(new, references + taken - freed, copied & granted, source, target)


def _copied(cache: PagedCache[Any], step: Step, writes: Array) -> tuple[Array, Array]:
    """Return the last page of each item that is partly full, and whether the item must copy it before it writes."""
    xp = step.xp
    most, size, _ = page_bounds(xp, cache)
    last = within(xp, step.old // size, 0, most - 1)[:, None]
    page = along(xp, cache.block_table, last, axis=1)[:, 0]
    is_partial = writes & (step.old % size != 0)
    page = within(xp, page, 0, cache.references.shape[0] - 1)
    shares = xp.take(cache.references, page, axis=0)
    same = (page[:, None] == page[None, :]) & is_partial[:, None] & is_partial[None, :]
    item = xp.arange(page.shape[0], dtype=xp.int32, device=device(page))
    later = xp.any(same & (item[None, :] > item[:, None]), axis=1)
    everyone = xp.sum(xp.astype(same, xp.int32), axis=1, dtype=xp.int32) == shares
    return page, is_partial & (shares > 1) & (later | ~everyone)  # where all write, the last one keeps the page


def _free_first(cache: PagedCache[Any], step: Step, order: Array, need: Array, starts: Array) -> Array:
    """Return all pages in the order in which they are handed out: free ones, and of these first those to write in place.

    Items (B,) are served in an `order`. They need so many pages each, of which the first one becomes ``starts[b]`` in the table.
    """
    xp, references = step.xp, cache.references
    rank = 2 * xp.astype(references > 0, xp.int32)
    if step.known is None or not in_host_memory(cache.key_pages, cache.value_pages):
        return xp.astype(xp.argsort(rank, stable=True), xp.int32)
    from attention_xp.cache._neighbours import in_stretches  # noqa: PLC0415  # imports NumPy

    table, most = cache.block_table, cache.block_table.shape[1]
    last = along(xp, table, within(xp, starts - 1, 0, most - 1)[:, None], axis=1)[:, 0]
    last, need = (xp.take(a, order, axis=0).tolist() for a in (xp.where(starts > 0, last, -1), need))
    used = untouched_first(cache.key_pages, cache.value_pages)
    ranks = host_view(rank) if used is None else host_view(rank) + used
    return xp.asarray(in_stretches(ranks, zip(last, need, strict=True)), dtype=xp.int32, device=device(references))


def _with_copies(cache: PagedCache[Any], step: Step, granted: _Granted, rows: Rows) -> Rows:
    """Return the rows of an append after those of pages that are copied."""
    xp, size = step.xp, cache.key_pages.shape[2]
    if step.known is not None and 1 not in (known_integers(xp, xp.astype(granted.copied, xp.int32)) or (1,)):
        return rows
    B = granted.source.shape[0]
    slot = xp.arange(size, dtype=xp.int32, device=device(step.old))[None, :]
    keep = granted.copied[:, None] & (slot < step.old[:, None] % size)
    whole = [xp.reshape(xp.broadcast_to(a, (B, size)), (B * size,)) for a in (granted.target[:, None], slot, keep)]
    pages = [xp.take(a, granted.source, axis=0) for a in (cache.key_pages, cache.value_pages)]
    new = [xp.reshape(xp.permute_dims(a, (0, 2, 1, 3)), (B * size, a.shape[1], a.shape[3])) for a in pages]
    return Rows(*(xp.concat([a, b], axis=0) for a, b in zip([*whole, *new], rows, strict=True)))


def _shown(xp: Namespace, cache: PagedCache[Any]) -> Array:
    """Return how many slots of each page a cache shows, (num_pages,): the most of all items."""
    import numpy as np  # noqa: PLC0415

    size = cache.key_pages.shape[2]
    count = cache.key_pages.shape[0]
    shown = np.zeros(count, np.int64)
    for row, length in zip(cache.block_table.tolist(), cache.lengths.tolist(), strict=True):
        pages = [(page, i) for i, page in enumerate(row[: -(-length // size)]) if 0 <= page < count]
        slots = [min(size, length - i * size) for _, i in pages]
        np.maximum.at(shown, np.asarray([page for page, _ in pages], np.intp), slots)
    return xp.asarray(shown, device=device(cache.lengths))
