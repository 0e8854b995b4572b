"""The compiled tile steps of one problem: what they need besides the arrays of a block of rows."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from attention_xp._backend.processor import second_cache
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.base import base_of, lowest_score
from attention_xp._engine.tile.scores import query_factor, survival_factor
from attention_xp._engine.tile.step import start
from attention_xp._engine.walkers.numpy.compiled.constants import LEAST, Constants
from attention_xp._random.survivors import head_key, smallest_draw
from attention_xp._random.threefry import schedule_of
from attention_xp._scores.region import Region
from attention_xp._typing import Array

__all__ = ["Steps", "address_of"]

_SHARE = 0.5  # of the second-level cache, for keys and values that are copied at once
_HEADROOM = 8.0  # powers of two by which a score may be larger than the shift
_Stretches = tuple[Array, Array]  # a table of stretches, and one of addends
_Draws = tuple[Array, int, int, Any]
_NO_DRAWS = np.zeros((0, 3), np.uint32), 0, 0, np.uint32(0)


def address_of(array: Array) -> int:
    """Return where an array begins in memory."""
    return int(array.__array_interface__["data"][0])


class Steps:
    """Steps over all keys of a block of rows, in one dtype."""

    def __init__(self, problem: Problem) -> None:
        from attention_xp._engine.walkers.numpy.compiled import attended, bands, copies, differentiated, draws  # noqa: PLC0415  # import numba

        self._attend: Any = attended.attend
        self._differentiate: Any = differentiated.differentiate
        self._pack: Any = copies.pack
        self.band, self.keys, self._room = bands.BAND, bands.KEYS, draws.ROOM
        self.dtype = np.dtype(problem.dtype)
        self.lanes = bands.WIDTH // self.dtype.itemsize  # numbers of a vector
        log_e = base_of(problem.xp).log_e
        # Without a soft cap, the factor of the base is that of the query; with one, it is the tangent's.
        factor, cap = (log_e, 0.0) if problem.softcap is None else (1.0, problem.softcap * log_e)
        self.query_factor, self.key_factor = query_factor(problem) * factor, 1.0 / factor
        # Without a factor of the base nothing overflows: what two masks lower is minus infinity, as in NumPy's own passes.
        least = -math.inf if log_e == 1.0 else lowest_score(np, self.dtype) * self.dtype.type(log_e)
        # Gradients that are tiny relative to the others are 0, for products with subnormal numbers take ten times as long.
        smallest = LEAST * base_of(problem.xp).log_2 if self.dtype == np.float32 else math.inf
        forward, backward = (
            tuple(Constants.of(self.dtype, limit, is_natural=log_e == 1.0)) for limit in (math.inf, smallest)
        )
        headroom = _HEADROOM * base_of(problem.xp).log_2
        factors = tuple(map(self.dtype.type, (cap, log_e, least, headroom)))
        more = (self.dtype.type(a) for a in (self.query_factor, survival_factor(problem)))
        self._options = (factors, *more), forward
        self._backward_options = factors, backward

    def width(self, numbers: int) -> int:
        """Return how many numbers whole vectors hold that have room for so many."""
        return -(-numbers // self.lanes) * self.lanes

    def scores(self, count: int) -> int:
        """Return how many numbers so many arrays of the scores of a band have, and one line."""
        return (count * self.band + 1) * self.keys

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
        running = start(problem, region, output, shift=None)
        shift, total = (np.array(a, self.dtype).reshape(heads, -1) for a in (running.peak, running.total))
        return shift, total

    def no_copies(self, D: int, Dv: int) -> tuple[Array, Array]:
        """Return memory for copies of no keys and no values, which are then read where they lie."""
        return np.empty((0, D, self.keys), self.dtype), np.empty((0, Dv), self.dtype)

    def packed_size(self, K: int, Sk: int, W: int) -> int:
        """Return how many numbers packed keys are."""
        return K * -(-Sk // self.keys) * W * self.keys

    def pack(self, rows: Array, buffer: Array) -> Array:
        """Write keys (K, Sk, W) to a buffer as (K, chunks, W, KEYS), and return them: those of a chunk are side by side."""
        rows = rows.astype(self.dtype, copy=False)
        K, Sk, W = rows.shape
        packed = buffer[: self.packed_size(K, Sk, W)].reshape(K, -1, W, self.keys)
        self._pack(address_of(rows), rows.strides, Sk, packed)
        return packed

    def padded(self, rows: Array) -> Array:
        """Return rows (K, Sk, W) of whole vectors, with zeros where there were too few numbers; no copy where none is needed."""
        W, item = rows.shape[-1], self.dtype.itemsize
        width = self.width(W)
        if rows.dtype == self.dtype and width == W and rows.strides[-1] == item and rows.flags.aligned:
            return rows
        wide = np.zeros((*rows.shape[:-1], width), self.dtype)
        wide[..., :W] = rows
        return wide

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
        table, addends = stretches
        places, sizes = tuple(map(_place, (query, key, value, output))), (*key.shape[:2], value.shape[2])
        self._attend(table, *places, sizes, there, addends, *self._options, draws, state, copies, *memory)

    def differentiate(
        self,
        stretches: _Stretches,
        draws: _Draws,
        rows: Sequence[Array],
        packed: Sequence[Array],
        key: Array,
        known: Sequence[Array],
        sums: Sequence[Array],
        memory: tuple[Array, ...],
    ) -> None:
        """Add to the gradients of a block of rows, see `differentiated.differentiate`."""
        table, addends = stretches
        places = tuple(map(_place, sums))
        arrays = tuple(rows), tuple(packed), _place(key)
        self._differentiate(table, *arrays, addends, *self._backward_options, draws, *known, places, *memory)

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
