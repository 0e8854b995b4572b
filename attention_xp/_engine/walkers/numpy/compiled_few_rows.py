"""Few rows on many keys, as in decoding, by compiled loops, which read keys and values where they lie."""

from collections.abc import Sequence

import numpy as np

from attention_xp._engine.problem.result import Attended, Wanted
from attention_xp._engine.walkers.numpy.compiled.steps import Steps
from attention_xp._engine.walkers.numpy.place import for_heads
from attention_xp._engine.walkers.numpy.scratch import lent
from attention_xp._scores.region import Region
from attention_xp._typing import Array

__all__ = ["KeyRanges", "attend_in_place"]

KeyRanges = Sequence[tuple[int, int]]
"""Keys that are attended: the numbers of the first one of a stretch, and of the first one behind it."""
_NOTHING_ADDED, _NO_CHUNKS = np.zeros((0, 3), np.int64), np.zeros(0, np.uint8)


def attend_in_place(
    steps: Steps,
    region: Region,
    query: Array,
    key: Array,
    value: Array,
    wanted: Wanted,
    stretches: KeyRanges | None = None,
) -> Attended:
    """Return the output of the rows of a region of whole groups under some stretches of keys, or all, and their log-sum-exp."""
    key, value = (_rows(a) for a in (key, value))
    K, (Sk, D), N = max(len(key), len(value)), key.shape[1:], value.shape[-1]
    key, value = (for_heads(a, K) for a in (key, value))
    output = np.empty((*query.shape[:-1], N), steps.dtype)
    query, out = (a.reshape(K, -1, a.shape[-1]) for a in (query.astype(steps.dtype, copy=False), output))
    m = query.shape[1]
    state = steps.state(region, output, K)
    stretches = [(0, Sk)] if stretches is None else stretches
    attended = np.asarray([(0, m, first, end, 0, 0, 0) for first, end in stretches], np.int64).reshape(-1, 7)
    with lent([m * D, m * steps.lanes, m * N, steps.scores(1)], steps.dtype) as (rows, sums, outputs, scores):
        copies = rows.reshape(m, D), *steps.no_copies(D, N), sums.reshape(m, -1), outputs.reshape(m, N)
        arrays, memory = (query, key, value, out), steps.memory(scores)
        steps.attend((attended, _NOTHING_ADDED, ()), steps.draws(region), arrays, state, copies, memory, _NO_CHUNKS)
    return Attended(output, None, steps.log_sum_exp(region, state, output) if wanted.lse else None)


def _rows(array: Array) -> Array:
    """Return keys or values (..., n, D) as (K, n, D), with the numbers of a row side by side."""
    rows = array.reshape(-1, *array.shape[-2:])
    is_beside = rows.strides[-1] == rows.itemsize and rows.flags.aligned
    return rows if is_beside else np.ascontiguousarray(rows)
