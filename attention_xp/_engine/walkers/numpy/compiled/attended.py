"""The tile step forward in one compiled loop: a few rows meet `KEYS` keys, and their scores never leave the nearest cache.

It does what `attention_xp._engine.tile.step` does, where the scores need no function of Python: products, soft cap and what
is added, excluded pairs, a shift that follows the largest score, powers and their sums, and weights times values.
"""

import numpy as np

from attention_xp._engine.walkers.numpy.compiled.bands import (
    BAND,
    NONE,
    SOME,
    STRIPS,
    TALL,
    add,
    bend,
    flags_from,
    look,
    score,
    score_in_place,
)
from attention_xp._engine.walkers.numpy.compiled.compiling import compiled, inlined
from attention_xp._engine.walkers.numpy.compiled.constants import LEAST_FORWARD
from attention_xp._engine.walkers.numpy.compiled.copies import copy_head, copy_row, pack_head
from attention_xp._engine.walkers.numpy.compiled.draws import ROOM, draw
from attention_xp._engine.walkers.numpy.compiled.line import (
    KEYS,
    bound_line,
    is_above,
    keep_line,
    largest_of_line,
    raise_line,
)
from attention_xp._engine.walkers.numpy.compiled.memory import clear_vector, fetch_row, multiply_vector
from attention_xp._engine.walkers.numpy.compiled.multiplied import multiply_rows
from attention_xp._engine.walkers.numpy.compiled.powers import power_of_two
from attention_xp._engine.walkers.numpy.compiled.registers import ROWS, WIDTH

__all__ = ["attend"]

_FETCHED = KEYS * BAND // TALL  # keys of the next chunk that each band prefetches


