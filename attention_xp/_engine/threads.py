"""NumPy's walker: jobs of one head and one block of rows, handed out to threads."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from attention_xp._engine.arithmetic import LOG2_E
from attention_xp._engine.in_place import Head, InPlace
from attention_xp._engine.plan import Tile, bounds, plan
from attention_xp._engine.pool import run_jobs
from attention_xp._engine.problem import Problem
from attention_xp._engine.region import Region, Span
from attention_xp._engine.rules import ArrayMask
from attention_xp._engine.step import Running, advance, finish, is_product, scale_in_base_2, start
from attention_xp._engine.tile_sizes import FOLD, STRIP, tile_sizes
from attention_xp._typing import Array

__all__ = ["walk"]

_LARGEST_SUM = 2.0**120  # of weights, in float32


def walk(problem: Problem) -> tuple[Array, Array]:
    """Return output (..., H, Sq, Dv) and log-sum-exp (..., H, Sq)."""
    return _Walk(_without_infinite_bias(problem)).run()


def _without_infinite_bias(problem: Problem) -> Problem:
    """Make a rule of every addend that excludes: minus infinity does not survive in the range of fast powers."""
    rules = [
        ArrayMask(addend != -math.inf, problem.batch, problem.heads is not None)
        for addend in problem.addends
        if np.any(addend == -math.inf)
    ]
    return dataclasses.replace(problem, rules=(*problem.rules, *rules)) if rules else problem


class _Walk:
    """The arrays and jobs of one call."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.rows, self.columns = tile_sizes(problem)
        Sq, lead = problem.query.shape[-2], problem.lead
        self.output = np.empty((*lead, Sq, problem.value.shape[-1]), problem.dtype)
        self.lse = np.empty((*lead, Sq), problem.dtype)
        self.together = problem.group if Sq <= FOLD else 1  # query heads of a job
        heads = problem.heads or 1
        self.blocks = bounds(0, Sq, self.rows)
        self.jobs = [
            (b, h, block)
            for b in range(math.prod(problem.batch))
            for h in range(0, heads, self.together)
            for block in reversed(self.blocks)  # under a causal mask the longest first
        ]
        self.ceiling = _ceiling(problem)
        self.heads: dict[tuple[int, int], Head] = {}
        self.plans: dict[tuple[int, ...], list[Tile]] = {}
        self.is_uniform = problem.has_one_offset and all(math.prod(rule.lead) == 1 for rule in problem.rules)

    def run(self) -> tuple[Array, Array]:
        run_jobs(len(self.jobs), lambda: _Worker(self).attend)
        return self.output, self.lse


