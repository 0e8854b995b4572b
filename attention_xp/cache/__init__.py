"""Key/value caches for decoding: pure functions over named tuples of arrays, alike on all libraries and under `jit`.

Examples
--------
>>> import numpy as np
>>> from attention_xp.cache import StaticCache, append_and_attend, lengths
>>> x = np.random.default_rng(0).standard_normal((2, 4, 1, 16))
>>> cache = StaticCache.empty(2, 4, 100, 16, dtype="float64")
>>> output, cache = append_and_attend(cache, x, x, x, is_causal=True)
>>> output.shape, lengths(cache)
((2, 4, 1, 16), array([1, 1], dtype=int32))
"""

from attention_xp.cache._append import append
from attention_xp.cache._attend import append_and_attend, attend
from attention_xp.cache._caches import DenseCache, PagedCache, RollingCache, StaticCache, lengths
from attention_xp.cache._items import free, reorder
from attention_xp.cache._paged import paged_attention

__all__ = [
    "DenseCache",
    "PagedCache",
    "RollingCache",
    "StaticCache",
    "append",
    "append_and_attend",
    "attend",
    "free",
    "lengths",
    "paged_attention",
    "reorder",
]
