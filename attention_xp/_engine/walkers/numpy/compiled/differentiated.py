"""The tile step backward in one compiled loop: a band of rows meets `KEYS` keys, and weights and gradients stay in the nearest cache.

It does what `attention_xp._engine.tile.backward_step` does, where the scores need no function of Python.
"""

import numpy as np

from attention_xp._engine.walkers.numpy.compiled.bands import BAND, NONE, SOME, TALL, add, bend, flags_from, look, score
from attention_xp._engine.walkers.numpy.compiled.compiling import compiled, inlined
from attention_xp._engine.walkers.numpy.compiled.constants import LEAST
from attention_xp._engine.walkers.numpy.compiled.copies import copy_head, pack_head
from attention_xp._engine.walkers.numpy.compiled.draws import ROOM, draw
from attention_xp._engine.walkers.numpy.compiled.line import KEYS, keep_line, weigh_line
from attention_xp._engine.walkers.numpy.compiled.memory import clear_vector
from attention_xp._engine.walkers.numpy.compiled.multiplied import multiply_rows
from attention_xp._engine.walkers.numpy.compiled.registers import ROWS, WIDTH

__all__ = ["differentiate"]


@compiled()
def differentiate(
    stretches,
    rows_of_heads,
    packed,
    copies,
    sizes,
    begun,
    addends,
    factors,
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
    """Write the gradients of some rows, and add to those of their keys and values.

    `rows_of_heads` are the query (G, m, D), the gradient of the output (G, m, Dv), the key (K, Sk, D) and the value
    (K, Sk, Dv): each has an address and three strides in bytes, and so have the `sums` of gradients of queries, keys and
    values, in rows of whole vectors. The `sizes` are Sk, the first of the keys that have sums, and the last.

    Heads of which some rows were here already have `begun`; for others, sums get zeros, and `packed` gets keys
    (P, chunks, D, KEYS) and values (P, chunks, Dv, KEYS), where P is K, or 1 for one head after the other. The `copies` are
    memory for query (m, D'), gradient (m, Dv') and keys (P, Sk, D'), in rows of whole vectors that begin with a cache line.

    The log-sum-exp as `shift`, and `delta`, are (G, m). The last two of the `factors` are those of products with the query,
    and with the gradient of the output: it makes gradients of scores such that those of queries and keys lack none, and
    `delta` has it as well. The first ones, the stretches and the addends are those of `attended.attend`. There is memory
    for weights, gradients of scores, and slopes of the soft cap, (3 BAND, KEYS).
    """
    (query, gradient, key, value), (packed_key, packed_value) = rows_of_heads, packed
    query_rows, gradient_rows, key_rows = copies
    factors, of_query_key, of_gradient_value = factors
    (G, m), (Sk, first_sum, last_sum), one = shift.shape, sizes, scores.dtype.type(0.0)
    item, group, D, Dv = scores.itemsize, G // len(begun), packed_key.shape[2], packed_value.shape[2]
    weights, grads, slopes = scores[:BAND], scores[BAND : 2 * BAND], scores[2 * BAND :]
    width, value_width = query_rows.shape[1] * item, gradient_rows.shape[1] * item
    of_query, of_gradient = (query_rows.ctypes.data, width, D), (gradient_rows.ctypes.data, value_width, Dv)
    dquery, dkey, dvalue = sums
    for g in range(G):
        k = g // group
        p = k % len(packed_key)
        if not begun[k]:
            begun[k] = 1
            pack_head(key[0] + k * key[1], key[2:], Sk, of_query_key, packed_key[p])
            pack_head(value[0] + k * value[1], value[2:], Sk, of_gradient_value, packed_value[p])
            copy_head(key[0] + k * key[1], key[2:], Sk, D, key_rows[p])
            _clear(dkey[0] + k * dkey[1] + first_sum * dkey[2], dkey[2], last_sum - first_sum, width, one)
            _clear(dvalue[0] + k * dvalue[1] + first_sum * dvalue[2], dvalue[2], last_sum - first_sum, value_width, one)
        of_key, of_value = packed_key[p].ctypes.data, packed_value[p].ctypes.data
        _clear(dquery[0] + g * dquery[1], dquery[2], m, width, one)
        copy_head(query[0] + g * query[1], query[2:], m, D, query_rows)
        copy_head(gradient[0] + g * gradient[1], gradient[2:], m, Dv, gradient_rows)
        places = of_query, of_gradient, (np.int64(key_rows[p].ctypes.data), width, D)
        into = (
            (dquery[0] + g * dquery[1], dquery[2]),
            (dkey[0] + k * dkey[1], dkey[2]),
            (dvalue[0] + k * dvalue[1], dvalue[2]),
        )
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
                        _weigh(weights, seen, at, shift, g, rows)
                        score(of_gradient, of_value + left * Dv * item, grads, seen, rows, False)
                        _pull(weights, grads, slopes, seen, survivors, delta, g, rows, factors[0])
                        _sum_up(into, places, weights, grads, rows, keys)


@inlined
def _sum_up(into, places, weights, grads, rows, keys):
    """Add products of a band to gradients of queries, keys and values; places are query, gradient and key."""
    (dquery, dkey, dvalue), (query, gradient, key), (row, last_row), (left, begin, end) = into, places, rows, keys
    item, one, first, count = weights.itemsize, weights.dtype.type(0.0), left + begin, last_row - row
    line = KEYS * item
    weight, grad = weights.ctypes.data + begin * item, grads.ctypes.data + begin * item
    at = dvalue[0] + first * dvalue[1], weight, gradient[0] + row * gradient[1]
    multiply_rows(at, (dvalue[1], item, line, gradient[1]), (end - begin, count, gradient[1]), True, one)
    at = dkey[0] + first * dkey[1], grad, query[0] + row * query[1]
    multiply_rows(at, (dkey[1], item, line, query[1]), (end - begin, count, query[1]), True, one)
    at = dquery[0] + row * dquery[1], grad, key[0] + first * key[1]
    multiply_rows(at, (dquery[1], line, item, key[1]), (count, end - begin, key[1]), True, one)


@compiled()
def _clear(address, step, rows, width, one):
    """Write zeros to so many rows of so many bytes."""
    for i in range(rows):
        for byte in range(0, width, WIDTH):
            clear_vector(address + i * step + byte, one)


@inlined
def _is_empty(seen, rows):
    """Whether no pair of a band is allowed."""
    for i in range(0, rows[1] - rows[0], ROWS):  # noqa: SIM110  # numba knows no generators here
        if seen[i // ROWS] != NONE:
            return False
    return True


@inlined
def _slope(scores, slopes, count, factors):
    """Write the slopes of the soft cap, ``cap (1 - tanh) (1 + tanh)``, where the scores are ``log(e) cap tanh``."""
    cap, log_e, _, _ = factors
    for j in range(count):
        for i in range(KEYS):
            slopes[j, i] = (cap - scores[j, i]) * ((cap + scores[j, i]) / (cap * log_e))


@inlined
def _weigh(scores, seen, flags, shift, g, rows):
    """Exclude pairs, and make weights of scores."""
    (address, step), (row, last_row) = flags, rows
    first = scores.ctypes.data
    for j in range(last_row - row):
        line, is_seen = first + j * KEYS * scores.itemsize, seen[j // ROWS]
        if is_seen == NONE:
            for i in range(KEYS):
                scores[j, i] = 0.0
        else:
            if is_seen == SOME:
                keep_line(line, address + j * step, scores.dtype.type(-np.inf))
            weigh_line(line, shift[g, row + j], LEAST)


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
