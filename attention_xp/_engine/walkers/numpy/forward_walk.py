"""The jobs of a forward pass on NumPy, each of some heads and one block of rows, and what they share."""

import itertools
from functools import cached_property

import numpy as np

from attention_xp._engine.plan.plan import Bounds, bounds
from attention_xp._engine.plan.tile_sizes import TileShape, tile_shape
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.walkers.numpy.heads import Ceiling, Heads, Magnitudes, ceiling, likely
from attention_xp._engine.walkers.numpy.place import Place
from attention_xp._engine.walkers.numpy.route import Route
from attention_xp._engine.walkers.numpy.scratch import aligned

__all__ = ["ForwardWalk"]

_WIDEST = 2048  # keys of a tile of few rows
_SHORTEST = 64  # rows of a part of a job


class ForwardWalk:
    """The arrays and jobs of one call."""

    _cuts = 2  # how often the last jobs are halved

    def __init__(self, problem: Problem, threads: int, *, lse: bool) -> None:
        self.problem = problem
        self.shape = self._shape(threads)
        Sq, lead = problem.query.shape[-2], problem.lead
        self.output = aligned((*lead, Sq, problem.value.shape[-1]), problem.dtype)
        self.lse = np.empty((*lead, Sq), problem.dtype) if lse else None
        self.route = self._route()
        self.jobs = self._jobs(threads)
        self.heads: dict[Place, Heads] = {}
        self.examined: dict[Place, Heads] = {}  # the same, with bounds from all queries and keys

    def _shape(self, threads: int) -> TileShape:
        return tile_shape(self.problem, threads)

    def _route(self) -> Route:
        return Route(self.problem, self.shape, widest=_WIDEST, together=self.shape.columns)

    def _jobs(self, threads: int) -> list[tuple[Place, Bounds]]:
        """Return the heads and rows of all jobs; for several threads, the last ones are halved, and the last of these again.

        So all threads end together.
        """
        places = list(Place.every(self.problem.lead, self.shape.heads))
        jobs = list(itertools.product(places, self.route.blocks())) if places else []
        # Plans are made for whole blocks, and folded blocks have few rows.
        if threads == 1 or self.problem.rules or self.shape.folded:
            return jobs
        for _ in range(self._cuts):
            halves = [(place, half) for place, rows in jobs[-threads:] for half in _halves(*rows)]
            jobs = [*jobs[:-threads], *halves]
        return jobs

    @cached_property
    def ceiling(self) -> Ceiling:
        """A bound on the scores; two threads may both find it."""
        return ceiling(self.problem)

    @cached_property
    def likely(self) -> Magnitudes:
        """What a sample says of all heads."""
        return likely(self.problem, self.ceiling)

    def gathered(self) -> int:
        """Return the size of the buffer for keys, or values, that are gathered from several stretches."""
        if not self.problem.rules:
            return 0
        keys: int = max(self.shape.heads // self.problem.group, 1) * max(self.shape.columns, self.shape.width, _WIDEST)
        return keys * int(max(self.problem.key.shape[-1], self.problem.value.shape[-1]))

    def heads_at(self, place: Place) -> Heads:
        """Return the heads of a job; two threads may both prepare them, with the same result."""
        known = self.heads.get(place)
        if known is None:
            known = Heads.of(self.problem, self.likely, place)
            if not self.likely.bounded:
                known = known.surely(self.problem, self.ceiling)
            self.heads[place] = known
        return known

    def surely(self, heads: Heads) -> Heads:
        """Return the heads of a job with bounds from all queries and keys.

        Other jobs do not use them: their results must not depend on the order in which threads do the jobs.
        """
        known = self.examined.get(heads.place)
        if known is None:
            known = self.examined[heads.place] = heads.surely(self.problem, self.ceiling)
        return known


def _halves(row: int, stop: int) -> list[Bounds]:
    """Return about equal parts of some rows, or all where these are few."""
    return bounds(row, stop, max(_SHORTEST, 16 * -(-(stop - row) // 32)))