class _Worker:
    """One thread with its buffers."""

    def __init__(self, walk: _Walk) -> None:
        self.walk, self.problem = walk, walk.problem
        self.ops = InPlace(self.problem, walk.rows * walk.together, walk.columns)

    def attend(self, job: int) -> None:
        """Compute one block of rows of one head, or of the heads that share a key/value head."""
        problem, ops = self.problem, self.ops
        b, h, (row, stop) = self.walk.jobs[job]
        region = self._region(b, h, row, stop)
        at = tuple(
            slice(start, start + size) for start, size in zip(region.starts[:-1], region.sizes[:-1], strict=True)
        )
        query = self._query(at)  # (..., D, m)
        key, value = (_head(a, b, h // problem.group, problem) for a in (problem.key, problem.value))
        head = self._head((b, h // problem.group), key, value)
        ops.prepare(head, self.walk.ceiling(_norm(query, axis=-2) * head.norm))
        tiles = self._tiles(b, h, row, stop)
        running = self._fold_large(region, query, key, value, tiles) if self._may_guess(region, tiles) else None
        if running is None:
            running = self._fold(region, query, key, value, tiles, self._start(region, value))
        if ops.bounded and not np.all(np.isfinite(running.output)):  # a large value times a large power
            ops.bounded, ops.clip = False, True
            running = self._fold(region, query, key, value, tiles, self._start(region, value))
        self.walk.output[at], self.walk.lse[at] = finish(problem, region, running)

    def _start(self, region: Region, value: Array) -> Running:
        sums = np.zeros((*region.sizes[:-1], value.shape[-1]), self.problem.dtype)
        return start(self.problem, region, sums, bounded=self.ops.bounded)

    def _fold(
        self, region: Region, query: Array, key: Array, value: Array, tiles: list[Tile], running: Running
    ) -> Running:
        for tile in tiles:
            self._advance(region, query, key, value, running, tile)
        return running

    def _may_guess(self, region: Region, tiles: list[Tile]) -> bool:
        """Whether scores are large, finite and the product alone, and the first tile is one of several and has all rows."""
        rows = (region.starts[-2], region.starts[-2] + region.sizes[-2])
        is_large = self.ops.clip and not self.ops.bounded and is_product(self.problem)
        return is_large and len(tiles) > 1 and tiles[0].rows == rows

    def _fold_large(self, region: Region, query: Array, key: Array, value: Array, tiles: list[Tile]) -> Running | None:
        """Visit all tiles with the shift that the first one asks for, ``None`` where that proves too small.

        A shift need not be the largest score: within about 100 of it, in base 2, the digits are the
        same. Known beforehand it costs nothing: it rides in the product, ``[key, 1] @ [query; -shift]``.
        """
        first = self._fold(region, query, key, value, tiles[:1], self._start(region, value))
        if first.peak is None or not np.all(np.isfinite(first.peak)):
            return None
        shifted = np.concat([query, -np.matrix_transpose(first.peak)], axis=-2)  # (..., D + 1, m)
        self.ops.bounded = True
        with np.errstate(over="ignore", invalid="ignore"):
            running = self._fold(region, shifted, key, value, tiles[1:], first._replace(peak=None))
        self.ops.bounded = False
        is_good = running.total.max() < _LARGEST_SUM and np.all(np.isfinite(running.output))
        return running._replace(peak=first.peak) if is_good else None

    def _advance(self, region: Region, query: Array, key: Array, value: Array, running: Running, tile: Tile) -> None:
        row, stop = tile.rows
        size = sum(end - start for start, end in tile.columns)
        first = region.starts[-2]
        part = slice(row - first, stop - first)
        whole = stop - row == region.sizes[-2]
        advance(
            self.ops,
            region._replace(
                starts=(*region.starts[:-2], row, tile.columns[0][0]), sizes=(*region.sizes[:-2], stop - row, size)
            ),
            query if whole else query[..., part],
            self._stretches(key, tile),
            self._stretches(value, tile),
            running if whole else Running(*(None if x is None else x[..., part, :] for x in running)),
            rules=tile.rules,
            mixed=(tile.mixed[0] - row, tile.mixed[1] - row),
        )

    def _stretches(self, x: Array, tile: Tile) -> Array:
        parts = [x[start:end] for start, end in tile.columns]
        return self._cast(parts[0] if len(parts) == 1 else np.concat(parts))

    def _cast(self, x: Array) -> Array:
        return x.astype(self.problem.dtype, copy=False)

    def _region(self, b: int, h: int, row: int, stop: int) -> Region:
        problem = self.problem
        batch = np.unravel_index(b, problem.batch) if problem.batch else ()
        heads = () if problem.heads is None else (h,)
        sizes = (1,) * len(problem.batch) + (() if problem.heads is None else (self.walk.together,))
        return Region(problem, (*map(int, batch), *heads, row, 0), (*sizes, stop - row, problem.key.shape[-2]))

    def _query(self, at: tuple[slice, ...]) -> Array:
        """Return a block of the query, scaled and transposed once: (..., D, m)."""
        block = self.problem.query[at]
        columns = np.empty((*block.shape[:-2], block.shape[-1], block.shape[-2]), self.problem.dtype)
        np.multiply(np.matrix_transpose(block), scale_in_base_2(self.problem), out=columns, dtype=self.problem.dtype)
        return columns

    def _head(self, name: tuple[int, int], key: Array, value: Array) -> Head:
        known = self.walk.heads
        if name not in known:
            finite = len(self.problem.rules) == 0 or bool(np.all(np.isfinite(value)))
            known[name] = Head(_norm(self._cast(key), axis=-1), finite)
        return known[name]

    def _tiles(self, b: int, h: int, row: int, stop: int) -> list[Tile]:
        problem, walk = self.problem, self.walk
        if len(problem.rules) == 0:
            return [
                Tile((row, stop), (columns,), (row, row), ())
                for columns in bounds(0, problem.key.shape[-2], walk.columns)
            ]
        name = (row, stop) if walk.is_uniform else (row, stop, b, h)
        if name not in walk.plans:
            walk.plans[name] = self._plan(b, h, row, stop)
        return walk.plans[name]

    def _plan(self, b: int, h: int, row: int, stop: int) -> list[Tile]:
        problem, walk = self.problem, self.walk
        step = STRIP if walk.together == 1 else stop - row
        chunks = bounds(row, stop, min(step, walk.rows))
        strips = bounds(0, problem.key.shape[-2], min(STRIP, walk.columns))
        (row_lo, row_hi), (k_lo, k_hi) = (np.asarray(pairs).reshape(-1, 2).T for pairs in (chunks, strips))
        offset = _per_batch(problem, problem.query_offset, b)
        span = Span(
            np,
            row_lo[:, None],
            row_hi[:, None] - 1,
            row_lo[:, None] + offset,
            row_hi[:, None] - 1 + offset,
            k_lo,
            k_hi - 1,
            b,
            h if walk.together == 1 else None,
        )
        grid = (len(chunks), len(strips))
        answers = [
            (rule, *(np.broadcast_to(answer, grid).tolist() for answer in rule.reach(span))) for rule in problem.rules
        ]
        return plan(chunks, strips, answers, walk.columns, may_skip=is_product(problem) and problem.seed is None)


def _head(array: Array, b: int, h: int, problem: Problem) -> Array:
    """Return one head of keys or values, (Sk, D)."""
    index: tuple[int, ...] = tuple(map(int, np.unravel_index(b, problem.batch))) if problem.batch else ()
    if problem.heads is not None:
        index = (*index, h)
    return array[tuple(0 if n == 1 else i for i, n in zip(index, array.shape[:-2], strict=True))]


def _norm(vectors: Array, *, axis: int) -> float:
    """Return the largest length of a vector along an axis."""
    letters = "...dm,...dm->...m" if axis == -2 else "...md,...md->...m"
    return math.sqrt(float(np.max(np.einsum(letters, vectors, vectors), initial=0.0)))


def _per_batch(problem: Problem, given: Any, b: int) -> int:
    if given is None or isinstance(given, int):
        return given or 0
    return int(np.broadcast_to(given, problem.batch).reshape(-1)[b])


def _ceiling(problem: Problem) -> Callable[[float], float]:
    """Return a function from a bound on the products to one on the scores, all in base 2."""
    if problem.score_mod is not None:
        return lambda product: math.inf if math.isfinite(product) else product
    extra = sum(LOG2_E * _largest(addend) for addend in problem.addends)
    sink = 0.0 if problem.sinks is None else LOG2_E * _largest(problem.sinks)
    if problem.softcap is not None:
        cap = LOG2_E * problem.softcap
        return lambda product: max(cap + extra, sink) if math.isfinite(product) else product
    return lambda product: max(product + extra, sink)


def _largest(array: Array) -> float:
    """Return the largest magnitude, -inf aside: that excludes."""
    finite = np.where(array == -math.inf, 0.0, array)
    return float(np.max(np.abs(finite), initial=0.0))
