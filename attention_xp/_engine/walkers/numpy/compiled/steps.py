"""The compiled tile steps of one problem: what they need besides the arrays of a block of rows."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from attention_xp._backend.processor import second_cache
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.base import LOG2_E, Base, lowest_score
from attention_xp._engine.tile.scores import query_factor, survival_factor
from attention_xp._engine.tile.step import Running, log_sum_exp, start
from attention_xp._random.survivors import head_key, smallest_draw
from attention_xp._random.threefry import schedule_of
from attention_xp._scores.region import Region
from attention_xp._typing import Array

__all__ = ["BASE", "Steps", "address_of"]

BASE = Base(np.exp2, LOG2_E, 1.0)  # of all scores here, whatever NumPy has vector instructions for

_SHARE = 0.5  # of the second-level cache, for keys and values that are copied at once
_HEADROOM = 8.0  # powers of two by which a score may be larger than the shift
# A table of stretches, one of addends, and what keeps the arrays alive whose addresses are in them.
_Stretches = tuple[Array, Array, tuple[Array, ...]]
_Draws = tuple[Array, int, int, Any]
_NO_DRAWS = np.zeros((0, 3), np.uint32), 0, 0, np.uint32(0)


def address_of(array: Array) -> int:
    """Return where an array begins in memory."""
    return int(array.__array_interface__["data"][0])


class Steps:
    """Steps over all keys of a block of rows, in one dtype."""

    def __init__(self, problem: Problem) -> None:
        from attention_xp._engine.walkers.numpy.compiled import attended, bands, differentiated, draws  # noqa: PLC0415  # import numba

        self._attend: Any = attended.attend
        self._differentiate: Any = differentiated.differentiate
        self.band, self.keys, self._room = bands.BAND, bands.KEYS, draws.ROOM
        self.dtype = np.dtype(problem.dtype)
        self.lanes = bands.WIDTH // self.dtype.itemsize  # numbers of a vector
        # Without a soft cap, the factor of the base is that of the query; with one, it is the tangent's.
        factor, cap = (LOG2_E, 0.0) if problem.softcap is None else (1.0, problem.softcap * LOG2_E)
        of_query = self.dtype.type(query_factor(problem) * factor)
        # Gradients of scores have the factor of the query, so that those of queries and keys lack none.
        self.pull_factor, survival = query_factor(problem), self.dtype.type(survival_factor(problem))
        factors = tuple(map(self.dtype.type, (cap, LOG2_E, lowest_score(np, self.dtype), _HEADROOM)))
        self._options = factors, of_query, survival
        self._backward_options = factors, of_query, self.dtype.type(self.pull_factor) * survival

    def width(self, numbers: int) -> int:
        """Return how many numbers whole vectors hold that have room for so many."""
        return -(-numbers // self.lanes) * self.lanes

    def scores(self, count: int) -> int:
        """Return how many numbers so many arrays of the scores of a band have."""
        return count * self.band * self.keys

    def at_once(self, problem: Problem) -> int:
        """Return how many keys are copied at once, with their values: as many as stay in the second cache."""
        numbers = problem.query.shape[-1] + self.width(problem.value.shape[-1])
        some = min(max(int(_SHARE * second_cache()) // (numbers * self.dtype.itemsize), 1), problem.key.shape[-2])
        return int(-(-some // self.keys) * self.keys)

    def state(self, region: Region, output: Array, heads: int) -> tuple[Array, Array]:
        """Return the shift of the scores and the sums of their powers before the first key, with the sinks: (heads, m)."""
        problem: Problem = region.frame  # type: ignore[assignment]
        if problem.sinks is None:  # without the calls of the general way, which each job would wait for
            rows = heads, math.prod(region.sizes[:-1]) // heads
            return np.full(rows, -math.inf, self.dtype), np.zeros(rows, self.dtype)
        running = start(problem, region, output, shift=None, base=BASE)
        shift, total = (np.array(a, self.dtype).reshape(heads, -1) for a in (running.peak, running.total))
        return shift, total

    def log_sum_exp(self, region: Region, state: tuple[Array, Array], output: Array) -> Array:
        """Return the log-sum-exp (..., m) of the rows of a region, from the state and the output that `attend` left."""
        shift, total = (a.reshape(*region.sizes[:-1], 1) for a in state)
        return log_sum_exp(region.frame, region, Running(shift, total, output), BASE)  # type: ignore[arg-type]

    def no_copies(self, D: int, Dv: int) -> tuple[Array, Array]:
        """Return memory for copies of no keys and no values, which are then read where they lie."""
        return np.empty((0, D, self.keys), self.dtype), np.empty((0, Dv), self.dtype)

    def packed_shape(self, K: int, Sk: int, W: int) -> tuple[int, int, int, int]:
        """Return the shape of packed keys: those of a chunk are side by side."""
        return K, -(-Sk // self.keys), W, self.keys

    def whole(self, rows: Array, buffer: Array) -> Array:
        """Return rows (K, n, W) that are whole vectors, or memory in a buffer for as many that are."""
        width = self.width(rows.shape[-1])
        shape = *rows.shape[:-1], width
        return rows if width == rows.shape[-1] else buffer[: math.prod(shape)].reshape(shape)

    def attend(
        self,
        stretches: _Stretches,
        draws: _Draws,
        arrays: Sequence[Array],
        state: tuple[Array, Array],
        copies: tuple[Array, ...],
        memory: tuple[Array, ...],
        there: Array,
    ) -> None:
        """Write the output of a block of rows, see `attended.attend`: arrays are query, key, value, and that output."""
        query, key, value, output = arrays
        table, addends, *_ = stretches
        places, sizes = tuple(map(_place, (query, key, value, output))), (*key.shape[:2], value.shape[2])
        self._attend(table, *places, sizes, there, addends, self._options, draws, state, copies, *memory)

    def differentiate(
        self,
        stretches: _Stretches,
        draws: _Draws,
        rows: Sequence[Array],
        packed: tuple[Array, ...],
        copies: tuple[Array, ...],
        begun: Array,
        known: Sequence[Array],
        sums: tuple[Array, int, Array, Array],
        memory: tuple[Array, ...],
    ) -> None:
        """Write or add to the gradients of a block of rows, see `differentiated.differentiate`.

        The rows are query, gradient, key and value; the sums are gradients of queries, and, from some key on, of keys and values.
        """
        (table, addends, *_), (dquery, first, *of_keys) = stretches, sums
        # Keys are counted from the first of all, which may have no sum.
        places = [(address - first * row, head, row, item) for address, head, row, item in map(_place, of_keys)]
        arrays, every = (tuple(map(_place, rows)), packed, copies), (_place(dquery), *places)
        options, sizes = self._backward_options, (rows[2].shape[1], first, first + of_keys[0].shape[1])
        self._differentiate(table, *arrays, sizes, begun, addends, options, draws, *known, every, *memory)

    def draws(self, region: Region) -> _Draws:
        """Return what the draws of dropout in a block of rows follow from, see `draws.draw`."""
        problem: Problem = region.frame  # type: ignore[assignment]
        if problem.seed is None:
            return _NO_DRAWS
        schedules = np.zeros((math.prod(region.sizes[:-2]), 3), np.uint32)
        words = head_key(problem.seed, b=region.b, h=region.h)
        pairs = (np.broadcast_to(word, (*region.sizes[:-2], 1, 1)).astype(np.uint32).ravel().tolist() for word in words)
        schedules[...] = [schedule_of(pair) for pair in zip(*pairs, strict=True)]
        return (
            schedules,
            int(region.q_idx.flat[0]),
            int(region.kv_idx.flat[0]),
            np.uint32(smallest_draw(problem.dropout_rate)),
        )

    def memory(self, scores: Array) -> tuple[Array, ...]:
        """Return memory for scores, for flags of a band, for what is allowed of its strips, and for draws of dropout."""
        edge, seen = np.empty((self.band, self.keys), np.uint8), np.empty(self.band, np.uint8)
        kept, words = np.empty((self.band, self._room), np.uint8), np.empty((2, self._room // 2), np.uint32)
        return scores.reshape(-1, self.keys), edge, seen, kept, words


def _place(array: Array) -> tuple[int, ...]:
    """Return where rows (K, n, W) are, and the bytes along their axes."""
    return address_of(array), *array.strides
