"""The tiles of a block of rows as tables of numbers, which compiled loops read: bounds, and addresses of flags and addends."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from attention_xp._backend.dtypes import as_dtype
from attention_xp._engine.plan.plan import Bounds, Tile
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.walkers.numpy.in_place import InPlace, Patches
from attention_xp._engine.walkers.numpy.place import Place
from attention_xp._engine.walkers.numpy.route import Route
from attention_xp._scores.region import Region
from attention_xp._typing import Array
from attention_xp.biases import Bias
from attention_xp.biases._bias import evaluated

__all__ = ["Stretches", "StretchesOf"]

# Of a stretch: bounds of rows and keys, the address of flags, and their bytes from row to row, head to head.
_NUMBERS = 7
_Row = tuple[int, ...]


class Stretches(NamedTuple):
    """Rectangles of a block of rows, each with flags of its own or with none, and what is added to the scores."""

    table: Array  # (n, 7)
    # (a, 3): the address of the first row and key of the block, bytes from head to head, from row to row.
    addends: Array
    held: tuple[Array, ...]  # the arrays that the addresses point to


class StretchesOf:
    """The stretches of the blocks of one call; tables that are the same for all heads are made once, also for later calls."""

    def __init__(self, problem: Problem, route: Route) -> None:
        self._problem, self._route = problem, route

    @cached_property
    def _rules(self) -> "_Rules":  # of no use to a call without rules
        return _Rules(self._problem)

    def of(self, region: Region, place: Place, rows: Bounds) -> Stretches:
        """Return the stretches of some rows, whose region is under all keys."""
        if self._problem.rules:
            table, of_table = self._route.made(rows, lambda: self._table(region, place, rows))
        else:
            table, of_table = np.asarray([_full((0, rows[1] - rows[0]), (0, region.sizes[-1]))], np.int64), []
        held: list[Array] = []
        addends = [_address(_numbers(region, addend), held) for addend in self._problem.addends]
        return Stretches(table, np.asarray(addends, np.int64).reshape(-1, 3), (*of_table, *held))

    def _table(
        self, region: Region, place: Place, rows: Bounds
    ) -> tuple[tuple[Array, list[Array]], list[Array] | None]:
        """Return a table with its flags, and all these arrays again if they depend on positions alone."""
        tiles, held = self._route.tiles(place, rows), list[Array]()
        numbers = [row for tile in tiles for row in _of_tile(region, tile, self._rules.allowed, held)]
        depends_on_positions = self._problem.shift_invariant(tuple(rule for tile in tiles for rule in tile.rules))
        table = np.asarray(numbers, np.int64).reshape(-1, _NUMBERS)
        return (table, held), [table, *held] if depends_on_positions else None


class _Rules(InPlace):
    """Evaluates rules as flags in the order of the scores of compiled loops, which lie as queries x keys."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.by_keys, self._flags = False, bool

    def _cut(self, allowed: Array) -> Patches:
        """Return all columns: the loops skip what is empty by themselves, and would visit keys beside a cut twice."""
        return [(slice(0, allowed.shape[-1]), allowed)]


def _of_tile(region: Region, tile: Tile, allowed: Any, held: list[Array]) -> Iterator[_Row]:
    """Yield the numbers of a tile: rules are undecided on some of its rows, over its first stretch of keys."""
    start = region.starts[-2]
    rows, mixed = ((first - start, last - start) for first, last in (tile.rows, tile.mixed))
    near, *far = tile.columns
    for keys in far if tile.rules else tile.columns:
        yield _full(rows, keys)
    if tile.rules:
        yield from (_full(some, near) for some in ((rows[0], mixed[0]), (mixed[1], rows[1])) if some[0] < some[1])
        patches = allowed(tile.rules, region.part(mixed, near))
        yield from _patched(mixed, near, patches, held)


def _full(rows: Bounds, keys: Bounds) -> _Row:
    return *rows, *keys, 0, 0, 0


def _patched(rows: Bounds, keys: Bounds, patches: Patches, held: list[Array]) -> Iterator[_Row]:
    """Yield the patches, and the full columns between them."""
    done = keys[0]
    for columns, pairs in patches:
        first, last = keys[0] + (columns.start or 0), keys[0] + columns.stop
        if done < first:
            yield _full(rows, (done, first))
        flags = np.broadcast_to(pairs, (*pairs.shape[:-2], rows[1] - rows[0], last - first))
        address, of_head, of_row = _address(flags, held)
        yield *rows, first, last, address, of_row, of_head
        done = last
    if done < keys[1]:
        yield _full(rows, (done, keys[1]))


def _numbers(region: Region, addend: Array | Bias) -> Array:
    """Return what is added to the scores of a region, (..., m, n), or broadcast to it without more memory."""
    frame = region.frame
    values = evaluated(addend, region) if isinstance(addend, Bias) else region.look_up(addend)
    values = as_dtype(frame.xp, values, frame.dtype)
    values = values.reshape((1,) * (2 - values.ndim) + values.shape)
    return np.broadcast_to(values, (*values.shape[:-2], *region.sizes[-2:]))


def _address(array: Array, held: list[Array]) -> tuple[int, int, int]:
    """Return where an array (..., m, n) begins, and its bytes from head to head and from row to row."""
    if array.strides[-1] != array.itemsize and array.shape[-1] > 1:
        array = np.ascontiguousarray(array)
    held.append(array)
    of_head = array.strides[-3] if array.ndim > 2 and array.shape[-3] > 1 else 0
    return array.__array_interface__["data"][0], of_head, array.strides[-2]
