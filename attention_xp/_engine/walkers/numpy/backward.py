"""NumPy's backward walker: jobs of some heads, or of a part of their rows, handed out to threads."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from attention_xp._engine.plan.plan import Bounds, Tile
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.backward_step import contribute
from attention_xp._engine.tile.gradients import Gradients, Known
from attention_xp._engine.walkers.numpy.backward_run import KeysOf, Run
from attention_xp._engine.walkers.numpy.backward_walk import BackwardWalk, is_matrix
from attention_xp._engine.walkers.numpy.compiled.found import steps_of
from attention_xp._engine.walkers.numpy.compiled_backward import compiled_backward
from attention_xp._engine.walkers.numpy.in_place_backward import InPlaceBackward
from attention_xp._engine.walkers.numpy.key_sums import KeySums
from attention_xp._engine.walkers.numpy.place import Place
from attention_xp._engine.walkers.numpy.pool import run_jobs, with_blas_held_to_one
from attention_xp._engine.walkers.numpy.scratch import lent
from attention_xp._scores.region import Region
from attention_xp._typing import Array

__all__ = ["backward"]

_RUN = 2048  # rows of all heads that are prepared together


def backward(problem: Problem, known: Known, wanted: tuple[bool, ...], *, threads: int | None = None) -> Gradients:
    """Return the gradients of query, key, value and of the addends that are wanted, in the shapes of the problem.

    On so many threads, by default on as many as BLAS may have.
    """

    def visit(count: int) -> BackwardWalk:
        steps = None if any(wanted) else steps_of(problem)
        done = None if steps is None else compiled_backward(problem, known, steps, count)
        if done is not None:
            return done
        walk = BackwardWalk(problem, known, wanted, count)
        run_jobs(len(walk.jobs), lambda: _Worker.at_work(walk), count)
        return walk

    return with_blas_held_to_one(visit, threads).gradients()


_Later = dict[tuple[int, ...], tuple[Array, Array]]  # of an addend: a gradient to which all jobs add, and what one adds


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
            sums = KeySums(*walk.targets(place, job), walk.key_factor)
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
        if not is_matrix(whole):
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
