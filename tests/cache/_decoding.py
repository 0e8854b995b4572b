"""Sequences that are decoded in ragged steps, and what one call on each of them gives."""

from typing import Any

import numpy as np

from attention_xp.cache import DenseCache, PagedCache, RollingCache, StaticCache, append_and_attend
from tests import reference
from tests._backends import to_numpy
from tests._inputs import normal

B, H, HKV, D, DV = 3, 4, 2, 8, 6
CAPACITY, ROLLING, PAGES, PAGE = 24, 8, 18, 4
KINDS = ("dense", "static", "rolling", "paged")
# Rows of each step, and how many of them count for each item: chunks longer than the buffer of a rolling cache, steps in
# which nothing is appended to some, and pages that are filled exactly.
STEPS = (5, (5, 3, 0)), (1, (1, 1, 1)), (11, (10, 2, 11)), (1, (0, 1, 1)), (5, (0, 5, 5)), (1, (1, 0, 1))
TOTALS = np.sum([counts for _, counts in STEPS], axis=0)  # 17, 12, 19
ROWS = int(TOTALS.max())
QUERY, KEY, VALUE = normal(B, H, ROWS, D), normal(B, HKV, ROWS, D, seed=1), normal(B, HKV, ROWS, DV, seed=2)


def empty(library: Any, kind: str, **more: Any) -> Any:
    """An empty cache of a kind on the device of a test."""
    how = {"value_width": DV, "xp": library.namespace(), "dtype": "float32", "device": library.device(), **more}
    if kind == "dense":
        return DenseCache.empty(B, HKV, D, **how)
    if kind == "paged":
        return PagedCache.empty(B, HKV, PAGES, D, page_size=PAGE, **how)
    maker, room = (StaticCache, CAPACITY) if kind == "static" else (RollingCache, ROLLING)
    return maker.empty(B, HKV, room, D, **how)


def rows_of(array: np.ndarray, starts: Any, n: int) -> np.ndarray:
    """The rows from a position of each item on, padded with NaN to n."""
    out = np.full((*array.shape[:2], n, array.shape[3]), np.nan)
    for b, start in enumerate(starts):
        some = array[b, :, start : start + n]
        out[b, :, : some.shape[1]] = some
    return out


def decode(library: Any, cache: Any, step: Any = append_and_attend, **options: Any) -> tuple[np.ndarray, Any]:
    """The outputs of all positions (B, H, ROWS, DV), NaN behind the last, and the cache; padding rows must be zero."""
    make, found, starts = library.array, np.full((B, H, ROWS, DV), np.nan), np.zeros(B, int)
    for n, counts in STEPS:
        new = [make(np.nan_to_num(rows_of(a, starts, n), nan=9.0)) for a in (QUERY, KEY, VALUE)]
        output, cache = step(cache, *new, lengths=make(np.asarray(counts)), **options)
        for b, count in enumerate(counts):
            rows = to_numpy(output)[b]
            assert not rows[:, count:].any()
            found[b, :, starts[b] : starts[b] + count] = rows[:, :count]
        starts += counts
    return found, cache


def expected(mask: Any = None, bias: Any = None, **options: Any) -> np.ndarray:
    """The same by one call on each whole sequence; arrays are (B or 1, H or 1, ROWS, ROWS)."""
    found = np.full((B, H, ROWS, DV), np.nan)
    for b, total in enumerate(TOTALS):
        q, k, v = (a[b : b + 1, :, :total] for a in (QUERY, KEY, VALUE))
        arrays = {"mask": mask, "bias": bias}
        mine = {name: a[b % len(a) : b % len(a) + 1, :, :total, :total] for name, a in arrays.items() if a is not None}
        found[b, :, :total] = reference.attention(q, k, v, **mine, **options).output[0]
    return found
