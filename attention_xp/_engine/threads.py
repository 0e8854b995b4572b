"""NumPy's walker: jobs of one head and one block of rows, handed out to threads."""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from attention_xp._engine.heads import Heads, ceiling, excludes, is_finite, likely
from attention_xp._engine.in_place import InPlace
from attention_xp._engine.plan import Bounds, Tile
from attention_xp._engine.pool import blas_held_to_one, run_jobs
from attention_xp._engine.problem import Problem
from attention_xp._engine.region import Region
from attention_xp._engine.rules import ArrayMask
from attention_xp._engine.step import (
    Running,
    advance,
    log_sum_exp,
    normalized,
    scale_in_base_2,
    scored,
    start,
)
from attention_xp._engine.strips import Grid, Item, Plans
from attention_xp._engine.tile_sizes import STRIP, tile_shape
from attention_xp._typing import Array

__all__ = ["per_batch", "walk", "without_infinite_bias"]

_GRAIN = 16  # keys of which stretches must be made, at least, to be gathered as pieces of one size
_PROBE = 128  # keys that tell about how large the scores of a row are
_HEADROOM = 60.0  # in base 2: by so much more may they be larger elsewhere
_LARGEST_SUM, _SMALLEST_SUM = 2.0**120, 2.0**-60  # of weights, in float32


def walk(problem: Problem, *, lse: bool = True) -> tuple[Array, Array | None]:
    """Return output (..., H, Sq, Dv) and, where it is wanted, log-sum-exp (..., H, Sq)."""
    with blas_held_to_one() as threads:
        walk = _Walk(without_infinite_bias(problem), threads, lse=lse)
        run_jobs(len(walk.jobs), lambda: _Worker(walk).attend, threads)
    return walk.output, walk.lse


def without_infinite_bias(problem: Problem) -> Problem:
    """Make a rule of every addend that excludes: minus infinity does not survive in the range of fast powers."""
    rules = [
        ArrayMask(addend != -math.inf, problem.batch, problem.heads is not None)
        for addend in problem.addends
        if excludes(addend)
    ]
    return dataclasses.replace(problem, rules=(*problem.rules, *rules)) if rules else problem


