"""Which way a walk takes on NumPy: the blocks of rows of some heads, and the tiles that each of them visits."""

from attention_xp._engine.plan.answers import Grid, Item
from attention_xp._engine.plan.plan import Bounds, Tile
from attention_xp._engine.plan.plans import Plans
from attention_xp._engine.plan.tile_sizes import STRIP, TileShape
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.walkers.numpy.place import Place, item_of

__all__ = ["Route"]


class Route:
    """The plans of one call, whoever's mask they follow."""

    def __init__(self, problem: Problem, shape: TileShape, *, widest: int) -> None:
        self._problem = problem
        self._alike = item_of(problem, 0, None) if problem.is_masked_alike else None
        self._plans = Plans.of(
            problem.rules, problem.query.shape[-2], _grid(problem, shape, widest), may_keep=problem.keys_count_up
        )

    def blocks(self) -> list[Bounds]:
        """Return the blocks of rows of all heads: what is long comes first, so that no thread ends with it."""
        return self._plans.latest_first() if self._alike is None else self._plans.longest_first(self._alike)

    def tiles(self, place: Place, rows: Bounds) -> list[Tile]:
        """Return the tiles that a block of rows visits."""
        return self._plans.tiles(self._item(place), rows)

    def _item(self, place: Place) -> Item:
        """Return whose mask some heads have."""
        return self._alike or place.item(self._problem)


def _grid(problem: Problem, shape: TileShape, widest: int) -> Grid:
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
    )
