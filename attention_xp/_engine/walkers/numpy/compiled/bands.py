"""What the compiled steps forward and backward share: a band of rows meets `KEYS` keys, and their scores lie in the nearest cache.

The rows of a band are met in strips of `ROWS`; a strip of which no pair is allowed is left out. Arrays are given as addresses
where their parts are handed on: a view of an array counts as one more owner of it, which takes as long as a few products.
"""

import numpy as np

from attention_xp._engine.walkers.numpy.compiled.compiling import inlined
from attention_xp._engine.walkers.numpy.compiled.dots import FEW_KEYS, multiply_keys
from attention_xp._engine.walkers.numpy.compiled.line import KEYS, add_line, bend_line, verdict
from attention_xp._engine.walkers.numpy.compiled.memory import fetch_row, number_at
from attention_xp._engine.walkers.numpy.compiled.multiplied import multiply_rows
from attention_xp._engine.walkers.numpy.compiled.registers import PAIR, ROWS, WIDTH

__all__ = [
    "BAND",
    "EVERY",
    "KEYS",
    "NONE",
    "SOME",
    "STRIPS",
    "TALL",
    "WIDTH",
    "add",
    "bend",
    "flags_from",
    "look",
    "score",
    "score_in_place",
]

STRIPS = 8  # of a band
BAND = STRIPS * ROWS  # rows whose scores lie in the nearest cache, beside the keys or the values that they meet
TALL = 4 * BAND  # rows that meet the same keys while these are in the next cache
NONE, SOME, EVERY = range(3)  # of the pairs of a strip are allowed


@inlined
def flags_from(flags, row, column):
    """Return where the flags from a row and a column of a stretch on are, and their distance; 0 where all pairs are allowed."""
    return flags[0] + row * flags[1] + column if flags[0] else flags[0], flags[1]


@inlined
def look(seen, edge, flags, rows, keys):
    """Write which pairs of each strip are allowed, and return the address of the flags and the bytes from row to row.

    `seen` gets three numbers of each strip: first of all strips whether all, some or none of the pairs are allowed, then the
    first key that is, and last the key behind the last one. The address is 0 where all pairs are allowed.
    """
    (address, step), (row, last_row), (_, begin, end) = flags, rows, keys
    if address == 0:
        for i in range(STRIPS):
            seen[i], seen[STRIPS + i], seen[2 * STRIPS + i] = EVERY, begin, end
        return flags
    for j in range(last_row - row):
        fetch_row(address + j * step + KEYS, 1)
    if end - begin < KEYS:  # memory beyond an array is not read
        for j in range(last_row - row):
            for i in range(KEYS):
                edge[j, i] = number_at(address + j * step + i, edge[0, 0]) if begin <= i < end else 0
        address, step = np.int64(edge.ctypes.data), np.int64(KEYS)
    for i in range(0, last_row - row, ROWS):
        first, last, every = verdict(address + i * step, step, min(ROWS, last_row - row - i))
        seen[i // ROWS] = EVERY if every else (SOME if last else NONE)
        seen[STRIPS + i // ROWS] = max(begin, first * (KEYS // 8))
        seen[2 * STRIPS + i // ROWS] = min(end, last * (KEYS // 8))
    return address, step


@inlined
def score(given, chunk, scores, seen, rows, is_narrow):
    """Write products of rows, which have an address, a width in bytes and so many numbers, and those of a chunk.

    Where it `is_narrow`, what is written beside the keys that a strip attends is anything.
    """
    (address, width, D), (row, last_row) = given, rows
    item, to, one = scores.itemsize, scores.ctypes.data, scores.dtype.type(0.0)
    line = KEYS * item
    for i in range(0, last_row - row, ROWS):
        if seen[i // ROWS] != NONE:
            left, size = 0, line
            if is_narrow:
                left, size = _around(
                    np.int64(seen[STRIPS + i // ROWS]) * item, np.int64(seen[2 * STRIPS + i // ROWS]) * item
                )
            at = to + i * line + left, address + (row + i) * width, chunk + left
            multiply_rows(at, (line, width, item, line), (min(ROWS, last_row - row - i), D, size), False, one)


@inlined
def _around(begin, end):
    """Return where the vectors around some bytes begin, and their width: one vector, or pairs, which a product takes at once."""
    unit = WIDTH if end - (begin - begin % WIDTH) <= WIDTH else PAIR * WIDTH
    left = begin - begin % unit
    return left, end - left + (left - end) % unit


@inlined
def score_in_place(given, chunk, ahead, scores, rows, keys):
    """Write products of rows and of keys that are read where they lie, at an address and so many bytes from key to key.

    Of `ahead`, which are their values, an address and the bytes of and between rows are given: these are fetched meanwhile.
    """
    (address, width, D), (first, step), (row, last_row), (_, begin, end) = given, chunk, rows, keys
    item, to, one = scores.itemsize, scores.ctypes.data, scores.dtype.type(0.0)
    begin -= begin % FEW_KEYS
    at = to + begin * item, address + row * width, first + begin * step
    multiply_keys(at, (KEYS * item, width, step), (last_row - row, end - begin, D * item), item, one, ahead)


@inlined
def bend(scores, count, cap):
    """Replace scores, which are divided by the soft cap, by their hyperbolic tangents times a cap, unless it is 0."""
    if cap:
        first, width = scores.ctypes.data, KEYS * scores.itemsize
        for j in range(count):
            bend_line(first + j * width, cap)


@inlined
def add(scores, addends, factors, rows, keys):
    """Add what is added, and put minus infinity in columns that belong to no key.

    The smallest number, which stands in masks for minus infinity, must not become that by the factor of the base.
    """
    (numbers, g), (row, last_row), (left, begin, end) = addends, rows, keys
    _, factor, least, _ = factors
    item, first = scores.itemsize, scores.ctypes.data
    for j in range(last_row - row):
        for a in range(len(numbers)):
            address = numbers[a, 0] + g * numbers[a, 1] + (row + j) * numbers[a, 2] + left * item
            if end - begin == KEYS:
                fetch_row(address + KEYS * item, KEYS * item)
                add_line(first + j * KEYS * item, address, factor, least)
            else:
                for i in range(begin, end):
                    more = number_at(address + i * item, factor)
                    scores[j, i] += factor * (least if more < least else more)  # noqa: FURB136  # NaN stays NaN
        if end - begin < KEYS:
            scores[j, :begin] = -np.inf
            scores[j, end:] = -np.inf
