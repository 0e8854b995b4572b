"""The blocks of rows of a call on NumPy, in the order in which they are computed, and the tiles of each."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Self, TypeVar

from attention_xp._engine.plan.answers import Grid, Item
from attention_xp._engine.plan.plan import Bounds, Tile, bounds
from attention_xp._engine.plan.plans import Plans
from attention_xp._engine.plan.tile_sizes import STRIP, TileShape
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.walkers.numpy.place import Place, item_of
from attention_xp._typing import Array

__all__ = ["Route"]

_T = TypeVar("_T")


class Route:
    """The plans of one call, for all batch items and heads together or for each."""

    def __init__(self, problem: Problem, shape: TileShape, *, widest: int, together: int) -> None:
        self._problem, self._shape, self._spans = problem, shape, (widest, together)

    @cached_property
    def _common(self) -> Item | None:
        return item_of(self._problem, 0, None) if self._problem.is_masked_alike else None

    @cached_property
    def _plans(self) -> Plans:
        problem = self._problem
        # What was planned for other positions serves no other call.
        plans = Plans.of if problem.keys_count_up else Plans
        return plans(problem.rules, problem.query.shape[-2], _grid(problem, self._shape, *self._spans))

    @classmethod
    def of_compiled(cls, problem: Problem, shape: TileShape) -> Self:
        """Return the plans for compiled steps, to which a tile costs nothing by itself."""
        return cls(problem, shape, widest=shape.columns, together=0)

    def made(self, rows: Bounds, make: Callable[[], tuple[_T, Sequence[Array] | None]]) -> _T:
        """Return what `make` makes of the tiles of a block; where it names the arrays of that, it serves all heads and later calls.

        Two threads may both make it.
        """
        if self._common is None:
            return make()[0]
        name = self._common, rows
        known = self._plans.made.get(name)
        if known is None:
            known, arrays = make()
            if arrays is not None:
                self._plans.keep(*name, known, arrays)
        return known

    def blocks(self) -> list[Bounds]:
        """Return the blocks of rows of all heads: those with much work first, so that all threads end together."""
        if not self._problem.rules:
            return bounds(0, self._problem.query.shape[-2], self._shape.rows)
        return self._plans.latest_first() if self._common is None else self._plans.longest_first(self._common)

    def tiles(self, place: Place, rows: Bounds) -> list[Tile]:
        """Return the tiles that a block of rows visits."""
        return self._plans.tiles(self._common or place.item(self._problem), rows)


def _grid(problem: Problem, shape: TileShape, widest: int, together: int) -> Grid:
    part = shape.part or shape.rows
    return Grid(
        keys=problem.key.shape[-2],
        rows=shape.rows,
        part=part,
        step=shape.step,
        width=shape.width or shape.columns,
        chunk=part if shape.folded else min(STRIP, part),
        columns=shape.columns,
        widest=widest,
        may_skip=problem.may_gather,
        together=together,
    )
