"""NumPy's forward pass by compiled loops, which do the whole step over all keys of a block of rows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from attention_xp._engine.plan.plan import Bounds
from attention_xp._engine.plan.tile_sizes import TileShape, compiled_shape
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.walkers.numpy.compiled.steps import Steps, address_of
from attention_xp._engine.walkers.numpy.forward_walk import ForwardWalk
from attention_xp._engine.walkers.numpy.heads import is_finite
from attention_xp._engine.walkers.numpy.place import Place, for_heads
from attention_xp._engine.walkers.numpy.pool import run_jobs
from attention_xp._engine.walkers.numpy.route import Route
from attention_xp._engine.walkers.numpy.scratch import lent
from attention_xp._engine.walkers.numpy.stretches import StretchesOf
from attention_xp._scores.region import Region
from attention_xp._typing import Array

__all__ = ["compiled_forward"]


def compiled_forward(problem: Problem, steps: Steps, threads: int, *, lse: bool) -> ForwardWalk | None:
    """Return the walk of a forward pass that is done; ``None`` where an excluded value is not finite, which needs care."""
    walk = _Walk(problem, steps, threads, lse=lse)
    run_jobs(len(walk.jobs), lambda: _Worker.at_work(walk), threads)
    return walk if walk.is_sound else None


class _Walk(ForwardWalk):
    """The arrays and jobs of one call."""

    _cuts = 3  # a part copies its keys anew, unless its thread has them from the one before

    def __init__(self, problem: Problem, steps: Steps, threads: int, *, lse: bool) -> None:
        super().__init__(problem, threads, lse=lse)
        self.steps, self.is_sound = steps, True
        self.keys_at_once = steps.at_once(problem)
        self.stretches = StretchesOf(problem, self.route)

    def _shape(self, threads: int) -> TileShape:
        return self.problem.once(compiled_shape, threads)

    def _route(self) -> Route:
        return Route.of_compiled(self.problem, self.shape)


class _Worker:
    """One thread with its buffers: it computes blocks of rows, each from its first key to its output."""

    @classmethod
    @contextmanager
    def at_work(cls, walk: _Walk) -> Iterator[Callable[[int], None]]:
        """Lend memory to a worker, and yield the function that does a job."""
        problem, steps, shape = walk.problem, walk.steps, walk.shape
        D, N = problem.query.shape[-1], steps.width(problem.value.shape[-1])
        keys = walk.keys_at_once
        of_keys, of_rows = (keys * D, keys * N), (shape.rows * steps.lanes, shape.rows * N)
        lengths = [shape.rows * D, *of_keys, *of_rows, steps.scores(1)]
        with lent(lengths, problem.dtype) as buffers:
            yield cls(walk, buffers).attend

    def __init__(self, walk: _Walk, buffers: list[Array]) -> None:
        self.walk, self.problem, self._steps = walk, walk.problem, walk.steps
        query, key, value, sums, outputs, scores = buffers
        D, keys = walk.problem.query.shape[-1], walk.keys_at_once
        self._copies = key.reshape(-1, D, self._steps.keys), value.reshape(keys, -1)
        N = self._copies[1].shape[1]
        self._rows = query.reshape(-1, D), sums.reshape(-1, self._steps.lanes), outputs.reshape(-1, N)
        self._memory = self._steps.memory(scores)
        self._packed: tuple[int, ...] | None = None  # the keys of a single head that lie in memory
        self._there = np.zeros(keys // self._steps.keys, np.uint8)  # which chunks of them
        self._keys: tuple[Array, Array]

    def attend(self, job: int) -> None:
        """Compute one block of rows of some heads."""
        walk = self.walk
        if not walk.is_sound:
            return
        place, rows = walk.jobs[job]
        at, m = (*place.at, slice(*rows)), rows[1] - rows[0]
        region = Region(self.problem, (*place.starts, rows[0], 0), (*place.sizes, m, self.problem.key.shape[-2]))
        target = walk.output[at]
        state = self._computed(region, place, rows, target)
        # An excluded value that is not finite must not count, which takes more than a weight of 0.
        if self.problem.rules and not is_finite(target):
            walk.is_sound = False
        if walk.lse is not None:
            walk.lse[at] = self._steps.log_sum_exp(region, state, target)

    def _computed(self, region: Region, place: Place, rows: Bounds, target: Array) -> tuple[Array, Array]:
        """Write the output of a block to a target, and return the shift of its scores, and the sums of their powers."""
        G, m, steps = place.heads, rows[1] - rows[0], self._steps
        query = self.problem.query[(*place.at, slice(*rows))].reshape(G, m, -1).astype(steps.dtype, copy=False)
        state, stretches = steps.state(region, target, G), self.walk.stretches.of(region, place, rows)
        arrays = query, *self._keys_of(place), target.reshape(G, m, -1)
        of_query, sums, of_output = (memory[:m] for memory in self._rows)
        if _are_adjacent(query, of_query):
            of_query = of_query[:0]
        if _are_adjacent(arrays[-1], of_output):
            of_output = of_output[:0]
        copies = of_query, *self._copies, sums, of_output
        steps.attend(stretches, steps.draws(region), arrays, state, copies, self._memory, self._there)
        return state

    def _keys_of(self, place: Place) -> tuple[Array, Array]:
        """Return the keys and values of some heads: often those of the job before, some of which are packed."""
        key, value = (place.by_head(self.problem, a) for a in (self.problem.key, self.problem.value))
        K = max(len(key), len(value))  # batch items may share keys, or values, alone
        name = address_of(key), address_of(value), K
        if self._packed != name:
            self._packed = name
            self._keys = self._of_heads(key, K), self._of_heads(value, K)
            self._there[:] = 0
        return self._keys

    def _of_heads(self, array: Array, K: int) -> Array:
        """Return the keys or values of so many heads, (K, Sk, W), in the dtype of the computation."""
        return for_heads(array.astype(self._steps.dtype, copy=False), K)


def _are_adjacent(rows: Array, memory: Array) -> bool:
    """Whether rows (G, m, W) lie one behind the other, as those in memory for them do."""
    width = memory.shape[1] * rows.itemsize
    return bool(rows.shape[-1] == memory.shape[1] and rows.strides[1:] == (width, rows.itemsize))
