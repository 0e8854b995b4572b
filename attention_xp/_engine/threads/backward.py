"""NumPy's backward walker: jobs of some heads, or of a part of their keys, handed out to threads."""

import itertools
import math
from typing import NamedTuple

import numpy as np

from attention_xp._engine.plan import Tile, bounds, plan
from attention_xp._engine.problem import Problem
from attention_xp._engine.region import Region
from attention_xp._engine.threads.answers import asked
from attention_xp._engine.threads.backward_head import HeadsOf, Stretch
from attention_xp._engine.threads.heads import ceiling
from attention_xp._engine.threads.in_place_backward import InPlaceBackward
from attention_xp._engine.threads.place import Place
from attention_xp._engine.threads.pool import blas_held_to_one, run_jobs
from attention_xp._engine.threads.scratch import Scratch, borrowed
from attention_xp._engine.threads.walk import without_infinite_bias
from attention_xp._engine.tile.arithmetic import summed_to
from attention_xp._engine.tile.backward_step import Known, Slopes, contribute, key_factor
from attention_xp._engine.tile.scores import query_factor
from attention_xp._engine.tile_sizes import STRIP, backward_tile_shape
from attention_xp._typing import Array

__all__ = ["is_matrix", "walk"]

_PIECES = 4  # of each of the last jobs for each thread, so that all threads end together
_MOST_COPIES = 2**25  # bytes of further gradients of the query, where keys are parted


def walk(problem: Problem, known: Known, wanted: tuple[bool, ...]) -> Slopes:
    """Return the gradients of query, key, value and of the addends that are wanted, in the shapes of the problem."""
    with blas_held_to_one() as threads:
        walk = _Walk(without_infinite_bias(problem), known, wanted, threads)
        run_jobs(len(walk.jobs), lambda: _Worker(walk).contribute, threads)
    return walk.slopes()


class _Job(NamedTuple):
    """Query heads, all with their key/value heads, and which of their stretches of keys."""

    places: list[Place]
    part: int = 0
    parts: int = 1


class _Sums(NamedTuple):
    """Gradients of the heads of a place, (G, S, W)."""

    query: Array
    key: Array
    value: Array


_Lines = dict[tuple[int, ...], tuple[Array, Array]]


