"""The tile step forward in one compiled loop: a few rows meet `KEYS` keys, and their scores never leave the nearest cache.

It does what `attention_xp._engine.tile.step` does, where the scores need no function of Python: products, soft cap and what
is added, excluded pairs, the largest score so far, powers and their sums, and weights times values.
"""

import numpy as np

from attention_xp._engine.walkers.numpy.compiled.bands import BAND, NONE, SOME, TALL, add, bend, look, score
from attention_xp._engine.walkers.numpy.compiled.compiling import compiled, inlined
from attention_xp._engine.walkers.numpy.compiled.draws import ROOM, draw
from attention_xp._engine.walkers.numpy.compiled.line import KEYS, keep_line, largest_of_line, raise_line
from attention_xp._engine.walkers.numpy.compiled.multiplied import multiply_rows
from attention_xp._engine.walkers.numpy.compiled.powers import power
from attention_xp._engine.walkers.numpy.compiled.registers import ROWS, WIDTH

__all__ = ["attend"]


@compiled()
def attend(
    stretches,
    query,
    key,
    value,
    addends,
    factors,
    constants,
    natural,
    draws,
    peak,
    sums,
    total,
    output,
    scores,
    edge,
    seen,
    kept,
    words,
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
        of_query = query.ctypes.data + g * m * D * item, D * item, D
        of_sums, of_output = sums.ctypes.data + g * m * WIDTH, output[g].ctypes.data
        keys_of, values_of = key[k].ctypes.data, (value[0] + k * value[1], value[2])
        for s in range(len(stretches)):
            first_row, last_row, first_key, last_key = (
                stretches[s, 0],
                stretches[s, 1],
                stretches[s, 2],
                stretches[s, 3],
            )
            flags = stretches[s, 4] + g * stretches[s, 6], stretches[s, 5]
            for top in range(first_row, last_row, TALL):
                for left in range(first_key - first_key % KEYS, last_key, KEYS):
                    keys = left, max(first_key - left, 0), min(last_key - left, KEYS)
                    for row in range(top, min(top + TALL, last_row), BAND):
                        rows = row, min(row + BAND, top + TALL, last_row)
                        at = flags[0], flags[1]
                        if flags[0]:
                            at = flags[0] + (row - first_row) * flags[1] + left - first_key, flags[1]
                        at = look(seen, edge, at, rows, keys)
                        survivors = draw(kept, words, draws, g, rows, left) if draws[3] else np.int64(0)
                        score(of_query, keys_of + left * D * item, scores, seen, rows)
                        bend(scores, rows[1] - row, factors[0], natural)
                        if len(addends) > 0 or keys[2] - keys[1] < KEYS:
                            add(scores, (addends, g), factors, rows, keys)
                        _raise(scores, seen, at, survivors, constants, (peak, sums, output), of_sums, g, rows)
                        _weigh(scores, seen, values_of, of_output, output.shape[2], rows, keys)
        for i in range(m):
            total[g, i] = _total(sums[g, i])


@inlined
def _raise(scores, seen, flags, survivors, constants, state, sums_of_rows, g, rows):
    """Exclude pairs, raise the largest scores, and make powers of scores and their sums."""
    (address, step), (row, last_row), (peak, sums, output) = flags, rows, state
    one, first = scores.dtype.type(0.0), scores.ctypes.data
    for j in range(last_row - row):
        line, is_seen = first + j * KEYS * scores.itemsize, seen[j // ROWS]
        if is_seen == NONE:
            continue
        if is_seen == SOME:
            keep_line(line, address + j * step, scores.dtype.type(-np.inf))
        largest, so_far = largest_of_line(line, one), peak[g, row + j]
        if largest > so_far:
            _fade(power(so_far - largest, constants), sums, output, g, row + j)
            peak[g, row + j] = so_far = largest
        raise_line(line, so_far if np.isfinite(so_far) else one, sums_of_rows + (row + j) * WIDTH, constants)
        if survivors:
            keep_line(line, survivors + j * ROOM, one)


@inlined
def _weigh(scores, seen, values, output, numbers, rows, keys):
    """Add weights times values to the output."""
    (row, last_row), (left, begin, end), (value, step) = rows, keys, values
    item, first, one = scores.itemsize, scores.ctypes.data, scores.dtype.type(0.0)
    line, width = KEYS * item, numbers * item
    for i in range(0, last_row - row, ROWS):
        if seen[i // ROWS] != NONE:
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
