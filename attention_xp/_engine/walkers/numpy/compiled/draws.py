"""The draws of dropout in compiled loops, as `attention_xp._random.survivors` makes them."""

import numpy as np

from attention_xp._engine.walkers.numpy.compiled.compiling import compiled, inlined
from attention_xp._engine.walkers.numpy.compiled.line import KEYS

__all__ = ["ROOM", "draw", "survivors"]

ROOM = KEYS + 2  # flags of a line, and of the keys that are in a block of the generator with its first or its last one


@inlined
def draw(kept, words, draws, g, rows, left):
    """Write which weights of a band survive, (BAND, ROOM), and return where the first of `KEYS` flags is.

    `draws` are the keys of the generator for each head (G, 3), the positions of the first row and key of the block, and the
    smallest draw with which a weight survives.
    """
    schedules, first_row, first_key, limit = draws
    (row, last_row), schedule = rows, (schedules[g, 0], schedules[g, 1], schedules[g, 2])
    start, key, count = first_row + row, first_key + left, last_row - row
    for pair in range(start >> 1, ((start + count - 1) >> 1) + 1):
        for i in range(ROOM // 2):
            words[0, i], words[1, i] = _threefry(schedule, np.uint32(pair), np.uint32((key >> 1) + i))
        for half in range(2):
            j, shift = 2 * pair + half - start, np.uint32(16 * half)
            if 0 <= j < count:
                for i in range(ROOM // 2):
                    kept[j, 2 * i] = ((words[0, i] >> shift) & np.uint32(0xFFFF)) >= limit
                    kept[j, 2 * i + 1] = ((words[1, i] >> shift) & np.uint32(0xFFFF)) >= limit
    return np.int64(kept.ctypes.data) + (key & 1)


@compiled()
def survivors(keep, schedule, first, limit, words, halves):
    """Write which weights survive dropout, (n, m), from the first query and key on.

    `schedule` are the two words of a key of the generator, and a third that follows from them. `words` are (2, m // 2 + 1), and `halves` are the same memory as (2, 2 * (m // 2 + 1)).
    """
    n, m = keep.shape
    row, column = first
    for j in range(column >> 1, ((column + n - 1) >> 1) + 1):
        for i in range(words.shape[1]):
            x, y = _threefry(schedule, np.uint32((row >> 1) + i), np.uint32(j))
            words[0, i] = x
            words[1, i] = y
        for parity in range(2):
            line = 2 * j + parity - column
            if 0 <= line < n:
                for i in range(m):
                    keep[line, i] = halves[parity, np.uint64((row & 1) + i)] >= limit


@compiled()
def _threefry(schedule, x, y):
    """Encrypt a counter as `attention_xp._random.threefry` does; written out, because a loop here would not be unrolled."""
    first, second, third = schedule
    x, y = _four_rounds(np.uint32(x + first), np.uint32(y + second), (13, 15, 26, 6))
    x, y = _four_rounds(np.uint32(x + second), np.uint32(y + third + np.uint32(1)), (17, 29, 16, 24))
    x, y = _four_rounds(np.uint32(x + third), np.uint32(y + first + np.uint32(2)), (13, 15, 26, 6))
    return _round(np.uint32(x + first), np.uint32(y + second + np.uint32(3)), 17)


@compiled()
def _four_rounds(x, y, rotations):
    x, y = _round(x, y, rotations[0])
    x, y = _round(x, y, rotations[1])
    x, y = _round(x, y, rotations[2])
    return _round(x, y, rotations[3])


@compiled()
def _round(x, y, rotation):
    """Return x + y, and its exclusive-or with y, whose bits are rotated to the left."""
    x = np.uint32(x + y)
    return x, np.uint32(x ^ (np.uint32(y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation))))
