"""NumPy's backward pass by compiled loops, which do the whole step over all keys of a block of rows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from attention_xp._engine.plan.plan import Bounds
from attention_xp._engine.plan.tile_sizes import TileShape, compiled_backward_shape
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.backward_step import shift_of
from attention_xp._engine.tile.gradients import Known
from attention_xp._engine.tile.scores import survival_factor
from attention_xp._engine.walkers.numpy.backward_run import delta_of
from attention_xp._engine.walkers.numpy.backward_walk import BackwardWalk, Job
from attention_xp._engine.walkers.numpy.compiled.steps import Steps
from attention_xp._engine.walkers.numpy.heads import is_finite
from attention_xp._engine.walkers.numpy.place import Place
from attention_xp._engine.walkers.numpy.pool import run_jobs
from attention_xp._engine.walkers.numpy.route import Route
from attention_xp._engine.walkers.numpy.scratch import lent
from attention_xp._engine.walkers.numpy.stretches import StretchesOf
from attention_xp._scores.region import Region
from attention_xp._typing import Array

__all__ = ["compiled_backward"]


def compiled_backward(problem: Problem, known: Known, steps: Steps, threads: int) -> BackwardWalk | None:
    """Return the walk of a backward pass that is done; ``None`` where an excluded number is not finite, which needs care."""
    walk = _Walk(problem, known, steps, threads)
    run_jobs(len(walk.jobs), lambda: _Worker.at_work(walk), threads)
    return walk if walk.is_sound else None


class _Walk(BackwardWalk):
    """The arrays and jobs of one call."""

    def __init__(self, problem: Problem, known: Known, steps: Steps, threads: int) -> None:
        super().__init__(problem, known, (False,) * len(problem.addends), threads)
        self.steps, self.is_sound = steps, True
        self.key_factor = steps.key_factor
        self.stretches = StretchesOf(problem, self.route)

    def _shape(self, threads: int) -> TileShape:
        return compiled_backward_shape(self.problem, threads)

    def _route(self) -> Route:
        return Route.of_compiled(self.problem, self.shape)

    def _jobs(self, groups: list[list[Place]], threads: int) -> list[Job]:
        """Return a job for each group, and its parts for several threads alone, for each of them packs all keys."""
        if threads > 1:
            return super()._jobs(groups, threads)
        return [Job(places, self.route.blocks()) for places in groups]


class _Worker:
    """One thread with its buffers."""

    @classmethod
    @contextmanager
    def at_work(cls, walk: _Walk) -> Iterator[Callable[[int], None]]:
        """Lend memory to a worker, and yield the function that does a job."""
        problem, steps, (heads, m, *_) = walk.problem, walk.steps, walk.shape
        Sk, widths = problem.key.shape[-2], (problem.query.shape[-1], problem.value.shape[-1])
        K, wide = max(heads // problem.group, 1), [steps.width(width) for width in widths]
        of_rows = [heads * m * width for width in (*wide, wide[0])]
        of_keys = [K * Sk * width for width in wide]
        packed = [steps.packed_size(K, Sk, width) for width in widths]
        with lent([*of_rows, *of_keys, *packed, steps.scores(3)], problem.dtype) as buffers:
            yield cls(walk, buffers).contribute

    def __init__(self, walk: _Walk, buffers: list[Array]) -> None:
        self.walk, self.problem, self._steps = walk, walk.problem, walk.steps
        self._of_rows, self._of_keys, self._packed = buffers[:3], buffers[3:5], buffers[5:7]
        self._memory = walk.steps.memory(buffers[7])

    def contribute(self, job: int) -> None:
        """Visit all keys of some heads, or of a part of their rows."""
        walk = self.walk
        for place in walk.jobs[job].places:
            if walk.is_sound:
                self._visit(place, job)

    def _visit(self, place: Place, job: int) -> None:
        walk, problem, steps = self.walk, self.problem, self._steps
        sums = walk.sums(place, job)
        key, value = (place.shared(problem, a).reshape(-1, *a.shape[-2:]) for a in (problem.key, problem.value))
        K = max(place.heads // problem.group, 1)
        key, value = (np.broadcast_to(a, (K, *a.shape[1:])) for a in (key, value))  # batch items may share them
        packed = [steps.pack(a, buffer) for a, buffer in zip((key, value), self._packed, strict=True)]
        rows = steps.padded(key)
        found = [
            buffer[: K * a.shape[1] * steps.width(a.shape[2])].reshape(K, a.shape[1], -1)
            for a, buffer in zip((key, value), self._of_keys, strict=True)
        ]
        for some in found:
            some[...] = 0.0
        for heads in place.cut(walk.shape.heads):
            for block in walk.jobs[job].blocks:
                self._differentiate(heads, block, packed, rows, found)
        sums.add_whole(*(some[..., : a.shape[2]] for some, a in zip(found, (key, value), strict=True)))
        # Where a pair is excluded, a number that is not finite must not count, even with a weight of 0.
        if problem.rules and not all(map(is_finite, found)):
            walk.is_sound = False

    def _differentiate(self, place: Place, rows: Bounds, packed: list[Array], key: Array, found: list[Array]) -> None:
        walk, problem, steps = self.walk, self.problem, self._steps
        at, G, m = (*place.at, slice(*rows)), place.heads, rows[1] - rows[0]
        known = walk.known.at(*at)
        query, gradient = (
            self._filled(buffer, array.reshape(G, m, -1), factor)
            for buffer, array, factor in zip(
                self._of_rows,
                (problem.query[at], known.gradient),
                (steps.query_factor, survival_factor(problem)),
                strict=False,
            )
        )
        dquery = self._of_rows[2][: query.size].reshape(query.shape)
        dquery[...] = 0.0
        shift, delta = (
            np.array(a, steps.dtype).reshape(G, m) for a in (shift_of(problem, known.lse), delta_of(problem, known))
        )
        region = Region(problem, (*place.starts, rows[0], 0), (*place.sizes, m, problem.key.shape[-2]))
        stretches = walk.stretches.of(region, place, rows)
        steps.differentiate(
            stretches[:2],
            steps.draws(region),
            (query, gradient),
            packed,
            key,
            (shift, delta),
            (dquery, *found),
            self._memory,
        )
        if problem.rules and not is_finite(dquery):
            walk.is_sound = False
        target = walk.query[at]
        np.multiply(dquery[..., : target.shape[-1]].reshape(target.shape), walk.query_factor, out=target)

    def _filled(self, buffer: Array, rows: Array, factor: float) -> Array:
        """Return rows (G, m, W) times a factor in a buffer, in whole vectors with zeros behind the numbers."""
        G, m, W = rows.shape
        width = self._steps.width(W)
        wide = buffer[: G * m * width].reshape(G, m, width)
        np.multiply(rows, factor, out=wide[..., :W], dtype=wide.dtype)
        wide[..., W:] = 0.0
        return wide
