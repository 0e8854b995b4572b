"""Which free pages items get where it is known what they need: those behind their last ones, so that they are read as one."""

from collections.abc import Iterable
from typing import Any

import numpy as np

__all__ = ["in_stretches"]


def in_stretches(rank: Any, items: Iterable[tuple[int, int]]) -> Any:
    """Return all pages (num_pages,) in the order in which they are handed out to items one after the other.

    `rank` says of each page (num_pages,) whether it is free: 0 before others, 1 after them, and more than that not. Of each
    item, `items` has its last page, or -1, and how many it needs. It gets the pages that follow, as long as they are free, and
    then goes on in the middle of the longest stretch of free pages, of which the first half is left to who stands before it.
    """
    items = list(items)
    needed = sum(need for _, need in items)
    is_free = rank <= (0 if np.count_nonzero(rank == 0) >= needed else 1)
    order = np.argsort(rank, kind="stable")
    if np.count_nonzero(is_free) < needed:  # who is left out is told elsewhere
        return order
    chosen, is_chosen = [], np.zeros(len(rank), bool)
    for last, missing in items:
        page, need = last + 1 if last >= 0 else len(rank), missing
        while need > 0:
            if page >= len(rank) or not is_free[page]:
                page = _place(is_free, need)
            taken = is_free[page : page + need]
            count = len(taken) if taken.all() else int(taken.argmin())
            chosen.append(np.arange(page, page + count))
            is_free[page : page + count], is_chosen[page : page + count] = False, True
            page, need = page + count, need - count
    return np.concat([*chosen, order[~is_chosen[order]]])


def _place(is_free: Any, need: int) -> int:
    """Return where somebody who needs some pages starts in the longest stretch of free ones."""
    edges = np.flatnonzero(np.diff(is_free.astype(np.int8), prepend=0, append=0))
    starts, lengths = edges[::2], edges[1::2] - edges[::2]
    longest = int(lengths.argmax())
    start, rest = int(starts[longest]), int(lengths[longest]) - need
    return start + rest // 2 if start > 0 and rest > 0 else start
