"""Which free pages items get where it is known what they need: those behind their last ones, so that they are read as one."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

__all__ = ["in_stretches"]


def in_stretches(rank: Any, items: Iterable[tuple[int, int]]) -> Any:
    """Return all pages (num_pages,): first those that the first item gets, then those of the second, and so on; last all others.

    `rank` (num_pages,) is 0 for free pages, 1 for those that are taken when there are no others, and more for those that are not
    free. `items` holds for each item its last page, or -1 where it has none, and how many more it needs.

    An item gets the pages behind its last one, as long as these are free. Then it goes on in the middle of the longest stretch
    of free pages: the first half is left to the item whose pages end there. Items without pages start at equal distances in
    that stretch: while they grow, they lie like an array.
    """
    items = list(items)
    needed = sum(need for _, need in items)
    is_free = rank <= (0 if np.count_nonzero(rank == 0) >= needed else 1)
    order = np.argsort(rank, kind="stable")
    if np.count_nonzero(is_free) < needed:  # who is left out is told elsewhere
        return order
    chosen, is_chosen = [], np.zeros(len(rank), bool)
    starts = _starts(is_free, [need for last, need in items if last < 0 and need > 0])
    for last, missing in items:
        page, need = last + 1, missing
        if last < 0 < missing:
            page = next(starts, len(rank))
        while need > 0:
            if page >= len(rank) or not is_free[page]:
                page = _place(is_free, need)
            taken = is_free[page : page + need]
            count = len(taken) if taken.all() else int(taken.argmin())
            chosen.append(np.arange(page, page + count))
            is_free[page : page + count], is_chosen[page : page + count] = False, True
            page, need = page + count, need - count
    return np.concat([*chosen, order[~is_chosen[order]]])


def _starts(is_free: Any, needs: list[int]) -> Iterator[int]:
    """Return where those who have nothing start, at equal distances; none where there is no such room for all of them."""
    if len(needs) < 2:
        return iter(())
    start, length = _longest(is_free)
    before = 1 if start > 0 else 0  # the first part is left to who stands before it
    part = length // (len(needs) + before)
    return iter(range(start + before * part, start + length, part)) if part >= max(needs) else iter(())


def _place(is_free: Any, need: int) -> int:
    """Return where somebody who needs some pages starts in the longest stretch of free ones."""
    start, length = _longest(is_free)
    rest = length - need
    return start + rest // 2 if start > 0 and rest > 0 else start


def _longest(is_free: Any) -> tuple[int, int]:
    """Return the first page and the length of the longest stretch of free ones."""
    edges = np.flatnonzero(np.diff(is_free.astype(np.int8), prepend=0, append=0))
    starts, lengths = edges[::2], edges[1::2] - edges[::2]
    longest = int(lengths.argmax())
    return int(starts[longest]), int(lengths[longest])