class _Walk:
    """The arrays and jobs of one call."""

    def __init__(self, problem: Problem, known: Known, wanted: tuple[bool, ...], threads: int) -> None:
        self.problem, self.known, self.wanted = problem, known, wanted
        self.shape = backward_tile_shape(problem, threads, alone=any(wanted))
        Sq, Sk = problem.query.shape[-2], problem.key.shape[-2]
        self.blocks, self.stretches = bounds(0, Sq, self.shape.rows), bounds(0, Sk, self.shape.columns)
        self.rides = problem.is_product, problem.seed is None  # the shift in the query, delta in the gradient
        widths = [a.shape[-1] + rides for a, rides in zip((problem.query, problem.value), self.rides, strict=True)]
        lengths = Sq, self.shape.columns  # of what is copied of each head
        self.buffers = [(self.shape.heads, n, width) for n in lengths for width in widths]
        self.jobs = self._jobs(self._groups(), threads)
        kv_lead = problem.lead if problem.heads is None else (*problem.batch, problem.key.shape[-3])
        self.query = np.empty((*problem.lead, *problem.query.shape[-2:]), problem.dtype)
        self.key, self.value = (
            np.empty((*kv_lead, *a.shape[-2:]), problem.dtype) for a in (problem.key, problem.value)
        )
        self.addends = [
            np.zeros(a.shape, problem.dtype) if is_wanted else None
            for a, is_wanted in zip(problem.addends, wanted, strict=True)
        ]
        self.later: list[list[tuple[Array, Array]]] = [[] for _ in self.jobs]
        self.ceiling = ceiling(problem)
        self.plans: dict[object, list[list[Tile]]] = {}
        self.is_uniform = problem.is_masked_alike

    def slopes(self) -> Slopes:
        """Return the gradients that the jobs have gathered."""
        for whole, part in itertools.chain.from_iterable(self.later):  # in the order of the jobs, not of the threads
            np.add(whole, part, out=whole)
        problem = self.problem
        key, value = (
            summed_to(np, a, tuple(like.shape)) for a, like in ((self.key, problem.key), (self.value, problem.value))
        )
        return Slopes(self.query, key, value, tuple(self.addends))

    def _groups(self) -> list[list[Place]]:
        """Return heads in groups that share no entry of a matrix that is added, nor a key/value head."""
        groups: dict[tuple[int, ...], list[Place]] = {}
        shared = self._shared()
        for place in Place.every(self.problem.lead, max(self.shape.heads, self.problem.group)):
            name = tuple(i for i, is_shared in zip(place.starts, shared, strict=True) if not is_shared)
            groups.setdefault(name, []).append(place)
        return list(groups.values())

    def _shared(self) -> list[bool]:
        """Return for each leading axis whether all along it add to the same matrix."""
        lead = self.problem.lead
        shared = [False] * len(lead)
        for addend, is_wanted in zip(self.problem.addends, self.wanted, strict=True):
            if is_wanted and is_matrix(addend):
                sizes = (*(1,) * (len(lead) + 2 - addend.ndim), *addend.shape[:-2])
                shared = [one or n == 1 for one, n in zip(shared, sizes, strict=True)]
        return shared

    def _jobs(self, groups: list[list[Place]], threads: int) -> list[_Job]:
        """Return a job for each group; the last ones are cut into fewer heads, and then into parts of their keys."""
        problem, size = self.problem, -(-self.shape.heads // _PIECES)
        if self.shape.heads > 1:  # then no heads have anything in common
            last = [piece for (place,) in groups[-threads:] for piece in place.cut(size)]
            groups = groups[:-threads] + [[place] for place in last]
        whole, cut = groups[:-threads], groups[-threads:]
        rows = sum(place.heads for places in cut for place in places) * problem.query.shape[-2]
        copy = rows * problem.query.shape[-1] * np.dtype(problem.dtype).itemsize
        parts = -(-_PIECES * threads // max(len(cut), 1))
        parts = max(1, min(parts, len(self.stretches), 1 + _MOST_COPIES // max(copy, 1)))
        return [*map(_Job, whole), *(_Job(places, part, parts) for part in range(parts) for places in cut)]

    def sums(self, place: Place, job: int) -> _Sums:
        """Return zeros that the gradients of the heads of a place are added to in a job."""
        _, part, parts = self.jobs[job]
        key, value = (place.shared(self.problem, a) for a in (self.key, self.value))
        query, key, value = (a.reshape(-1, *a.shape[-2:]) for a in (self.query[place.at], key, value))
        if part > 0:
            query, whole = np.zeros_like(query), query
            self.later[job].append((whole, query))
        else:
            query[...] = 0.0
        for first, last in self.stretches[part::parts]:
            key[:, first:last], value[:, first:last] = 0.0, 0.0
        return _Sums(query, key, value)

    def tiles(self, place: Place, block: int) -> list[list[Tile]]:
        """Return the tiles of a block of rows for each stretch of keys."""
        row, stop = self.blocks[block]
        if len(self.problem.rules) == 0:
            return [[Tile((row, stop), (stretch,), (row, row), ())] for stretch in self.stretches]
        name = (row, stop) if self.is_uniform else (row, stop, *place)
        if name not in self.plans:
            self.plans[name] = self._plan(place, row, stop)
        return self.plans[name]

    def _plan(self, place: Place, row: int, stop: int) -> list[list[Tile]]:
        problem = self.problem
        chunks = bounds(row, stop, min(STRIP, self.shape.rows))
        strips = [bounds(first, last, min(STRIP, self.shape.columns)) for first, last in self.stretches]
        answers = asked(problem.rules, chunks, list(itertools.chain.from_iterable(strips)), place.item(problem))
        plans, first = [], 0
        for some in strips:
            part = slice(first, first + len(some))
            first += len(some)
            cut = [(rule, *both[..., part].tolist()) for rule, both in zip(problem.rules, answers, strict=True)]
            plans.append(plan(chunks, some, cut, self.shape.columns))
        return plans


class _Worker:
    """One thread with its buffers."""

    def __init__(self, walk: _Walk) -> None:
        self.walk, self.problem = walk, walk.problem
        self.ops = InPlaceBackward(walk.problem, walk.shape)
        self.factors = query_factor(self.problem), key_factor(self.problem)

    def contribute(self, job: int) -> None:
        """Visit the tiles of some heads, or of a part of their keys."""
        walk, problem = self.walk, self.problem
        places, part, parts = walk.jobs[job]
        lines: _Lines = {}
        lengths = [*self.ops.lengths(), *map(math.prod, walk.buffers)]
        with borrowed(Scratch.size(*lengths, dtype=problem.dtype), problem.dtype) as scratch:
            self.ops.use(scratch)
            buffers = [scratch.empty(*shape) for shape in walk.buffers]
            for place in places:
                sums = walk.sums(place, job)
                for i, some in enumerate(place.cut(walk.shape.heads)):
                    heads = HeadsOf(problem, walk.known, some, buffers, rides=walk.rides)
                    own = sums if problem.group == 1 else sums._replace(query=sums.query[i : i + 1])
                    for stretch in range(part, len(walk.stretches), parts):
                        self._stretch(heads, some, stretch, own, lines)
                np.multiply(sums.query, self.factors[0], out=sums.query)
                for first, last in walk.stretches[part::parts]:
                    np.multiply(sums.key[:, first:last], self.factors[1], out=sums.key[:, first:last])
        walk.later[job] += lines.values()

    def _stretch(self, heads: HeadsOf, place: Place, stretch: int, sums: _Sums, lines: _Lines) -> None:
        """Visit the tiles of some heads and one stretch of keys."""
        walk = self.walk
        first, last = walk.stretches[stretch]
        keys = heads.stretch(first, last, walk.ceiling)
        for block in range(len(walk.blocks)):
            for tile in walk.tiles(place, block)[stretch]:
                (start, end), rows = tile.columns[0], slice(*tile.rows)
                slopes = self._tile(heads, place, keys, slice(start - first, end - first), tile)
                sums.query[:, rows] += slopes.query
                sums.key[:, start:end] += slopes.key
                sums.value[:, start:end] += slopes.value
                for i, piece in enumerate(slopes.addends):
                    if piece is not None:
                        self._add(i, piece, place.starts, tile, lines)

    def _tile(self, heads: HeadsOf, place: Place, stretch: Stretch, some: slice, tile: Tile) -> Slopes:
        (row, stop), ((start, end),) = tile.rows, tile.columns
        self.ops.prepare_tile(stretch.range, is_finite=stretch.is_finite)
        return contribute(
            self.ops,
            Region(self.problem, (*place.starts, row, start), (*place.sizes, stop - row, end - start)),
            heads.rows(row, stop),
            stretch.keys[:, some],
            stretch.values[:, some],
            rules=tile.rules,
            mixed=(tile.mixed[0] - row, tile.mixed[1] - row),
            wanted=self.walk.wanted,
        )

    def _add(self, i: int, piece: Array, at: tuple[int, ...], tile: Tile, lines: _Lines) -> None:
        """Add to the gradient of an addend: to a matrix at once, which is this job's own, to a line later."""
        whole: Array = self.walk.addends[i]
        surplus = len(at) + 2 - whole.ndim
        index = tuple(0 if n == 1 else j for j, n in zip(at[max(surplus, 0) :], whole.shape[:-2], strict=True))
        target = whole[(*index, ...)]
        if not is_matrix(whole):
            target = lines.setdefault((i, *index), (target, np.zeros_like(target)))[1]
        spans = (tile.rows, tile.columns[0])[2 - target.ndim :]
        part = tuple(slice(None) if n == 1 else slice(*span) for n, span in zip(target.shape, spans, strict=True))
        target[part] += piece.reshape(target[part].shape)


def is_matrix(addend: Array) -> bool:
    """Whether an addend varies along rows and along keys."""
    return addend.ndim > 1 and 1 not in addend.shape[-2:]
