"""The tiles that the Python loops visit, and the keys of them."""

from attention_xp._backend.modes import is_compiling
from attention_xp._engine.plan.plan import Bounds, Tile, bounds, plan
from attention_xp._engine.plan.tile_sizes import strip_size
from attention_xp._engine.problem.problem import Problem
from attention_xp._scores.region import span_between
from attention_xp._typing import Array
from attention_xp.masks import Mask

__all__ = ["cast", "gathered", "strips_of", "tiles_of_rows"]

_Answer = tuple[Mask, list[list[bool]], list[list[bool]]]  # possible and certain: of the rows as one chunk, by strip


def cast(problem: Problem, x: Array) -> Array:
    """Return an array in the dtype of the computation."""
    return problem.xp.astype(x, problem.dtype, copy=False)


def gathered(problem: Problem, x: Array, tile: Tile) -> Array:
    """Return the keys or values of a tile side by side, (..., n, D)."""
    stretches = [cast(problem, x[..., first:last, :]) for first, last in tile.columns]
    return stretches[0] if len(stretches) == 1 else problem.xp.concat(stretches, axis=-2)


def strips_of(problem: Problem, columns: int) -> list[Bounds]:
    """Return the strips of keys that tiles are made of, of which rules are asked."""
    # A trace compiles a graph for each answer.
    size = columns if is_compiling(problem.xp) else strip_size(problem, columns)
    return bounds(0, problem.key.shape[-2], size)


def tiles_of_rows(problem: Problem, row: int, stop: int, columns: int) -> list[Tile]:
    """Return the tiles that a block of rows of all heads visits."""
    strips = strips_of(problem, columns)
    # A block that sees nothing visits one tile all the same: its result must hang on the inputs for autograd.
    # All rows count as one chunk: their bounds, which a trace may not know, would make no keys.
    return plan([(0, 1)], strips, _answers(problem, (row, stop), strips), columns, may_skip=problem.may_gather) or [
        Tile((0, 1), (strips[0],), (0, 1), problem.rules)
    ]


def _answers(problem: Problem, rows: Bounds, strips: list[Bounds]) -> list[_Answer]:
    """Return for each rule whether it possibly, and whether it certainly, allows some rows each strip."""
    offset = problem.query_offset or 0 if isinstance(problem.query_offset, int | None) else None
    # A trace with sizes that change takes one graph for all that fit into one tile, and export has no ints at all.
    is_vague = is_compiling(problem.xp) and (len(strips) == 1 or not isinstance(strips[0][1], int))
    if offset is None or not problem.keys_count_up or is_vague:  # what is not known may be anything
        return [(rule, [[True] * len(strips)], [[False] * len(strips)]) for rule in problem.rules]
    if is_compiling(problem.xp):
        return [_one_by_one(rule, rows, strips, (offset, problem.key_offset)) for rule in problem.rules]
    from attention_xp._engine.plan.answers import Item, asked  # noqa: PLC0415  # imports NumPy

    told = asked(problem.rules, [rows], strips, Item(offset, None, None, problem.key_offset))
    return [(rule, *both.tolist()) for rule, both in zip(problem.rules, told, strict=True)]


def _one_by_one(rule: Mask, rows: Bounds, strips: list[Bounds], offsets: tuple[int, int]) -> _Answer:
    told = [rule.reach(span_between(None, rows, strip, offsets)) for strip in strips]
    return rule, [[bool(possible) for possible, _ in told]], [[bool(certain) for _, certain in told]]
