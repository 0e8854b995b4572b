"""NumPy's forward pass: jobs of some heads and one block of rows, handed out to threads."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np

from attention_xp._engine.plan.plan import Bounds, Tile
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.step import Running, advance, log_sum_exp, normalized, scale_in_base, scored, start
from attention_xp._engine.walkers.numpy.compiled.found import steps_of
from attention_xp._engine.walkers.numpy.compiled_forward import compiled_forward
from attention_xp._engine.walkers.numpy.forward_walk import ForwardWalk
from attention_xp._engine.walkers.numpy.gather import Gather
from attention_xp._engine.walkers.numpy.heads import Heads, is_finite
from attention_xp._engine.walkers.numpy.in_place_forward import InPlaceForward
from attention_xp._engine.walkers.numpy.lines import beside, length_beside
from attention_xp._engine.walkers.numpy.pool import run_jobs, with_blas_held_to_one
from attention_xp._engine.walkers.numpy.scratch import lent
from attention_xp._scores.region import Region
from attention_xp._typing import Array

__all__ = ["ForwardWorker", "forward"]

_MANY = 200  # keys from which copying the rows in column order pays
_PROBE = 128  # first keys, from which the largest score of a row is estimated
_HEADROOM = 60.0  # powers of two by which scores of other keys may be larger
_LARGEST_SUM, _SMALLEST_SUM = 2.0**120, 2.0**-60  # of weights, in float32


def forward(problem: Problem, *, lse: bool, threads: int | None = None) -> tuple[Array, Array | None]:
    """Return output (..., H, Sq, Dv) and, where it is wanted, log-sum-exp (..., H, Sq).

    On so many threads, by default on as many as BLAS may have.
    """

    def visit(count: int) -> ForwardWalk:
        steps = steps_of(problem)
        done = None if steps is None else compiled_forward(problem, steps, count, lse=lse)
        if done is not None:
            return done
        walk = ForwardWalk(problem, count, lse=lse)
        run_jobs(len(walk.jobs), lambda: ForwardWorker.at_work(walk), count)
        return walk

    done = with_blas_held_to_one(visit, threads)
    return done.output, done.lse


class _Block(NamedTuple):
    """Rows of some heads that one thread computes."""

    heads: Heads
    region: Region  # under all keys
    query: Array  # (..., G, m, D)


class ForwardWorker:
    """One thread with its buffers: it computes blocks of rows, each from its first tile to its output."""

    @classmethod
    @contextmanager
    def at_work(cls, walk: ForwardWalk) -> Iterator[Callable[[int], None]]:
        """Lend memory to a worker, and yield the function that does a job."""
        problem, shape = walk.problem, walk.shape
        rows = length_beside(shape.heads, shape.rows, problem.query.shape[-1] + 1)
        with lent([*InPlaceForward.lengths(problem, shape), rows, walk.gathered()], problem.dtype) as buffers:
            yield cls(walk, buffers).attend

    def __init__(self, walk: ForwardWalk, buffers: list[Array]) -> None:
        self.walk, self.problem = walk, walk.problem
        *of_tile, self._rows, gathered = buffers
        self.ops = InPlaceForward(self.problem, walk.shape, of_tile)
        self.factor = scale_in_base(self.problem)
        self._gather = Gather(gathered)  # for keys, and then, where these were, for values

    def attend(self, job: int) -> None:
        """Compute one block of rows of some heads."""
        place, rows = self.walk.jobs[job]
        tiles = self.walk.route.tiles(place, rows)
        block = self._block(self.walk.heads_at(place), rows)
        running = self._computed(block, tiles)
        if not block.heads.magnitudes.sure and not _is_sound(running):
            block = block._replace(heads=self.walk.surely(block.heads))
            if not block.heads.magnitudes.bounded:
                running = self._computed(block, tiles)
        at = *place.at, slice(*rows)
        self.ops.output = self.walk.output[at]
        normalized(self.ops, running)
        if self.walk.lse is not None:
            self.walk.lse[at] = log_sum_exp(self.problem, block.region, running)

    def _block(self, heads: Heads, rows: Bounds) -> _Block:
        starts, sizes = heads.place.starts, heads.place.sizes
        region = Region(self.problem, (*starts, rows[0], 0), (*sizes, rows[1] - rows[0], heads.key.shape[-2]))
        return _Block(heads, region, heads.query[..., slice(*rows), :])

    def _computed(self, block: _Block, tiles: list[Tile]) -> Running:
        allows = self.ops.magnitudes = block.heads.magnitudes
        running = self._fold_large(block, tiles) if self._may_guess(tiles) else None
        if running is not None:
            return running
        with np.errstate() if allows.sure else np.errstate(over="ignore", invalid="ignore"):
            return self._fold(block, tiles, self._scaled(block.query, tiles), 0.0 if allows.bounded else None)

    def _scaled(self, rows: Array, tiles: list[Tile], room: int = 0) -> Array:
        """Return a block of the query times its factor, with room for further columns.

        (..., G, m, D) -> (G, m, D + room), or (1, G * m, D + room) where rows are folded.
        """
        m, D = rows.shape[-2:]
        rows = rows.reshape((1, -1, D) if self.walk.shape.folded else (-1, m, D))
        shape = *rows.shape[:-1], D + room
        if any(tile.steps > 1 for tile in tiles) or (self.ops.by_keys and _reach(tiles) >= _MANY):
            target = beside(self._rows, shape)
        else:
            target = self._rows[: math.prod(shape)].reshape(shape)
        np.multiply(rows, self.factor, out=target[..., :D], dtype=self.problem.dtype)
        return target

    def _start(self, block: _Block, tiles: list[Tile], shift: Array | float | None) -> Running:
        has_whole = len(tiles) > 0 and _is_whole(tiles[0], block.region)  # then it is written, not added to zeros
        if has_whole and shift is not None and self.problem.sinks is None:
            return Running(None, None, None)
        sums = self.ops.sums(block.region.sizes[-2])
        if not has_whole:
            sums[...] = 0.0
        running = start(self.problem, block.region, sums, shift=shift)
        return running._replace(output=None) if has_whole else running

    def _fold(self, block: _Block, tiles: list[Tile], query: Array, shift: Array | float | None) -> Running:
        """Add tiles to the sums, in place; the scores are taken relative to a shift, ``None`` is the largest."""
        running, heads = self._start(block, tiles, shift), block.heads
        for tile in tiles:
            is_whole, is_band = _is_whole(tile, block.region), tile.steps > 1
            rows, some = (query, running) if is_whole else self._part(block, query, running, tile)
            if is_band:
                rows, some = _in_steps(rows, tile), _each(some, partial(_in_steps, tile=tile))
            key, value = self._gather(heads.key, tile), partial(self._gather, heads.value, tile)
            region, mixed = self._region(block, tile)
            after = advance(self.ops, region, rows, key, value, some, rules=tile.rules, mixed=mixed)
            if is_whole:
                running = _each(after, partial(_as_rows, tile=tile)) if is_band else after
        return running

    def _may_guess(self, tiles: list[Tile]) -> bool:
        """Whether the shift may be estimated: scores are large, finite products, and there are many keys."""
        allows = self.ops.magnitudes
        if self.ops.compiled is not None:  # then the largest score costs less than a shift that proves too small
            return False
        return allows.clip and not allows.bounded and self.problem.is_product and _reach(tiles) > 2 * _PROBE

    def _fold_large(self, block: _Block, tiles: list[Tile]) -> Running | None:
        """Visit all tiles with a shift that is estimated from the first keys; ``None`` where that proves too small.

        A shift need not be the largest score: within about 100 powers of two no digits are lost. One that is known
        beforehand is subtracted by the product itself, ``[key, 1] @ [query; -shift]``.
        """
        query = self._scaled(block.query, tiles, room=1)
        peak = self._peak_of_first(block, query[..., :-1], tiles[0])
        if peak is None or not np.all(np.isfinite(peak)):
            return None
        shift = peak + _HEADROOM * self.ops.base.log_2
        np.negative(shift.reshape(len(query), -1), out=query[..., -1])
        usual, self.ops.magnitudes = self.ops.magnitudes, self.ops.magnitudes._replace(bounded=True)
        with np.errstate(over="ignore", invalid="ignore"):
            running = self._fold(block, tiles, query, shift)
            is_good = running.total.max() < _LARGEST_SUM and np.all(np.isfinite(running.output))
        self.ops.magnitudes = usual
        return running._replace(peak=shift) if is_good else None

    def _peak_of_first(self, block: _Block, query: Array, tile: Tile) -> Array | None:
        """Return the largest score of each row and the first keys, (..., m, 1)."""
        if not _is_whole(tile, block.region):
            return None
        start, end = tile.columns[0]
        some = min(_PROBE, block.region.sizes[-1] // 8)  # a small part of the keys, also where there are few
        first = tile._replace(columns=((start, min(end, start + some)),))
        key = self._gather(block.heads.key, first)
        region, mixed = self._region(block, first)
        scores, _ = scored(self.ops, region, _in_steps(query, tile), key, rules=tile.rules, mixed=mixed)
        return _as_rows(np.max(scores, axis=-1, keepdims=True), tile)

    def _part(self, block: _Block, query: Array, running: Running, tile: Tile) -> tuple[Array, Running]:
        """Return the rows of a tile that covers only some of a block: those of each head, also where heads are folded."""
        first, m, width = block.region.starts[-2], block.region.sizes[-2], query.shape[-1]
        part = slice(tile.rows[0] - first, tile.rows[1] - first)
        some = _each(running, lambda rows: rows[..., part, :])
        if not self.walk.shape.folded:
            return query[:, part], some
        return query.reshape(-1, m, width)[:, part].reshape(1, -1, width), some

    def _region(self, block: _Block, tile: Tile) -> tuple[Region, Bounds]:
        """Return where the first stretch of a tile, or of its first step, lies, and its mixed rows counted from its first."""
        place, row, (first, end), (column, last) = block.heads.place, tile.rows[0], tile.mixed, tile.columns[0]
        starts, sizes = (*place.starts, row, column), (*place.sizes, tile.step, last - column)
        return Region(self.problem, starts, sizes), (first - row, end - row)


def _each(running: Running, view: Callable[[Array], Array]) -> Running:
    """Return a view of each array of a state."""
    return Running(*(None if a is None else view(a) for a in running))


def _in_steps(rows: Array, tile: Tile) -> Array:
    """Return a view of rows (..., m, W), which are (..., C, m / C, W) in a band."""
    if tile.steps == 1:
        return rows
    return rows.reshape(*rows.shape[:-2], tile.steps, tile.step, rows.shape[-1])


def _as_rows(steps: Array, tile: Tile) -> Array:
    """Return the same as rows."""
    if tile.steps == 1:
        return steps
    return steps.reshape(*steps.shape[:-3], -1, steps.shape[-1])


def _reach(tiles: list[Tile]) -> int:
    """Return how many keys the first tiles visit."""
    return sum(end - start for tile in tiles[:4] for start, end in tile.columns)


def _is_whole(tile: Tile, region: Region) -> bool:
    """Whether a tile covers all rows of a region."""
    row, m = region.starts[-2], region.sizes[-2]
    return tile.rows == (row, row + m)


def _is_sound(running: Running) -> bool:
    """Whether sums of powers without a shift lost no digits, as they would if scores were larger than the sample said."""
    least, most = (extreme.reduce(running.total, axis=None) for extreme in (np.minimum, np.maximum))
    return bool(least > _SMALLEST_SUM and most < _LARGEST_SUM and is_finite(running.output))
