"""The tiles that a block of rows of all heads visits."""

from attention_xp._backend.modes import is_compiling
from attention_xp._engine.plan.plan import Bounds, Tile, bounds, plan
from attention_xp._engine.plan.tile_sizes import strip_size
from attention_xp._engine.problem.problem import Problem
from attention_xp._scores.region import span_between
from attention_xp.masks import Mask

__all__ = ["strips_of", "tiles_of_rows"]

_Answer = tuple[Mask, list[list[bool]], list[list[bool]]]  # possible and certain: of the rows as one chunk, by strip


def strips_of(problem: Problem, columns: int) -> list[Bounds]:
    """Return the strips of keys that tiles are made of, of which rules are asked."""
    return bounds(0, problem.key.shape[-2], strip_size(problem, columns))


def tiles_of_rows(problem: Problem, row: int, stop: int, columns: int) -> list[Tile]:
    """Return the tiles that a block of rows of all heads visits."""
    strips = strips_of(problem, columns)
    # A block without any allowed pair visits one tile nevertheless: for autograd its result must depend on the inputs.
    # All rows count as the one chunk (0, 1): in a trace their bounds may be symbols, which cannot be keys of a dict.
    return plan([(0, 1)], strips, _answers(problem, (row, stop), strips), columns, may_skip=problem.may_gather) or [
        Tile((0, 1), (strips[0],), (0, 1), problem.rules)
    ]


def _answers(problem: Problem, rows: Bounds, strips: list[Bounds]) -> list[_Answer]:
    """Return for each rule whether it possibly, and whether it certainly, allows some rows each strip."""
    offset = problem.query_offset or 0 if isinstance(problem.query_offset, int | None) else None
    # With dynamic shapes one graph should serve all lengths that fit into one tile, and in an export sizes are symbols.
    is_open = is_compiling(problem.xp) and (len(strips) == 1 or not isinstance(strips[0][1], int))
    is_known = isinstance(problem.key_offset, int | None)  # in a program of JAX it is an array
    # Where nothing can be asked, every rule is evaluated.
    if offset is None or not is_known or not problem.keys_count_up or is_open:
        return [(rule, [[True] * len(strips)], [[False] * len(strips)]) for rule in problem.rules]
    if is_compiling(problem.xp):
        return _one_by_one(problem.rules, rows, strips, (offset, problem.key_offset or 0))
    from attention_xp._engine.plan.answers import Item, asked  # noqa: PLC0415  # imports NumPy

    answers = asked(problem.rules, [rows], strips, Item(offset, None, None, problem.key_offset or 0))
    return [(rule, *both.tolist()) for rule, both in zip(problem.rules, answers, strict=True)]


def _one_by_one(rules: tuple[Mask, ...], rows: Bounds, strips: list[Bounds], offsets: tuple[int, int]) -> list[_Answer]:
    """Return the answers of all rules together, so that a strip is possible or certain under all of them or under none.

    Tiles then differ in whether rules are evaluated and not in which, and a graph has fewer of them.
    """
    possible, certain = [], []
    for strip in strips:
        span, is_possible, is_certain = span_between(None, rows, strip, offsets), True, True
        for rule in rules:
            if is_possible:  # torch traces each question, which takes milliseconds
                some, every = rule.reach(span)
                is_possible, is_certain = bool(some), is_certain and bool(every)
        possible.append(is_possible)
        certain.append(is_certain)
    return [(rule, [possible], [certain]) for rule in rules]
