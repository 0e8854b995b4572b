"""NumPy's backward walker: jobs of one key/value head, or of a part of its keys, handed out to threads."""

import itertools
import math

import numpy as np

from attention_xp._engine.arithmetic import summed_to
from attention_xp._engine.backward_step import Known, Slopes, contribute, key_factor
from attention_xp._engine.heads import ceiling
from attention_xp._engine.in_place_backward import InPlaceBackward
from attention_xp._engine.plan import Tile, bounds, plan
from attention_xp._engine.pool import blas_held_to_one, run_jobs
from attention_xp._engine.problem import Problem
from attention_xp._engine.region import Region
from attention_xp._engine.scores import query_factor
from attention_xp._engine.scratch import Scratch, borrowed
from attention_xp._engine.strips import asked
from attention_xp._engine.threads import per_batch, without_infinite_bias
from attention_xp._engine.threads_head import HeadOf, KnownKeys, Places
from attention_xp._engine.tile_sizes import STRIP, backward_tile_sizes
from attention_xp._typing import Array

__all__ = ["is_matrix", "walk"]

_JOBS_PER_THREAD = 4
_MOST_COPIES = 2**25  # bytes of further gradients of the query, where heads are split


def walk(problem: Problem, known: Known, wanted: tuple[bool, ...]) -> Slopes:
    """Return the gradients of query, key, value and of the addends that are wanted, in the shapes of the problem."""
    with blas_held_to_one() as threads:
        walk = _Walk(without_infinite_bias(problem), known, wanted, threads)
        run_jobs(len(walk.jobs), lambda: _Worker(walk).contribute, threads)
    return walk.slopes()


