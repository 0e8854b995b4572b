"""What the compiled steps forward and backward share: a band of rows meets `KEYS` keys, and their scores lie in the nearest cache.

The rows of a band are met in strips of `ROWS`; a strip of which no pair is allowed is left out. Arrays are given as addresses
where their parts are handed on: a view of an array counts as one more owner of it, which takes as long as a few products.
"""

import numpy as np

from attention_xp._engine.walkers.numpy.compiled.compiling import compiled, inlined
from attention_xp._engine.walkers.numpy.compiled.dots import CACHE_LINE, FEW_KEYS, multiply_keys
from attention_xp._engine.walkers.numpy.compiled.line import KEYS, add_line, fetch, number_at, verdict
from attention_xp._engine.walkers.numpy.compiled.multiplied import multiply_rows
from attention_xp._engine.walkers.numpy.compiled.registers import ROWS, WIDTH
from attention_xp._engine.walkers.numpy.compiled.scalars import tanh

__all__ = [
    "BAND",
    "EVERY",
    "KEYS",
    "NONE",
    "SOME",
    "TALL",
    "WIDTH",
    "add",
    "bend",
    "copy_head",
    "flags_from",
    "look",
    "pack",
    "pack_head",
    "score",
    "score_in_place",
]

BAND = 8 * ROWS  # rows whose scores lie in the nearest cache, beside the keys or the values that they meet
TALL = 4 * BAND  # rows that meet the same keys while these are in the next cache
NONE, SOME, EVERY = range(3)  # of the pairs of a strip are allowed


@compiled()
def pack(address, strides, length, packed):
    """Write keys (K, Sk, D), which have an address and strides in bytes, to (K, chunks, D, KEYS)."""
    for k in range(len(packed)):
        pack_head(address + k * strides[0], strides[1:], length, packed[k])


@compiled()
def pack_head(address, strides, length, packed):
    """Write keys (Sk, D) to (chunks, D, KEYS): those of a chunk side by side, with zeros behind the last one."""
    D, one = packed.shape[1], packed.dtype.type(0.0)
    for c in range((length + KEYS - 1) // KEYS):
        first, real = address + c * KEYS * strides[0], min(length - c * KEYS, KEYS)
        for d in range(D):
            for j in range(real):
                packed[c, d, j] = number_at(first + j * strides[0] + d * strides[1], one)
            packed[c, d, real:] = one


@compiled()
def copy_head(address, strides, length, width, rows):
    """Write values (Sk, Dv), which have an address and strides in bytes, to rows of whole vectors, with zeros behind them."""
    one = rows.dtype.type(0.0)
    for i in range(length):
        for d in range(width):
            rows[i, d] = number_at(address + i * strides[0] + d * strides[1], one)
        for d in range(width, rows.shape[1]):
            rows[i, d] = one


@inlined
def flags_from(flags, row, column):
    """Return where the flags from a row and a column of a stretch on are, and their distance; 0 where all pairs are allowed."""
    return flags[0] + row * flags[1] + column if flags[0] else flags[0], flags[1]


@inlined
def look(seen, edge, flags, rows, keys):
    """Write of each strip which of its pairs are allowed, and return where the flags of whole lines are, and their distance.

    The address of the flags is 0 where all pairs are allowed.
    """
    if flags[0] == 0:
        for i in range(BAND // ROWS):
            seen[i] = EVERY
        return flags
    (address, step), (row, last_row), (_, begin, end) = flags, rows, keys
    for j in range(last_row - row):
        fetch(address + j * step + KEYS)
    if end - begin < KEYS:  # memory beyond an array is not read
        for j in range(last_row - row):
            for i in range(KEYS):
                edge[j, i] = number_at(address + j * step + i, edge[0, 0]) if begin <= i < end else 0
        address, step = np.int64(edge.ctypes.data), np.int64(KEYS)
    for i in range(0, last_row - row, ROWS):
        some, every = verdict(address + i * step, step, min(ROWS, last_row - row - i))
        seen[i // ROWS] = EVERY if every else (SOME if some else NONE)
    return address, step


@inlined
def score(given, chunk, scores, seen, rows):
    """Write products of rows, which have an address, a width in bytes and so many numbers, and those of a chunk."""
    (address, width, D), (row, last_row) = given, rows
    item, to, one = scores.itemsize, scores.ctypes.data, scores.dtype.type(0.0)
    line = KEYS * item
    for i in range(0, last_row - row, ROWS):
        if seen[i // ROWS] != NONE:
            at = to + i * line, address + (row + i) * width, chunk
            multiply_rows(at, (line, width, item, line), (min(ROWS, last_row - row - i), D, line), False, one)


@inlined
def score_in_place(given, chunk, ahead, scores, rows, keys):
    """Do the same with keys that are read where they lie: an address, and the bytes from key to key; so have their values."""
    (address, width, D), (first, step), (row, last_row), (_, begin, end) = given, chunk, rows, keys
    item, to, one = scores.itemsize, scores.ctypes.data, scores.dtype.type(0.0)
    begin -= begin % FEW_KEYS
    at = to + begin * item, address + row * width, first + begin * step
    multiply_keys(at, (KEYS * item, width, step), (last_row - row, end - begin, D * item), item, one, ahead)


@inlined
def bend(scores, count, cap, natural):
    """Replace scores that are divided by the soft cap by their tangents times a cap, unless it is 0."""
    if cap:
        for j in range(count):
            for i in range(KEYS):
                scores[j, i] = cap * tanh(scores[j, i], natural)


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
                for byte in range(KEYS * item, 2 * KEYS * item, CACHE_LINE):
                    fetch(address + byte)
                add_line(first + j * KEYS * item, address, factor, least)
            else:
                for i in range(begin, end):
                    total = scores[j, i] + factor * number_at(address + i * item, factor)
                    scores[j, i] = least if total < least else total  # noqa: FURB136  # NaN stays NaN
        if end - begin < KEYS:
            scores[j, :begin] = -np.inf
            scores[j, end:] = -np.inf
