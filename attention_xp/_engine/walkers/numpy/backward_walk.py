"""The jobs of a backward pass on NumPy, each of some heads or of a part of their rows, and what they share."""

import itertools
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from attention_xp._backend.shapes import summed_to
from attention_xp._engine.plan.plan import Bounds
from attention_xp._engine.plan.tile_sizes import TileShape, backward_tile_shape
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.backward_step import key_factor
from attention_xp._engine.tile.gradients import Gradients, Known
from attention_xp._engine.tile.scores import query_factor
from attention_xp._engine.walkers.numpy.backward_run import Common, KeysOf
from attention_xp._engine.walkers.numpy.place import Place
from attention_xp._engine.walkers.numpy.route import Route
from attention_xp._typing import Array, DType
from attention_xp.biases import Bias

__all__ = ["BackwardWalk", "Job", "is_matrix"]

_PIECES = 4  # of each of the last jobs for each thread, so that all threads end together
_MOST_COPIES = 2**25  # bytes of further gradients of keys and values, where rows are parted


class Job(NamedTuple):
    """Query heads, all with their key/value heads, and some of their blocks of rows."""

    places: list[Place]
    blocks: list[Bounds]
    part: int = 0


class BackwardWalk:
    """The arrays and jobs of one call."""

    def __init__(self, problem: Problem, known: Known, wanted: tuple[bool, ...], threads: int) -> None:
        self.problem, self.known, self.wanted = problem, known, wanted
        self.shape = self._shape(threads)
        self.route = self._route()
        self.jobs = self._jobs(self._groups(), threads)
        kv_lead = problem.lead if problem.heads is None else (*problem.batch, problem.key.shape[-3])
        self.query = np.empty((*problem.lead, *problem.query.shape[-2:]), problem.dtype)
        self.key, self.value = (
            np.empty((*kv_lead, *a.shape[-2:]), problem.dtype) for a in (problem.key, problem.value)
        )
        self.addends = [
            _zeros(addend, problem.dtype) if is_wanted else None
            for addend, is_wanted in zip(problem.addends, wanted, strict=True)
        ]
        self.later: list[list[tuple[Array, Array]]] = [[] for _ in self.jobs]
        self.query_factor, self.key_factor = query_factor(problem), key_factor(problem)
        self._keys: dict[Place, KeysOf] = {}

    def _shape(self, threads: int) -> TileShape:
        return backward_tile_shape(self.problem, threads, alone=_adds_by_heads(self.problem, self.wanted))

    def _route(self) -> Route:
        return Route(self.problem, self.shape, widest=self.shape.columns, together=self.shape.columns)

    @cached_property
    def common(self) -> Common:
        """What depends on the rows of all heads; two threads may both find it."""
        return Common(self.problem, self.known)

    def gradients(self) -> Gradients:
        """Return the gradients that the jobs have summed up."""
        for whole, part in itertools.chain.from_iterable(self.later):  # in the order of the jobs, not of the threads
            np.add(whole, part, out=whole)
        problem = self.problem
        key, value = (
            summed_to(np, a, tuple(like.shape)) for a, like in ((self.key, problem.key), (self.value, problem.value))
        )
        return Gradients(self.query, key, value, tuple(self.addends))

    def _groups(self) -> list[list[Place]]:
        """Return heads in groups, so that no two groups add to the same addend (Sq, Sk) or key/value head."""
        groups: dict[tuple[int, ...], list[Place]] = {}
        shared = self._shared()
        for place in Place.every(self.problem.lead, max(self.shape.heads, self.problem.group)):
            name = tuple(i for i, is_shared in zip(place.starts, shared, strict=True) if not is_shared)
            groups.setdefault(name, []).append(place)
        return list(groups.values())

    def _shared(self) -> list[bool]:
        """Return for each leading axis whether an addend (Sq, Sk) is broadcast along it."""
        lead = self.problem.lead
        shared = [False] * len(lead)
        for addend, is_wanted in zip(self.problem.addends, self.wanted, strict=True):
            if is_wanted and is_matrix(addend):
                sizes = (*(1,) * (len(lead) + 2 - addend.ndim), *addend.shape[:-2])
                shared = [one or n == 1 for one, n in zip(shared, sizes, strict=True)]
        return shared

    def _jobs(self, groups: list[list[Place]], threads: int) -> list[Job]:
        """Return a job for each group; the last ones are cut by rows, or by heads if they have few rows."""
        problem, shape, wanted = self.problem, self.shape, _PIECES * threads
        blocks = sorted(self.route.blocks()) if groups else []
        if shape.heads > problem.group and len(blocks) < _PIECES:  # heads are stacked, and add to no common array
            size = problem.group * -(-shape.heads // (problem.group * _PIECES))
            last = [piece for (place,) in groups[-threads:] for piece in place.cut(size)]
            groups = groups[:-threads] + [[place] for place in last]
        whole, cut = groups[:-threads], groups[-threads:]
        keys = sum(place.heads for places in cut for place in places) // problem.group * problem.key.shape[-2]
        copy = keys * (problem.key.shape[-1] + problem.value.shape[-1]) * np.dtype(problem.dtype).itemsize
        parts = max(1, min(-(-wanted // max(len(cut), 1)), len(blocks), 1 + _MOST_COPIES // max(copy, 1)))
        edges = [len(blocks) * i // parts for i in range(parts + 1)]
        runs = [blocks[first:end] for first, end in itertools.pairwise(edges)]
        pieces = [Job(places, run, part) for part, run in enumerate(runs) for places in cut]
        return [*(Job(places, blocks) for places in whole), *reversed(pieces)]

    def keys_of(self, place: Place) -> KeysOf:
        """Return the keys and values of some heads; two threads may both prepare them, with the same result."""
        known = self._keys.get(place)
        if known is None:
            known = self._keys[place] = KeysOf(self.problem, place)
        return known

    def targets(self, place: Place, job: int) -> tuple[int, Array, Array]:
        """Return the first key of a job, and where the gradients of the keys of a place and of their values are summed."""
        key, value = (place.by_head(self.problem, a) for a in (self.key, self.value))
        if self.jobs[job].part == 0:
            return 0, key, value
        first, last = self._reach(place, self.jobs[job].blocks)
        wholes = key[:, first:last], value[:, first:last]
        copies = np.empty_like(wholes[0]), np.empty_like(wholes[1])
        self.later[job] += zip(wholes, copies, strict=True)
        return first, *copies

    def _reach(self, place: Place, blocks: list[Bounds]) -> Bounds:
        """Return the bounds of the keys that some rows visit."""
        stretches = [
            stretch
            for some in place.cut(self.shape.heads)
            for block in blocks
            for tile in self.route.tiles(some, block)
            for stretch in tile.columns
        ]
        return min((start for start, _ in stretches), default=0), max((end for _, end in stretches), default=0)


def _adds_by_heads(problem: Problem, wanted: tuple[bool, ...]) -> bool:
    """Whether there is a gradient of an array that is added to the scores: its pieces are those of a head."""
    pairs = zip(problem.addends, wanted, strict=True)
    return any(is_wanted and not isinstance(addend, Bias) for addend, is_wanted in pairs)


def _zeros(addend: Array | Bias, dtype: DType) -> Any:
    """Return gradients of an addend, or of the arrays of a rule, before anything is added."""
    if isinstance(addend, Bias):
        return tuple(np.zeros(a.shape, np.result_type(a.dtype, dtype)) for a in addend.arrays)
    return np.zeros(addend.shape, dtype)


def is_matrix(addend: Array | Bias) -> bool:
    """Whether an addend is an array that varies along rows and along keys."""
    return not isinstance(addend, Bias) and addend.ndim > 1 and 1 not in addend.shape[-2:]
