"""The tile step forward in one compiled loop: a few rows meet `KEYS` keys, and their scores never leave the nearest cache.

It does what `attention_xp._engine.tile.step` does, where the scores need no function of Python: products, soft cap and what
is added, excluded pairs, the largest score so far, powers and their sums, and weights times values.
"""

import numpy as np

from attention_xp._engine.walkers.numpy.compiled.compiling import compiled, inlined
from attention_xp._engine.walkers.numpy.compiled.line import (
    KEYS,
    add_line,
    fetch,
    keep_line,
    largest_of_line,
    number_at,
    raise_line,
    verdict,
)
from attention_xp._engine.walkers.numpy.compiled.multiplied import multiply_rows
from attention_xp._engine.walkers.numpy.compiled.powers import power
from attention_xp._engine.walkers.numpy.compiled.registers import ROWS, WIDTH
from attention_xp._engine.walkers.numpy.compiled.scalars import tanh

__all__ = ["BAND", "KEYS", "WIDTH", "attend", "pack"]

_CACHE_LINE = 64  # bytes
BAND = 8 * ROWS  # rows whose scores lie in the nearest cache, beside the keys or the values that they meet
_TALL = 4 * BAND  # rows that meet the same keys while these are in the next cache
_NONE, _SOME, _EVERY = range(3)  # of the pairs of a strip, `ROWS` of a band, are allowed


@compiled()
def pack(address, strides, length, packed):
    """Write keys (K, Sk, D) to (K, chunks, D, KEYS): those of a chunk side by side, with zeros behind the last one.

    The keys have an address and strides, the latter in bytes, whatever their order in memory is.
    """
    K, chunks, D, _ = packed.shape
    one = packed.dtype.type(0.0)
    for k in range(K):
        for c in range(chunks):
            first, real = address + k * strides[0] + c * KEYS * strides[1], min(length - c * KEYS, KEYS)
            for d in range(D):
                for j in range(real):
                    packed[k, c, d, j] = number_at(first + j * strides[1] + d * strides[2], one)
                packed[k, c, d, real:] = 0.0


