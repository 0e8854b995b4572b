"""NumPy's forward pass by compiled loops, which do the whole step over all keys of a block of rows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from attention_xp._engine.plan.plan import Bounds
from attention_xp._engine.plan.tile_sizes import TileShape, compiled_shape
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.arithmetic import Arithmetic
from attention_xp._engine.tile.step import Running, log_sum_exp, normalized, start
from attention_xp._engine.walkers.numpy.compiled.steps import Steps, address_of
from attention_xp._engine.walkers.numpy.forward_walk import ForwardWalk
from attention_xp._engine.walkers.numpy.heads import is_finite
from attention_xp._engine.walkers.numpy.place import Place
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

    def __init__(self, problem: Problem, steps: Steps, threads: int, *, lse: bool) -> None:
        super().__init__(problem, threads, lse=lse)
        self.steps, self.is_sound = steps, True

    def _shape(self, threads: int) -> TileShape:
        return compiled_shape(self.problem, threads)

    def _route(self) -> Route:
        return Route(self.problem, self.shape, widest=self.shape.columns, together=0)  # a tile costs nothing by itself


class _Division(Arithmetic):
    """Division of outputs by the sums of the weights, in the memory of the result."""

    output: Array  # (..., G, m, Dv), where the rows at hand belong

    def divide(self, x: Array, y: Array) -> Array:
        """Return x / y where the rows at hand belong."""
        return np.divide(x, y, out=self.output)


class _Worker:
    """One thread with its buffers: it computes blocks of rows, each from its first key to its output."""

    @classmethod
    @contextmanager
    def at_work(cls, walk: _Walk) -> Iterator[Callable[[int], None]]:
        """Lend memory to a worker, and yield the function that does a job."""
        problem, steps, rows = walk.problem, walk.steps, walk.shape.heads * walk.shape.rows
        widths = problem.query.shape[-1], steps.width(problem.value.shape[-1]), steps.lanes
        packed = steps.packed_size(max(walk.shape.heads // problem.group, 1), *problem.key.shape[-2:])
        with lent([*(rows * width for width in widths), packed, steps.scores(1)], problem.dtype) as buffers:
            yield cls(walk, buffers).attend

    def __init__(self, walk: _Walk, buffers: list[Array]) -> None:
        self.walk, self.problem, self._steps = walk, walk.problem, walk.steps
        *self._of_rows, self._packed, self._scores = buffers
        self._most = walk.shape.heads * walk.shape.rows
        self._met: tuple[int, ...] | None = None  # where the keys and values at hand lie, and how many heads they are
        self._keys: tuple[Array, Array]
        self._ops = _Division(walk.problem)
        self._stretches = StretchesOf(walk.problem, walk.route)

    def attend(self, job: int) -> None:
        """Compute one block of rows of some heads."""
        walk = self.walk
        if not walk.is_sound:
            return
        place, rows = walk.jobs[job]
        sizes = *place.sizes, rows[1] - rows[0], self.problem.key.shape[-2]
        region = Region(self.problem, (*place.starts, rows[0], 0), sizes)
        at = *place.at, slice(*rows)
        running = self._computed(region, place, rows)
        # An excluded value that is not finite must not count, which takes more than a weight of 0.
        if self.problem.rules and not is_finite(running.output):
            walk.is_sound = False
            return
        self._ops.output = walk.output[at]
        normalized(self._ops, running)
        if walk.lse is not None:
            walk.lse[at] = log_sum_exp(self.problem, region, running)

    def _computed(self, region: Region, place: Place, rows: Bounds) -> Running:
        *lead, m, _ = region.sizes
        G, Dv = place.heads, self.problem.value.shape[-1]
        query, output, sums = (
            buffer[: G * m * len(buffer) // self._most].reshape(G, m, -1) for buffer in self._of_rows
        )
        np.multiply(
            self.problem.query[(*place.at, slice(*rows))].reshape(query.shape),
            self._steps.query_factor,
            out=query,
            dtype=query.dtype,
        )
        output[...] = 0.0
        result = output.reshape(*lead, m, -1)[..., :Dv]
        running = start(self.problem, region, result, shift=None)
        peak, total = (np.array(a, sums.dtype).reshape(G, m) for a in (running.peak, running.total))
        stretches = self._stretches.of(region, place, rows)
        arrays, state = (query, *self._keys_of(place)), (peak, sums, total, output)
        self._steps.attend(stretches[:2], self._steps.draws(region), arrays, state, self._scores)
        return Running(peak.reshape(*lead, m, 1), total.reshape(*lead, m, 1), result)

    def _keys_of(self, place: Place) -> tuple[Array, Array]:
        """Return the keys and values of some heads as the loops want them: often those of the job before."""
        key, value = (
            place.shared(self.problem, a).reshape(-1, *a.shape[-2:]) for a in (self.problem.key, self.problem.value)
        )
        name = address_of(key), address_of(value), len(key)
        if self._met != name:
            self._met = name
            self._keys = self._steps.pack(key, self._packed), self._steps.padded(value)
        return self._keys
