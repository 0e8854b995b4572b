"""NumPy's backward pass by compiled loops, which do the whole step over all keys of a block of rows."""

import math
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
from attention_xp._engine.walkers.numpy.compiled.steps import BASE, Steps
from attention_xp._engine.walkers.numpy.heads import is_finite
from attention_xp._engine.walkers.numpy.place import Place, for_heads
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
        self.key_factor = 1.0  # the gradients of scores have it
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
        # One head after the other is copied, unless its rows are in several blocks, between which others come.
        P = K if m < problem.query.shape[-2] else 1
        of_rows = (m, wide[0]), (m, wide[1]), (P, Sk, wide[0])
        shapes = *(steps.packed_shape(P, Sk, width) for width in widths), *of_rows
        sums = [heads * m * wide[0], *(K * Sk * width for width in wide)]
        with lent([*map(math.prod, shapes), *sums, steps.scores(3)], problem.dtype) as buffers:
            copies = [buffer.reshape(shape) for buffer, shape in zip(buffers, shapes, strict=False)]
            yield cls(walk, copies, buffers[len(shapes) :]).contribute

    def __init__(self, walk: _Walk, copies: list[Array], buffers: list[Array]) -> None:
        self.walk, self.problem, self._steps = walk, walk.problem, walk.steps
        self._packed, self._rows = tuple(copies[:2]), copies[2:]
        self._query, *self._keys = buffers[:3]
        self._memory = walk.steps.memory(buffers[3])

    def contribute(self, job: int) -> None:
        """Visit all keys of some heads, or of a part of their rows."""
        walk = self.walk
        for place in walk.jobs[job].places:
            if walk.is_sound:
                self._visit(place, job)

    def _visit(self, place: Place, job: int) -> None:
        walk, problem, steps = self.walk, self.problem, self._steps
        K, pair = max(place.heads // problem.group, 1), (problem.key, problem.value)
        keys = [for_heads(place.by_head(problem, a).astype(steps.dtype, copy=False), K) for a in pair]
        first, *targets = walk.targets(place, job)
        found = [steps.whole(*pair) for pair in zip(targets, self._keys, strict=True)]
        begun = np.zeros(K, np.uint8)
        for heads in place.cut(walk.shape.heads):
            for block in walk.jobs[job].blocks:
                self._differentiate(heads, block, keys, begun, (first, *found))
        for target, some in zip(targets, found, strict=True):
            _write(target, some)
        if problem.seed is not None:
            np.multiply(targets[1], survival_factor(problem), out=targets[1])
        # Where a pair is excluded, a number that is not finite must not count, even with a weight of 0.
        if problem.rules and not all(map(is_finite, found)):
            walk.is_sound = False

    def _differentiate(
        self, place: Place, rows: Bounds, keys: list[Array], begun: Array, sums: tuple[int, Array, Array]
    ) -> None:
        """Compute the gradients of some rows; of some heads, that have `begun`, earlier ones were there."""
        walk, problem, steps = self.walk, self.problem, self._steps
        at, G, m = (*place.at, slice(*rows)), place.heads, rows[1] - rows[0]
        known, target = walk.known.at(*at), walk.query[at].reshape(G, m, -1)
        query, gradient = (
            a.reshape(G, m, -1).astype(steps.dtype, copy=False) for a in (problem.query[at], known.gradient)
        )
        of_query, of_gradient, of_key = self._rows
        copies = of_query[:m], of_gradient[:m], of_key
        dquery = steps.whole(target, self._query)
        shift, delta = (
            np.array(a, steps.dtype).reshape(G, m)
            for a in (shift_of(problem, known.lse, BASE), delta_of(problem, known))
        )
        region = Region(problem, (*place.starts, rows[0], 0), (*place.sizes, m, problem.key.shape[-2]))
        stretches, draws = walk.stretches.of(region, place, rows), steps.draws(region)
        steps.differentiate(
            stretches,
            draws,
            (query, gradient, *keys),
            self._packed,
            copies,
            begun,
            (shift, delta * steps.pull_factor),
            (dquery, *sums),
            self._memory,
        )
        _write(target, dquery)
        if problem.rules and not is_finite(dquery):
            walk.is_sound = False


def _write(target: Array, found: Array) -> None:
    """Write the numbers of sums in rows of whole vectors to a target, unless they are summed up there."""
    if found is not target:
        target[...] = found[..., : target.shape[-1]]
