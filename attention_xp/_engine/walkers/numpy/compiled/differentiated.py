"""The tile step backward in one compiled loop: a band of rows meets `KEYS` keys, and weights and gradients stay in the nearest cache.

It does what `attention_xp._engine.tile.backward_step` does, where the scores need no function of Python.
"""

import numpy as np

from attention_xp._engine.walkers.numpy.compiled.bands import BAND, NONE, SOME, TALL, add, bend, flags_from, look, score
from attention_xp._engine.walkers.numpy.compiled.compiling import compiled, inlined
from attention_xp._engine.walkers.numpy.compiled.draws import ROOM, draw
from attention_xp._engine.walkers.numpy.compiled.line import KEYS, keep_line, raise_line
from attention_xp._engine.walkers.numpy.compiled.multiplied import multiply_rows
from attention_xp._engine.walkers.numpy.compiled.registers import ROWS

__all__ = ["differentiate"]


@compiled()
def differentiate(
    stretches,
    rows_of_heads,
    packed,
    key,
    addends,
    factors,
    constants,
    draws,
    shift,
    delta,
    sums,
    scores,
    edge,
    seen,
    kept,
    words,
):
    """Add to the gradients of some rows, and of their keys and values.

    `rows_of_heads` are the query (G, m, D') and the gradient of the output (G, m, Dv'), of whole vectors; `packed` are keys
    (K, chunks, D, KEYS) and values (K, chunks, Dv, KEYS). The key, in rows of whole vectors, has an address, and the bytes
    from head to head and from row to row, and so have the `sums` of gradients of queries, keys and values. The log-sum-exp as
    `shift`, and `delta`, are (G, m). The factors, stretches and addends are those of `attended.attend`. There is memory for
    weights, gradients of scores, slopes of the soft cap, and a line that is not used, (3 BAND + 1, KEYS).
    """
    (query, gradient), (packed_key, packed_value) = rows_of_heads, packed
    (G, m, wide), Dv = query.shape, packed_value.shape[2]
    D, item, group = packed_key.shape[2], query.itemsize, G // len(packed_key)
    weights, grads, slopes, unused = (
        scores[:BAND],
        scores[BAND : 2 * BAND],
        scores[2 * BAND : 3 * BAND],
        scores[3 * BAND],
    )
    width, value_width = wide * item, gradient.shape[2] * item
    dquery, dkey, dvalue = sums
    for g in range(G):
        k = g // group
        of_query = query.ctypes.data + g * m * width, width, D
        of_gradient = gradient.ctypes.data + g * m * value_width, value_width, Dv
        of_key, of_value = packed_key[k].ctypes.data, packed_value[k].ctypes.data
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
                        at = look(seen, edge, flags_from(flags, row - first_row, left - first_key), rows, keys)
                        if _is_empty(seen, rows):
                            continue
                        survivors = draw(kept, words, draws, g, rows, left) if draws[3] else np.int64(0)
                        score(of_query, of_key + left * D * item, weights, seen, rows, False)
                        bend(weights, rows[1] - row, factors[0])
                        if factors[0]:
                            _slope(weights, slopes, rows[1] - row, factors)
                        if len(addends) > 0 or keys[2] - keys[1] < KEYS:
                            add(weights, (addends, g), factors, rows, keys)
                        _weigh(weights, unused, seen, at, constants, shift, g, rows)
                        score(of_gradient, of_value + left * Dv * item, grads, seen, rows, False)
                        _pull(weights, grads, slopes, seen, survivors, delta, g, rows, factors[0])
                        first, column = left + keys[1], keys[1] * item
                        count, end = rows[1] - row, keys[2] - keys[1]
                        by_key = weights.ctypes.data + column, grads.ctypes.data + column
                        of_rows = of_query[0] + row * width, of_gradient[0] + row * value_width
                        to = dvalue[0] + k * dvalue[1] + first * dvalue[2]
                        strides = dvalue[2], item, KEYS * item, value_width
                        multiply_rows(
                            (to, by_key[0], of_rows[1]), strides, (end, count, value_width), True, shift[0, 0]
                        )
                        to = dkey[0] + k * dkey[1] + first * dkey[2]
                        strides = dkey[2], item, KEYS * item, width
                        multiply_rows((to, by_key[1], of_rows[0]), strides, (end, count, width), True, shift[0, 0])
                        to = dquery[0] + g * dquery[1] + row * dquery[2]
                        strides = dquery[2], KEYS * item, item, key[2]
                        right = key[0] + k * key[1] + first * key[2]
                        multiply_rows((to, by_key[1], right), strides, (count, end, width), True, shift[0, 0])


@inlined
def _is_empty(seen, rows):
    """Whether no pair of a band is allowed."""
    for i in range(0, rows[1] - rows[0], ROWS):  # noqa: SIM110  # numba knows no generators here
        if seen[i // ROWS] != NONE:
            return False
    return True


@inlined
def _slope(scores, slopes, count, factors):
    """Write the slopes of the soft cap, ``cap (1 - tanh^2)``, where the scores are ``log(e) cap tanh``."""
    cap, log_e, _, _ = factors
    for j in range(count):
        for i in range(KEYS):
            slopes[j, i] = (cap - scores[j, i] * scores[j, i] / cap) / log_e


@inlined
def _weigh(scores, unused, seen, flags, constants, shift, g, rows):
    """Exclude pairs, and make weights of scores."""
    (address, step), (row, last_row) = flags, rows
    first, sums = scores.ctypes.data, unused.ctypes.data
    for j in range(last_row - row):
        line, is_seen = first + j * KEYS * scores.itemsize, seen[j // ROWS]
        if is_seen == NONE:
            for i in range(KEYS):
                scores[j, i] = 0.0
        else:
            if is_seen == SOME:
                keep_line(line, address + j * step, scores.dtype.type(-np.inf))
            raise_line(line, shift[g, row + j], sums, constants)


@inlined
def _pull(weights, grads, slopes, seen, survivors, delta, g, rows, cap):
    """Make gradients of scores of those of weights."""
    (row, last_row), nothing = rows, weights.dtype.type(0.0)
    weight, grad, width = weights.ctypes.data, grads.ctypes.data, KEYS * weights.itemsize
    for j in range(last_row - row):
        less = delta[g, row + j]
        if survivors:
            keep_line(grad + j * width, survivors + j * ROOM, nothing)
        if seen[j // ROWS] == NONE:
            for i in range(KEYS):
                grads[j, i] = 0.0
        elif cap:
            for i in range(KEYS):
                grads[j, i] = (grads[j, i] - less) * weights[j, i] * slopes[j, i]
        else:
            for i in range(KEYS):
                grads[j, i] = (grads[j, i] - less) * weights[j, i]
        if survivors:
            keep_line(weight + j * width, survivors + j * ROOM, nothing)