class _Walk:
    """The arrays and jobs of one call."""

    def __init__(self, problem: Problem, known: Known, wanted: tuple[bool, ...], threads: int) -> None:
        self.problem, self.known, self.wanted = problem, known, wanted
        rows, columns = backward_tile_sizes(problem)
        Sq, Sk = problem.query.shape[-2], problem.key.shape[-2]
        self.blocks, self.stretches = bounds(0, Sq, rows), bounds(0, Sk, columns)
        self.sizes = rows, columns
        self.rides = problem.is_product, problem.seed is None  # the shift in the query, delta in the gradient
        widths = [a.shape[-1] + rides for a, rides in zip((problem.query, problem.value), self.rides, strict=True)]
        self.shapes = [(n, width) for n in (Sq, columns) for width in widths]  # of what is copied of each head
        kv_lead = problem.lead if problem.heads is None else (*problem.batch, problem.key.shape[-3])
        groups = self._groups()
        self.parts = self._parts(len(groups), threads)
        self.jobs = [(heads, part) for heads in groups for part in range(self.parts)]
        self.query = np.zeros((self.parts, *problem.lead, *problem.query.shape[-2:]), problem.dtype)
        self.key, self.value = (
            np.zeros((*kv_lead, *a.shape[-2:]), problem.dtype) for a in (problem.key, problem.value)
        )
        self.addends = [
            np.zeros(a.shape, problem.dtype) if is_wanted else None
            for a, is_wanted in zip(problem.addends, wanted, strict=True)
        ]
        self.sums: list[list[tuple[Array, Array]]] = [[] for _ in self.jobs]
        self.ceiling = ceiling(problem)
        self.plans: dict[tuple[int, ...], list[list[Tile]]] = {}
        self.is_uniform = problem.is_masked_alike

    def slopes(self) -> Slopes:
        """Return the gradients that the jobs have gathered."""
        for whole, part in itertools.chain.from_iterable(self.sums):  # in the order of the jobs, not of the threads
            np.add(whole, part, out=whole)
        problem, query = self.problem, self.query[0] if self.parts == 1 else np.sum(self.query, axis=0)
        np.multiply(query, query_factor(problem), out=query)
        np.multiply(self.key, key_factor(problem), out=self.key)
        key, value = (
            summed_to(np, a, tuple(like.shape)) for a, like in ((self.key, problem.key), (self.value, problem.value))
        )
        return Slopes(query, key, value, tuple(self.addends))

    def _groups(self) -> list[list[tuple[int, int]]]:
        """Return (batch item, key/value head) pairs in groups that share no entry of a matrix that is added."""
        problem = self.problem
        kv_heads = (problem.heads or 1) // problem.group
        groups: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        shared = self._shared()
        for b, h in itertools.product(range(math.prod(problem.batch)), range(kv_heads)):
            index = self.lead_index(b, h)
            name = tuple(i for i, is_shared in zip(index, shared, strict=True) if not is_shared)
            groups.setdefault(name, []).append((b, h))
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

    def _parts(self, groups: int, threads: int) -> int:
        """Return into how many parts the keys of a head are cut: enough to keep the threads busy."""
        copy = math.prod((*self.problem.lead, *self.problem.query.shape[-2:])) * np.dtype(self.problem.dtype).itemsize
        parts = math.ceil(_JOBS_PER_THREAD * threads / max(groups, 1))
        return max(1, min(parts, len(self.stretches), 1 + _MOST_COPIES // max(copy, 1)))

    def lead_index(self, b: int, h: int) -> tuple[int, ...]:
        """Return the index along the leading axes of the scores."""
        index = tuple(map(int, np.unravel_index(b, self.problem.batch))) if self.problem.batch else ()
        return index if self.problem.heads is None else (*index, h)

    def tiles(self, b: int, h: int, block: int) -> list[list[Tile]]:
        """Return the tiles of a block of rows for each stretch of keys."""
        row, stop = self.blocks[block]
        if len(self.problem.rules) == 0:
            return [[Tile((row, stop), (stretch,), (row, row), ())] for stretch in self.stretches]
        name = (row, stop) if self.is_uniform else (row, stop, b, h)
        if name not in self.plans:
            self.plans[name] = self._plan(b, h, row, stop)
        return self.plans[name]

    def _plan(self, b: int, h: int, row: int, stop: int) -> list[list[Tile]]:
        problem = self.problem
        chunks = bounds(row, stop, min(STRIP, self.sizes[0]))
        strips = [bounds(first, last, min(STRIP, self.sizes[1])) for first, last in self.stretches]
        offset = per_batch(problem, problem.query_offset, b)
        answers = asked(problem.rules, chunks, list(itertools.chain.from_iterable(strips)), offset, b, h)
        plans, first = [], 0
        for some in strips:
            part = slice(first, first + len(some))
            first += len(some)
            cut = [(rule, *both[..., part].tolist()) for rule, both in zip(problem.rules, answers, strict=True)]
            plans.append(plan(chunks, some, cut, self.sizes[1]))
        return plans


class _Worker:
    """One thread with its buffers."""

    def __init__(self, walk: _Walk) -> None:
        self.walk, self.problem = walk, walk.problem
        self.ops = InPlaceBackward(walk.problem, *walk.sizes)

    def contribute(self, job: int) -> None:
        """Visit the tiles of some key/value heads, or of a part of their keys."""
        walk, group, dtype = self.walk, self.problem.group, self.problem.dtype
        heads, part = walk.jobs[job]
        sums: _Sums = {}
        lengths = [*self.ops.lengths(), *map(math.prod, walk.shapes)]
        with borrowed(Scratch.size(*lengths, dtype=dtype), dtype) as scratch:
            self.ops.use(scratch)
            buffers = [scratch.empty(*shape) for shape in walk.shapes]
            for b, kv_head in heads:
                for h in range(kv_head * group, (kv_head + 1) * group):
                    places = Places(b, h, walk.lead_index(b, h), walk.lead_index(b, kv_head))
                    head = HeadOf(self.problem, walk.known, places, buffers, rides=walk.rides)
                    for stretch in range(part, len(walk.stretches), walk.parts):
                        self._stretch(head, stretch, part, sums)
        walk.sums[job] = list(sums.values())

    def _stretch(self, head: HeadOf, stretch: int, part: int, sums: "_Sums") -> None:
        """Visit the tiles of one head and one stretch of keys."""
        walk = self.walk
        first, last = walk.stretches[stretch]
        keys, values, known = head.keys(first, last)
        query, key, value = walk.query[part][head.at], walk.key[head.kv_at], walk.value[head.kv_at]
        for block in range(len(walk.blocks)):
            for tile in walk.tiles(head.b, head.h, block)[stretch]:
                ((start, end),) = tile.columns
                some = slice(start - first, end - first)
                slopes = self._tile(head, known, tile, keys[some], values[some])
                query[slice(*tile.rows)] += slopes.query.reshape(-1, query.shape[-1])
                key[start:end] += slopes.key
                value[start:end] += slopes.value
                for i, piece in enumerate(slopes.addends):
                    if piece is not None:
                        self._add(i, piece, head.at, tile, sums)

    def _tile(self, head: HeadOf, known: KnownKeys, tile: Tile, keys: Array, values: Array) -> Slopes:
        (row, stop), ((start, end),) = tile.rows, tile.columns
        rows = head.rows(row, stop)
        allows = head.allows(rows, known, self.walk.ceiling)
        self.ops.prepare_tile(allows, is_finite=allows.keys and allows.values and head.is_finite)
        return contribute(
            self.ops,
            Region(self.problem, (*head.at, row, start), (*(1,) * len(head.at), stop - row, end - start)),
            rows.rows,
            keys,
            values,
            rules=tile.rules,
            mixed=(tile.mixed[0] - row, tile.mixed[1] - row),
            wanted=self.walk.wanted,
        )

    def _add(self, i: int, piece: Array, at: tuple[int, ...], tile: Tile, sums: "_Sums") -> None:
        """Add to the gradient of an addend: to a matrix at once, which is this job's own, to a line later."""
        whole: Array = self.walk.addends[i]
        surplus = len(at) + 2 - whole.ndim
        index = tuple(0 if n == 1 else j for j, n in zip(at[max(surplus, 0) :], whole.shape[:-2], strict=True))
        target = whole[(*index, ...)]
        if not is_matrix(whole):
            target = sums.setdefault((i, *index), (target, np.zeros_like(target)))[1]
        spans = (tile.rows, tile.columns[0])[2 - target.ndim :]
        part = tuple(slice(None) if n == 1 else slice(*span) for n, span in zip(target.shape, spans, strict=True))
        target[part] += piece.reshape(target[part].shape)


_Sums = dict[tuple[int, ...], tuple[Array, Array]]


def is_matrix(addend: Array) -> bool:
    """Whether an addend varies along rows and along keys."""
    return addend.ndim > 1 and 1 not in addend.shape[-2:]