@compiled()
def attend(
    stretches, query, key, value, addends, factors, constants, natural, peak, sums, total, output, scores, edge, seen
):
    """Add keys and values to the state of some rows: (G, m, D) with (K, chunks, D, KEYS) and (K, Sk, N).

    The value has an address, and the bytes from head to head and from row to row. Each of the `stretches` has bounds of rows
    and of keys, and the address of the flags of the pairs that are allowed, 0 where all are, with the bytes from row to row
    and from head to head. Each of the `addends` has an address, and the bytes from head to head and from row to row. The
    `factors` are the soft cap in the base, 0 where there is none, that of what is added, and the least that it may become.
    The state is the largest score (G, m), sums (G, m, lanes) of a vector for each row, their `total` (G, m), and the output
    (G, m, N). There is memory for `scores` (BAND, KEYS), for as many flags, and for what was `seen` of each strip.
    """
    G, m, D = query.shape
    group, item = G // len(key), query.itemsize
    for g in range(G):
        k = g // group
        sums[g] = 0.0
        sums[g, :, 0] = total[g]
        # Addresses of all, for a view of an array counts as one more owner of it, which takes as long as a few products.
        rows_of = query.ctypes.data + g * m * D * item, sums.ctypes.data + g * m * WIDTH, output[g].ctypes.data
        keys_of, values_of = key[k].ctypes.data, (value[0] + k * value[1], value[2])
        for s in range(len(stretches)):
            first_row, last_row, first_key, last_key = (
                stretches[s, 0],
                stretches[s, 1],
                stretches[s, 2],
                stretches[s, 3],
            )
            flags = stretches[s, 4] + g * stretches[s, 6], stretches[s, 5]
            for top in range(first_row, last_row, _TALL):
                for left in range(first_key - first_key % KEYS, last_key, KEYS):
                    keys = left, max(first_key - left, 0), min(last_key - left, KEYS)
                    for row in range(top, min(top + _TALL, last_row), BAND):
                        rows = row, min(row + BAND, top + _TALL, last_row)
                        if flags[0]:
                            at = flags[0] + (row - first_row) * flags[1] + left - first_key, flags[1]
                            at = _look(seen, edge, at, rows, keys)
                        else:
                            at = np.int64(0), np.int64(0)
                            for i in range(BAND // ROWS):
                                seen[i] = _EVERY
                        _score(rows_of[0], keys_of + left * D * item, scores, seen, rows, D)
                        if factors[0] or len(addends) > 0 or keys[2] - keys[1] < KEYS:
                            _change(scores, (addends, g), factors, natural, rows, keys)
                        _raise(scores, seen, at, constants, (peak, sums, output), rows_of[1], g, rows)
                        _weigh(scores, seen, values_of, rows_of[2], output.shape[2], rows, keys)
        for i in range(m):
            total[g, i] = _total(sums[g, i])


@inlined
def _look(seen, edge, flags, rows, keys):
    """Write of each strip whether some, and whether all pairs are allowed, and return where the flags of whole lines are."""
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
        seen[i // ROWS] = _EVERY if every else (_SOME if some else _NONE)
    return address, step


@inlined
def _score(query, chunk, scores, seen, rows, D):
    """Write products of rows and keys."""
    row, last_row = rows
    item, to, one = scores.itemsize, scores.ctypes.data, scores.dtype.type(0.0)
    line = KEYS * item
    for i in range(0, last_row - row, ROWS):
        if seen[i // ROWS] != _NONE:
            at = to + i * line, query + (row + i) * D * item, chunk
            multiply_rows(at, (line, D * item, item, line), (min(ROWS, last_row - row - i), D, line), False, one)


@inlined
def _change(scores, addends, factors, natural, rows, keys):
    """Apply the soft cap, add what is added, and put minus infinity in columns that belong to no key."""
    (numbers, g), (row, last_row), (left, begin, end) = addends, rows, keys
    cap, factor, least = factors
    item, first = scores.itemsize, scores.ctypes.data
    for j in range(last_row - row):
        if cap:
            for i in range(KEYS):
                scores[j, i] = cap * tanh(scores[j, i], natural)
        for a in range(len(numbers)):
            address = numbers[a, 0] + g * numbers[a, 1] + (row + j) * numbers[a, 2] + left * item
            if end - begin == KEYS:
                for byte in range(KEYS * item, 2 * KEYS * item, _CACHE_LINE):
                    fetch(address + byte)
                add_line(first + j * KEYS * item, address, factor, least)
            else:
                for i in range(begin, end):
                    more = factor * number_at(address + i * item, factor)
                    scores[j, i] += least if more < least else more  # noqa: FURB136  # NaN stays NaN
        if end - begin < KEYS:
            scores[j, :begin] = -np.inf
            scores[j, end:] = -np.inf


@inlined
def _raise(scores, seen, flags, constants, state, sums_of_rows, g, rows):
    """Exclude pairs, raise the largest scores, and make powers of scores and their sums."""
    (address, step), (row, last_row), (peak, sums, output) = flags, rows, state
    one, first = scores.dtype.type(0.0), scores.ctypes.data
    for j in range(last_row - row):
        line, is_seen = first + j * KEYS * scores.itemsize, seen[j // ROWS]
        if is_seen == _NONE:
            continue
        if is_seen == _SOME:
            keep_line(line, address + j * step, scores.dtype.type(-np.inf))
        largest, so_far = largest_of_line(line, one), peak[g, row + j]
        if largest > so_far:
            _fade(power(so_far - largest, constants), sums, output, g, row + j)
            peak[g, row + j] = so_far = largest
        raise_line(line, so_far if np.isfinite(so_far) else one, sums_of_rows + (row + j) * WIDTH, constants)


@inlined
def _weigh(scores, seen, values, output, numbers, rows, keys):
    """Add weights times values to the output."""
    (row, last_row), (left, begin, end), (value, step) = rows, keys, values
    item, first, one = scores.itemsize, scores.ctypes.data, scores.dtype.type(0.0)
    line, width = KEYS * item, numbers * item
    for i in range(0, last_row - row, ROWS):
        if seen[i // ROWS] != _NONE:
            at = output + (row + i) * width, first + i * line + begin * item, value + (left + begin) * step
            multiply_rows(at, (width, line, item, step), (min(ROWS, last_row - row - i), end - begin, width), True, one)


@compiled("reassoc")
def _total(sums):
    total = sums.dtype.type(0.0)
    for i in range(len(sums)):
        total += sums[i]
    return total


@compiled()
def _fade(factor, sums, output, g, row):
    """Multiply the sums of a row, which were relative to a lower score."""
    for i in range(sums.shape[2]):
        sums[g, row, i] *= factor
    for i in range(output.shape[2]):
        output[g, row, i] *= factor
