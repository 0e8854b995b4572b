"""NumPy's backward walker: jobs of some heads, or of a part of their rows, handed out to threads."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from attention_xp._engine.plan.plan import Bounds, Tile
from attention_xp._engine.plan.tile_sizes import backward_tile_shape
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.arithmetic import summed_to
from attention_xp._engine.tile.backward_step import contribute, key_factor
from attention_xp._engine.tile.gradients import Gradients, Known
from attention_xp._engine.tile.scores import query_factor
from attention_xp._engine.walkers.numpy.backward_run import Common, KeysOf, Run
from attention_xp._engine.walkers.numpy.in_place_backward import InPlaceBackward
from attention_xp._engine.walkers.numpy.key_sums import KeySums
from attention_xp._engine.walkers.numpy.place import Place
from attention_xp._engine.walkers.numpy.pool import run_jobs, with_blas_held_to_one
from attention_xp._engine.walkers.numpy.route import Route
from attention_xp._engine.walkers.numpy.scratch import lent
from attention_xp._scores.region import Region
from attention_xp._typing import Array, DType
from attention_xp.biases import Bias

__all__ = ["BackwardWalk", "backward"]

_PIECES = 4  # of each of the last jobs for each thread, so that all threads end together
_MOST_COPIES = 2**25  # bytes of further gradients of keys and values, where rows are parted
_RUN = 2048  # rows of all heads that are prepared together


def backward(problem: Problem, known: Known, wanted: tuple[bool, ...], *, threads: int | None = None) -> Gradients:
    """Return the gradients of query, key, value and of the addends that are wanted, in the shapes of the problem.

    On so many threads, by default on as many as BLAS may have.
    """

    def visit(count: int) -> BackwardWalk:
        walk = BackwardWalk(problem, known, wanted, count)
        run_jobs(len(walk.jobs), lambda: _Worker.at_work(walk), count)
        return walk

    return with_blas_held_to_one(visit, threads).gradients()


class _Job(NamedTuple):
    """Query heads, all with their key/value heads, and some of their blocks of rows."""

    places: list[Place]
    blocks: list[Bounds]
    part: int = 0


_Later = dict[tuple[int, ...], tuple[Array, Array]]  # of an addend: a gradient to which all jobs add, and what one adds


class BackwardWalk:
    """The arrays and jobs of one call."""

    def __init__(self, problem: Problem, known: Known, wanted: tuple[bool, ...], threads: int) -> None:
        self.problem, self.known, self.wanted = problem, known, wanted
        self.shape = backward_tile_shape(problem, threads, alone=_adds_by_heads(problem, wanted))
        self.route = Route(problem, self.shape, widest=self.shape.columns, together=self.shape.columns)
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
        self.common = Common(problem, known)
        self.query_factor, self.key_factor = query_factor(problem), key_factor(problem)
        self._keys: dict[Place, KeysOf] = {}

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
            if is_wanted and _is_matrix(addend):
                sizes = (*(1,) * (len(lead) + 2 - addend.ndim), *addend.shape[:-2])
                shared = [one or n == 1 for one, n in zip(shared, sizes, strict=True)]
        return shared

    def _jobs(self, groups: list[list[Place]], threads: int) -> list[_Job]:
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
        pieces = [_Job(places, run, part) for part, run in enumerate(runs) for places in cut]
        return [*(_Job(places, blocks) for places in whole), *reversed(pieces)]

    def keys_of(self, place: Place) -> KeysOf:
        """Return the keys and values of some heads; two threads may both prepare them, with the same result."""
        known = self._keys.get(place)
        if known is None:
            known = self._keys[place] = KeysOf(self.problem, place)
        return known

    def sums(self, place: Place, job: int) -> KeySums:
        """Return where the gradients of the keys of a place are summed in a job."""
        key, value = (place.shared(self.problem, a).reshape(-1, *a.shape[-2:]) for a in (self.key, self.value))
        if self.jobs[job].part == 0:
            return KeySums(0, key, value, self.key_factor)
        first, last = self._reach(place, self.jobs[job].blocks)
        wholes = key[:, first:last], value[:, first:last]
        copies = np.empty_like(wholes[0]), np.empty_like(wholes[1])
        self.later[job] += zip(wholes, copies, strict=True)
        return KeySums(first, *copies, self.key_factor)

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


class _Worker:
    """One thread with its buffers."""

    @classmethod
    @contextmanager
    def at_work(cls, walk: BackwardWalk) -> Iterator[Callable[[int], None]]:
        """Lend memory to a worker, and yield the function that does a job."""
        problem, shape = walk.problem, walk.shape
        blocks = max(1, _RUN // (shape.heads * shape.rows))  # of a run
        of_keys = KeysOf.lengths(problem, shape.heads, shape.columns)
        of_rows = Run.lengths(problem, shape.heads, blocks * shape.rows)
        with lent([*of_keys, *of_rows, *InPlaceBackward.lengths(problem, shape)], problem.dtype) as buffers:
            yield cls(walk, blocks, buffers).contribute

    def __init__(self, walk: BackwardWalk, blocks: int, buffers: list[Array]) -> None:
        self.walk, self.problem, self._blocks = walk, walk.problem, blocks
        self._of_keys, self._of_rows, of_tile = buffers[:2], buffers[2:6], buffers[6:]
        self.ops = InPlaceBackward(walk.problem, of_tile)

    def contribute(self, job: int) -> None:
        """Visit the tiles of some heads, or of a part of their rows."""
        walk = self.walk
        places, blocks, _ = walk.jobs[job]
        later: _Later = {}
        for place in places:
            sums = walk.sums(place, job)
            for some in place.cut(walk.shape.heads):
                for i in range(0, len(blocks), self._blocks):
                    self._run(some, blocks[i : i + self._blocks], sums, later)
            sums.finish()
        walk.later[job] += later.values()

    def _run(self, place: Place, blocks: list[Bounds], sums: KeySums, later: _Later) -> None:
        """Visit the tiles of rows that are prepared together."""
        walk = self.walk
        keys = walk.keys_of(place)
        run = Run(walk.common, place, (blocks[0][0], blocks[-1][1]), keys, self._of_rows, by_keys=self.ops.by_keys)
        self.ops.magnitudes, self.ops.is_finite = run.magnitudes, run.is_finite
        for row, stop in blocks:
            target = walk.query[(*place.at, slice(row, stop))]
            tiles = walk.route.tiles(place, (row, stop))
            if not tiles or tiles[0].rows != (row, stop):
                target[...] = 0.0
            for i, tile in enumerate(tiles):
                found = self._tile(run, place, keys.of_tile(tile, self._of_keys), tile)
                part = target[..., tile.rows[0] - row : tile.rows[1] - row, :]
                self._add_query(part, found.query, is_first=i == 0 and tile.rows == (row, stop))
                sums.add(found.key, found.value, tile.columns)
                for n, addend in enumerate(found.addends):
                    if isinstance(addend, tuple):
                        self._add_of_rule(n, addend, later)
                    elif addend is not None:
                        self._add(n, addend, place.starts, tile, later)

    def _add_query(self, target: Array, piece: Array, *, is_first: bool) -> None:
        """Add to the gradient of some rows, which belong to this job alone."""
        piece = piece.reshape(target.shape)
        np.multiply(piece, self.walk.query_factor, out=target if is_first else piece)
        if not is_first:
            np.add(target, piece, out=target)

    def _tile(self, run: Run, place: Place, pair: list[Array], tile: Tile) -> Gradients:
        (row, stop), (start, end) = tile.rows, tile.columns[0]
        return contribute(
            self.ops,
            Region(self.problem, (*place.starts, row, start), (*place.sizes, stop - row, end - start)),
            run.rows(row, stop),
            *pair,
            rules=tile.rules,
            mixed=(tile.mixed[0] - row, tile.mixed[1] - row),
            wanted=self.walk.wanted,
        )

    def _add(self, i: int, piece: Array, at: tuple[int, ...], tile: Tile, later: _Later) -> None:
        """Add to the gradient of an addend: at once if it is (Sq, Sk), for this job alone adds there; otherwise later."""
        whole: Array = self.walk.addends[i]
        surplus = len(at) + 2 - whole.ndim
        index = tuple(0 if n == 1 else j for j, n in zip(at[max(surplus, 0) :], whole.shape[:-2], strict=True))
        target = whole[(*index, ...)]
        if not _is_matrix(whole):
            target = later.setdefault((i, *index), (target, np.zeros_like(target)))[1]
        spans = (tile.rows, tile.columns[0])[2 - target.ndim :]
        part = tuple(slice(None) if n == 1 else slice(*span) for n, span in zip(target.shape, spans, strict=True))
        target[part] += piece.reshape(target[part].shape)

    def _add_of_rule(self, i: int, pieces: tuple[Array, ...], later: _Later) -> None:
        """Add to the gradients of the arrays of a bias that is a rule: later, for every tile may add to all of each."""
        wholes: Any = self.walk.addends[i]
        for n, (whole, piece) in enumerate(zip(wholes, pieces, strict=True)):
            part = later.setdefault((i, n), (whole, np.zeros_like(whole)))[1]
            np.add(part, piece, out=part, casting="same_kind")


def _adds_by_heads(problem: Problem, wanted: tuple[bool, ...]) -> bool:
    """Whether there is a gradient of an array that is added to the scores: its pieces are those of a head."""
    pairs = zip(problem.addends, wanted, strict=True)
    return any(is_wanted and not isinstance(addend, Bias) for addend, is_wanted in pairs)


def _zeros(addend: Array | Bias, dtype: DType) -> Any:
    """Return gradients of an addend, or of the arrays of a rule, before anything is added."""
    if isinstance(addend, Bias):
        return tuple(np.zeros(a.shape, np.result_type(a.dtype, dtype)) for a in addend.arrays)
    return np.zeros(addend.shape, dtype)


def _is_matrix(addend: Array | Bias) -> bool:
    """Whether an addend is an array that varies along rows and along keys."""
    return not isinstance(addend, Bias) and addend.ndim > 1 and 1 not in addend.shape[-2:]
