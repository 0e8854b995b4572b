"""The compiled loops over tiles.

A tile is (G, lines, room): of each line the first `length` numbers are scores. Either the numbers of a line are the rows of
the query, and its keys are the lines, or the other way round; the names of the loops say whether a row lies across the
lines or along one.
"""

import numpy as np
from numba import config

from attention_xp._engine.walkers.numpy.compiled.compiling import compiled
from attention_xp._engine.walkers.numpy.compiled.constants import Constants
from attention_xp._engine.walkers.numpy.compiled.draws import survivors
from attention_xp._engine.walkers.numpy.compiled.powers import power
from attention_xp._engine.walkers.numpy.compiled.registers import VECTORS, WIDTH, raise_columns
from attention_xp._engine.walkers.numpy.compiled.tangents import tanh

__all__ = [
    "hyperbolic_tangents",
    "is_compiled",
    "keep_if",
    "largest_across_lines",
    "powers_across_lines",
    "powers_along_lines",
    "survivors",
]
_SOME = 16  # lines of which sums stay in registers: of more, memory is read too far apart


def is_compiled() -> bool:
    """Whether numba compiles functions here, tried with one; raises what numba raises."""
    if config.DISABLE_JIT:
        return False
    constants = tuple(Constants.of(np.float32, is_natural=False))
    lines, rows = np.zeros((1, 1, 1), np.float32), np.zeros((1, 1), np.float32)
    powers_across_lines(lines, 1, rows, constants, rows.copy())
    return bool(lines[0, 0, 0] == 1.0)


@compiled()
def powers_across_lines(scores, length, shift, constants, sums):
    """Replace scores by powers of ``scores - shift``, and sum them up, where rows lie across the lines."""
    heads, lines, room = scores.shape
    item, one = scores.itemsize, shift[0, 0]
    lanes = WIDTH // item
    for g in range(heads):
        for i in range(length):
            sums[g, i] = 0.0
        address, width, whole = scores.ctypes.data + g * lines * room * item, room * item, length - length % lanes
        of_row = shift.ctypes.data + g * length * item, sums.ctypes.data + g * length * item
        for first in range(0, lines, _SOME):
            some = min(_SOME, lines - first)
            i = 0
            while i < whole:
                place, at = address + first * width + i * item, (of_row[0] + i * item, of_row[1] + i * item)
                if i + VECTORS * lanes <= whole:
                    raise_columns(place, width, some, at[0], at[1], constants, VECTORS, one)
                    i += VECTORS * lanes
                else:
                    raise_columns(place, width, some, at[0], at[1], constants, 1, one)
                    i += lanes
        for j in range(lines if whole < length else 0):
            for last in range(whole, length):
                weight = power(scores[g, j, last] - shift[g, last], constants)
                scores[g, j, last] = weight
                sums[g, last] += weight


@compiled()
def powers_along_lines(scores, length, shift, constants, sums):
    """Replace scores by powers of ``scores - shift``, and sum them up, where a row is a line."""
    heads, lines, _ = scores.shape
    for g in range(heads):
        for j in range(lines):
            for i in range(length):
                scores[g, j, i] = power(scores[g, j, i] - shift[g, j], constants)
            sums[g, j] = _total(scores, g, j, length)


@compiled("reassoc")
def _total(scores, g, j, length):
    """Return the sum of a line, in the order that is fast."""
    total = scores.dtype.type(0.0)
    for i in range(length):
        total += scores[g, j, i]
    return total


@compiled()
def largest_across_lines(scores, length, largest):
    """Raise the largest score of each row so far to that in the tile, where rows lie across the lines.

    NaN does not count: its power is NaN whatever is subtracted.
    """
    heads, lines, _ = scores.shape
    for g in range(heads):
        for j in range(lines):
            for i in range(length):
                largest[g, i] = max(largest[g, i], scores[g, j, i])


@compiled()
def hyperbolic_tangents(scores, length):
    """Replace scores by their hyperbolic tangents."""
    heads, lines, _ = scores.shape
    for g in range(heads):
        for j in range(lines):
            for i in range(length):
                scores[g, j, i] = tanh(scores[g, j, i])


@compiled()
def keep_if(tile, flags, line, first, other):
    """Replace numbers by another one where flags are False: (G, ...) or (1, ...), from a line and a number of it on."""
    for g in range(tile.shape[0]):
        k = min(g, flags.shape[0] - 1)
        for j in range(flags.shape[1]):
            for i in range(flags.shape[2]):
                # Of indices with a sign, numba asks whether they are negative.
                at = np.uint64(line + j), np.uint64(first + i)
                number = tile[g, at[0], at[1]]
                tile[g, at[0], at[1]] = number if flags[k, j, i] else other