class _Walk:
    """The arrays and jobs of one call."""

    def __init__(self, problem: Problem, threads: int, *, lse: bool) -> None:
        self.problem = problem
        self.shape = tile_shape(problem, threads)
        Sq, lead = problem.query.shape[-2], problem.lead
        self.output = np.empty((*lead, Sq, problem.value.shape[-1]), problem.dtype)
        self.lse = np.empty((*lead, Sq), problem.dtype) if lse else None
        self.is_uniform = problem.is_masked_alike
        self.plans = Plans.of(problem.rules, Sq, self._grid())
        self.jobs = self._jobs()
        self.ceiling = ceiling(problem)
        self.likely = likely(problem, self.ceiling)
        self.heads: dict[tuple[int, ...], Heads] = {}

    def _jobs(self) -> list[tuple[tuple[int, ...], Bounds]]:
        """Return the heads and rows of all jobs; what is long comes first, so that no thread ends with it."""
        places = list(self._starts(self.problem.lead))
        if not places:
            return []
        blocks = self.plans.longest_first(self._item(places[0])) if self.is_uniform else self.plans.latest_first()
        return list(itertools.product(places, blocks))

    def _starts(self, lead: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """Return where the heads of each job begin."""
        steps = [1] * len(lead[:-1]) + [self.shape.heads] * len(lead[-1:])
        return itertools.product(*(range(0, length, step) for length, step in zip(lead, steps, strict=True)))

    def heads_at(self, starts: tuple[int, ...]) -> Heads:
        """Return the heads of a job; threads that come to them at once look twice."""
        known = self.heads.get(starts)
        if known is None:
            sizes = (1,) * len(starts[:-1]) + (self.shape.heads,) * len(starts[-1:])
            known = Heads.of(self.problem, self.likely, starts, sizes)
            if not self.likely.bounded:
                known = known.surely(self.problem, self.ceiling)
            self.heads[starts] = known
        return known

    def surely(self, heads: Heads) -> Heads:
        """Look at the heads of a job once more, and wholly."""
        known = self.heads[heads.starts]
        if not known.range.sure:
            known = self.heads[heads.starts] = heads.surely(self.problem, self.ceiling)
        return known

    def tiles_of(self, starts: tuple[int, ...], rows: Bounds) -> list[Tile]:
        """Return the tiles that a block of rows visits."""
        return self.plans.tiles(self._item(starts), rows)

    def _item(self, starts: tuple[int, ...]) -> Item:
        """Return whose mask some heads have."""
        problem = self.problem
        b = int(np.ravel_multi_index(starts[: len(problem.batch)], problem.batch)) if problem.batch else 0
        offset = per_batch(problem, problem.query_offset, b)
        if self.is_uniform:
            return Item(offset, 0, None)
        return Item(offset, b, None if problem.heads is None or self.shape.heads > 1 else starts[-1])

    def _grid(self) -> Grid:
        problem, shape = self.problem, self.shape
        return Grid(
            keys=problem.key.shape[-2],
            rows=shape.rows,
            chunk=shape.rows if shape.folded else min(STRIP, shape.rows),
            columns=shape.columns,
            may_skip=problem.is_product and problem.seed is None,
        )


class _Block(NamedTuple):
    """Rows of some heads that one thread computes."""

    heads: Heads
    region: Region  # under all keys
    query: Array  # (G, D + 1, m), or (1, D + 1, G * m) where rows are folded; the last is for a shift


class _Worker:
    """One thread with its buffers."""

    def __init__(self, walk: _Walk) -> None:
        self.walk, self.problem = walk, walk.problem
        self.ops = InPlace(self.problem, walk.shape)
        self.factor = scale_in_base_2(self.problem)
        width = self.problem.query.shape[-1] + 1
        self._columns = np.empty(walk.shape.heads * walk.shape.rows * width, self.problem.dtype)
        self._gathered = [np.empty(0, self.problem.dtype), np.empty(0, self.problem.dtype)]  # keys and values

    def attend(self, job: int) -> None:
        """Compute one block of rows of some heads."""
        starts, (row, stop) = self.walk.jobs[job]
        heads = self.walk.heads_at(starts)
        at = tuple(slice(start, start + size) for start, size in zip(starts, heads.sizes, strict=True))
        block = _Block(
            heads,
            Region(self.problem, (*starts, row, 0), (*heads.sizes, stop - row, heads.key.shape[-2])),
            self._query(heads.query[..., row:stop, :]),
        )
        tiles = self.walk.tiles_of(starts, (row, stop))
        running = self._computed(block, tiles)
        if not heads.range.sure and not _is_sound(running):
            block = block._replace(heads=self.walk.surely(heads))
            if not block.heads.range.bounded:
                running = self._computed(block, tiles)
        self.ops.output = self.walk.output[(*at, slice(row, stop))]
        normalized(self.ops, running)
        if self.walk.lse is not None:
            self.walk.lse[(*at, slice(row, stop))] = log_sum_exp(self.problem, block.region, running)

    def _computed(self, block: _Block, tiles: list[Tile]) -> Running:
        allows = self.ops.range = block.heads.range
        running = self._fold_large(block, tiles) if self._may_guess(tiles) else None
        if running is not None:
            return running
        with np.errstate() if allows.sure else np.errstate(over="ignore", invalid="ignore"):
            return self._fold(block, tiles, block.query[:, :-1], 0.0 if allows.bounded else None)

    def _query(self, rows: Array) -> Array:
        """Return a block of the query, scaled and transposed once: (..., G, m, D) -> (G, D + 1, m)."""
        m, D = rows.shape[-2:]
        rows = rows.reshape(-1, m, D)
        columns = self._columns[: len(rows) * m * (D + 1)]
        if self.walk.shape.folded:
            target = columns.reshape(D + 1, -1, m)
            np.multiply(rows.transpose(2, 0, 1), self.factor, out=target[:-1], dtype=self.problem.dtype)
            return target.reshape(1, D + 1, -1)
        target = columns.reshape(-1, D + 1, m)
        np.multiply(rows.transpose(0, 2, 1), self.factor, out=target[:, :-1], dtype=self.problem.dtype)
        return target

    def _start(self, block: _Block, tiles: list[Tile], shift: Array | float | None) -> Running:
        has_whole = len(tiles) > 0 and _is_whole(tiles[0], block.region)  # it needs no zeros to be added to
        if has_whole and shift is not None and self.problem.sinks is None:
            return Running(None, None, None)
        sums = self.ops.sums(block.region.sizes[-2])
        if not has_whole:
            sums[...] = 0.0
        running = start(self.problem, block.region, sums, shift=shift)
        return running._replace(output=None) if has_whole else running

    def _fold(self, block: _Block, tiles: list[Tile], query: Array, shift: Array | float | None) -> Running:
        """Visit tiles; the scores are taken relative to a shift, ``None`` is the largest."""
        running = self._start(block, tiles, shift)
        for tile in tiles:
            running = self._advance(block, query, running, tile)
        return running

    def _may_guess(self, tiles: list[Tile]) -> bool:
        """Whether scores are large, finite and the product alone, and there is enough to gain."""
        allows = self.ops.range
        return allows.clip and not allows.bounded and self.problem.is_product and _reach(tiles) > 2 * _PROBE

    def _fold_large(self, block: _Block, tiles: list[Tile]) -> Running | None:
        """Visit all tiles with the shift that the first keys ask for, ``None`` where that proves too small.

        A shift need not be the largest score: within about 100 of it, in base 2, the digits are the
        same. Known beforehand it costs nothing: it rides in the product, ``[key, 1] @ [query; -shift]``.
        """
        peak = self._peak_of_first(block, tiles[0])
        if peak is None or not np.all(np.isfinite(peak)):
            return None
        shift = peak + _HEADROOM
        np.negative(shift.reshape(len(block.query), -1), out=block.query[:, -1])
        usual, self.ops.range = self.ops.range, self.ops.range._replace(bounded=True)
        with np.errstate(over="ignore", invalid="ignore"):
            running = self._fold(block, tiles, block.query, shift)
            is_good = running.total.max() < _LARGEST_SUM and np.all(np.isfinite(running.output))
        self.ops.range = usual
        return running._replace(peak=shift) if is_good else None

    def _peak_of_first(self, block: _Block, tile: Tile) -> Array | None:
        """Return the largest score of each row and the first keys, (..., m, 1)."""
        if not _is_whole(tile, block.region):
            return None
        start, end = tile.columns[0]
        first = tile._replace(columns=((start, min(end, start + _PROBE)),))
        key = self._stretches(block.heads.key, first, 0)
        region, mixed = self._place(block, tile, key.shape[-2])
        scores, _ = scored(self.ops, region, block.query[:, :-1], key, rules=tile.rules, mixed=mixed)
        return np.max(scores, axis=-1, keepdims=True)

    def _advance(self, block: _Block, query: Array, running: Running, tile: Tile) -> Running:
        """Add a tile to the sums, in place."""
        heads, some = block.heads, running
        if not _is_whole(tile, block.region):
            first = block.region.starts[-2]
            part = slice(tile.rows[0] - first, tile.rows[1] - first)
            query = query[..., part]
            some = Running(*(None if a is None else a[..., part, :] for a in running))
        key, value = self._stretches(heads.key, tile, 0), self._stretches(heads.value, tile, 1)
        region, mixed = self._place(block, tile, key.shape[-2])
        after = advance(self.ops, region, query, key, value, some, rules=tile.rules, mixed=mixed)
        return after if some is running else running

    def _place(self, block: _Block, tile: Tile, keys: int) -> tuple[Region, Bounds]:
        """Return where a tile lies, and its mixed rows counted from its first."""
        heads, (row, stop), (first, end) = block.heads, tile.rows, tile.mixed
        starts, sizes = (*heads.starts, row, tile.columns[0][0]), (*heads.sizes, stop - row, keys)
        return Region(self.problem, starts, sizes), (first - row, end - row)

    def _stretches(self, x: Array, tile: Tile, which: int) -> Array:
        """Return the keys or values of a tile as one array: a copy where they are apart."""
        (start, end), *more = tile.columns
        if not more:
            return x[:, start:end].astype(self.problem.dtype, copy=False)
        shape = len(x), sum(end - start for start, end in tile.columns), x.shape[-1]
        size = math.prod(shape)
        if self._gathered[which].size < size:
            self._gathered[which] = np.empty(size, self.problem.dtype)
        target = self._gathered[which][:size].reshape(shape)
        grain = math.gcd(*itertools.chain.from_iterable(tile.columns))
        if grain < _GRAIN or x.shape[1] % grain or not x.flags.c_contiguous or x.dtype != target.dtype:
            return np.concat([x[:, start:end] for start, end in tile.columns], axis=1, out=target)
        # One operation of NumPy: each stretch on its own would hand the interpreter over and wait for it.
        at = [i for start, end in tile.columns for i in range(start // grain, end // grain)]
        pieces = x.reshape(len(x), -1, grain * x.shape[-1]), target.reshape(len(x), -1, grain * x.shape[-1])
        np.take(pieces[0], at, axis=1, out=pieces[1], mode="clip")  # "raise" would write to another array first
        return target


def _reach(tiles: list[Tile]) -> int:
    """Return how many keys the first tiles visit."""
    return sum(end - start for tile in tiles[:4] for start, end in tile.columns)


def _is_whole(tile: Tile, region: Region) -> bool:
    """Whether a tile covers all rows of a region."""
    row, m = region.starts[-2], region.sizes[-2]
    return tile.rows == (row, row + m)


def _is_sound(running: Running) -> bool:
    """Whether sums of powers without a shift kept all digits, which larger scores than expected would cost."""
    least, most = running.total.min(), running.total.max()
    return bool(least > _SMALLEST_SUM and most < _LARGEST_SUM and is_finite(running.output))


def per_batch(problem: Problem, given: Any, b: int) -> int:
    """Return the one of several integers that is for a batch item."""
    if given is None or isinstance(given, int):
        return given or 0
    return int(np.broadcast_to(given, problem.batch).reshape(-1)[b])