@compiled()
def attend(
    stretches,
    query,
    key,
    value,
    output,
    sizes,
    there,
    addends,
    factors,
    draws,
    state,
    memory,
    scores,
    edge,
    seen,
    kept,
    words,
):
    """Attend all keys that the `stretches` allow, and write the output of some rows (G, m, Dv).

    All arrays have an address and three strides in bytes: the query (G, m, D), the key (K, Sk, D), the value (K, Sk, Dv) and
    the output (G, m, Dv). The `sizes` are K, Sk and Dv. Of a single head, memory may have some chunks of keys and their values
    already: of each chunk that can lie there, `there` is 0 where it does not. The others are copied when they are first met.
    Each of the `stretches` has bounds of rows and of keys, and the address of the flags of the pairs that are allowed, 0
    where all are, with the bytes from row to row and from head to head. Each of the `addends` has an address, and the bytes
    from head to head and from row to row. The `factors` are the soft cap in the base, 0 where there is none, that of what is
    added, the least number that is added, and how much a score may be larger than the shift; and those of the query and of
    dropout. The state is the shift of the scores and the sum of their powers, both (G, m).

    There is memory

    - for the query (m, D), or for none where keys are packed and rows of the query lie one behind the other;
    - for as many keys as are met at once, packed (chunks, D, KEYS) with the factor of the query, and their values, in rows of
      whole vectors (chunks * KEYS, N), or for none where both, of whole vectors, are read where they lie;
    - for sums of powers (m, lanes), a vector of each row;
    - for sums of values (m, N), or for none where they are made in the output, whose rows are whole vectors one behind the other;
    - for scores (BAND, KEYS) and as many flags, and for what was `seen` of each strip.
    """
    (shifts, totals), (rows_of, packed, values, sums, outputs), (K, Sk, Dv) = state, memory, sizes
    G, D, item = len(shifts), rows_of.shape[1], rows_of.itemsize
    is_packed = len(values) > 0
    (factors, factor_of_query, survival), group, at_once = factors, G // K, len(values) if is_packed else Sk
    of_key, of_sums = packed.ctypes.data, sums.ctypes.data
    of_value, steps = (np.int64(values.ctypes.data), values.shape[1] * item), (key[2:], value[2:])
    # Packed keys have the factor of the query already.
    factor_of_rows = scores.dtype.type(1.0) if is_packed else factor_of_query
    for g in range(G):
        k = g // group
        of_query = _copied(query[0] + g * query[1], query[2:], factor_of_rows, rows_of)
        of_output = _cleared(output[0] + g * output[1], sums, outputs, totals, g)
        for seen_keys in range(0, Sk, at_once):
            most = min(seen_keys + at_once, Sk)
            places = key[0] + k * key[1] + seen_keys * key[2], value[0] + k * value[1] + seen_keys * value[2]
            if not is_packed:
                of_value = places[1], value[2]
            if Sk > at_once or (K > 1 and g % group == 0):
                there[:] = 0
            for s in range(len(stretches)):
                first_row, last_row, first_key = stretches[s, 0], stretches[s, 1], stretches[s, 2]
                flags, begin = (stretches[s, 4] + g * stretches[s, 6], stretches[s, 5]), max(first_key, seen_keys)
                last_key = min(stretches[s, 3], most)
                for top in range(first_row, last_row, TALL):
                    for left in range(begin - begin % KEYS, last_key, KEYS):
                        keys = left, max(begin - left, 0), min(last_key - left, KEYS)
                        chunk = (left - seen_keys) // KEYS
                        if is_packed and not there[chunk]:
                            count = min(Sk - left, KEYS)
                            _bring(places, steps, chunk, count, Dv, factor_of_query, packed, values)
                            there[chunk] = 1
                        for row in range(top, min(top + TALL, last_row), BAND):
                            rows = row, min(row + BAND, top + TALL, last_row)
                            at = look(seen, edge, flags_from(flags, row - first_row, left - first_key), rows, keys)
                            survivors = draw(kept, words, draws, g, rows, left) if draws[3] else np.int64(0)
                            if is_packed:
                                _fetch(places, (key[2], value[2]), there, chunk, (row - top) // BAND, (D, Dv), item)
                                score(of_query, of_key + (left - seen_keys) * D * item, scores, seen, rows, True)
                            else:
                                first = places[0] + (left - seen_keys) * key[2], key[2]
                                ahead = of_value[0] + (left - seen_keys) * of_value[1], of_value[1], Dv * item
                                score_in_place(of_query, first, ahead, scores, rows, keys)
                            bend(scores, rows[1] - row, factors[0])
                            if len(addends) > 0 or keys[2] - keys[1] < KEYS:
                                add(scores, (addends, g), factors, rows, keys)
                            _raise(scores, seen, at, survivors, factors[3], shifts, g, of_sums, of_output, rows)
                            _weigh(scores, seen, of_value, of_output, rows, left - seen_keys)
        _end(sums, of_output, totals, g, (output[0] + g * output[1], output[2], output[3]), Dv, survival)


@inlined
def _fetch(addresses, strides, there, chunk, band, widths, item):
    """Prefetch the share of a band of the keys and values of the next chunk, where this is still to be copied."""
    if chunk + 1 < len(there) and not there[chunk + 1]:
        first = (chunk + 1) * KEYS + band * _FETCHED
        for i in range(first, first + _FETCHED):
            for n in range(2):
                fetch_row(addresses[n] + i * strides[n], widths[n] * item)


@compiled()
def _bring(addresses, strides, chunk, count, Dv, factor, packed, values):
    """Copy a chunk of so many keys, times a factor, and their values."""
    first = chunk * KEYS
    of_key, of_value = addresses[0] + first * strides[0][0], addresses[1] + first * strides[1][0]
    pack_head(of_key, strides[0], count, factor, packed[chunk : chunk + 1])
    copy_head(of_value, strides[1], count, Dv, values[first : first + KEYS])


@inlined
def _copied(query, strides, factor, rows_of):
    """Copy the query times a factor where there is memory for it; return where it is, its width in bytes, and its numbers."""
    D, item = rows_of.shape[1], rows_of.itemsize
    if len(rows_of) == 0:
        return query, D * item, D
    for i in range(len(rows_of)):
        copy_row((rows_of.ctypes.data + i * D * item, item), (query + i * strides[0], strides[1]), D, item, factor)
    return np.int64(rows_of.ctypes.data), D * item, D


@inlined
def _cleared(output, sums, outputs, totals, g):
    """Begin the sums: those of weights with the sinks, those of values with 0. Return where the latter are, and their width."""
    width, one = outputs.shape[1] * outputs.itemsize, sums.dtype.type(0.0)
    address = output if len(outputs) == 0 else np.int64(outputs.ctypes.data)
    for i in range(len(sums)):
        for byte in range(0, width, WIDTH):
            clear_vector(address + i * width + byte, one)
        for lane in range(sums.shape[1]):
            sums[i, lane] = one
        sums[i, 0] = totals[g, i]
    return address, width


@inlined
def _end(sums, outputs, totals, g, output, Dv, survival):
    """Write the sums of values over those of the weights that survive; a row without any has the output 0."""
    (address, row, column), (of, width), item = output, outputs, sums.itemsize
    for i in range(len(sums)):
        total = _total(sums, i)
        totals[g, i] = total
        factor = survival / total if total != 0.0 else survival
        copy_row((address + i * row, column), (of + i * width, item), Dv, item, factor)


@inlined
def _raise(scores, seen, flags, survivors, headroom, shifts, g, sums, output, rows):
    """Exclude pairs, make powers of scores, and sum them up.

    The shift follows the largest score where that is larger by more than the headroom: where it is less, powers and sums
    are far from the largest number, and keep all their digits.
    """
    (address, step), (row, last_row) = flags, rows
    one, first = scores.dtype.type(0.0), scores.ctypes.data
    for j in range(last_row - row):
        line, is_seen = first + j * KEYS * scores.itemsize, seen[j // ROWS]
        if is_seen == NONE:
            continue
        if is_seen == SOME:
            keep_line(line, address + j * step, scores.dtype.type(-np.inf))
        shift, of_row = shifts[g, row + j], sums + (row + j) * WIDTH
        if is_above(line, shift + headroom):
            largest = largest_of_line(line, one)
            if shift > -np.inf:  # or else all sums are 0
                fade = power_of_two(shift - largest, LEAST_FORWARD)
                multiply_vector(of_row, of_row, fade)
                of_output = output[0] + (row + j) * output[1]
                for byte in range(0, output[1], WIDTH):
                    multiply_vector(of_output + byte, of_output + byte, fade)
            shifts[g, row + j] = shift = largest
        if not np.isfinite(shift):
            if shift == np.inf:
                bound_line(line, one)
            shift = one
        raise_line(line, shift, of_row, LEAST_FORWARD)
        if survivors:
            keep_line(line, survivors + j * ROOM, one)


@inlined
def _weigh(scores, seen, values, output, rows, left):
    """Add weights times values to the output."""
    (row, last_row), (value, step), (out, width) = rows, values, output
    item, first, one = scores.itemsize, scores.ctypes.data, scores.dtype.type(0.0)
    line = KEYS * item
    for i in range(0, last_row - row, ROWS):
        if seen[i // ROWS] != NONE:
            begin, end = np.int64(seen[STRIPS + i // ROWS]), np.int64(seen[2 * STRIPS + i // ROWS])
            at = out + (row + i) * width, first + i * line + begin * item, value + (left + begin) * step
            sizes = min(ROWS, last_row - row - i), end - begin, width
            multiply_rows(at, (width, line, item, step), sizes, True, one)


@compiled("reassoc")
def _total(sums, i):
    total = sums.dtype.type(0.0)
    for lane in range(sums.shape[1]):
        total += sums[i, lane]
    return total
