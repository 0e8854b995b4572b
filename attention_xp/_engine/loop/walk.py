"""The walker of every library without one of its own: two Python loops, all heads in one tile."""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from attention_xp._backend.libraries import device
from attention_xp._backend.modes import is_compiling, is_followed
from attention_xp._engine.plan import Bounds, Tile, bounds, plan
from attention_xp._engine.problem import Problem
from attention_xp._engine.region import Region, Span
from attention_xp._engine.tile.arithmetic import Arithmetic, Followed
from attention_xp._engine.tile.step import advance, finish, scale_in_base, start
from attention_xp._engine.tile_sizes import tile_sizes
from attention_xp._typing import Array

__all__ = ["cast", "tiles_of_rows", "walk"]


def walk(problem: Problem, call: Callable[..., Any] | None = None, *, is_followed: bool = False) -> tuple[Array, Array]:
    """Return output (..., H, Sq, Dv) and log-sum-exp (..., H, Sq); each block of rows through `call`, where given.

    With `is_followed`, the library records what is done, and may differentiate it.
    """
    ops, (rows, columns) = Followed(problem) if is_followed else Arithmetic(problem), tile_sizes(problem)
    blocks = bounds(0, problem.query.shape[-2], rows)
    if call is None:
        return _side_by_side(problem, blocks, (_attend(ops, *block, columns) for block in blocks))
    return _side_by_side(problem, blocks, (call(_attend, ops, *block, columns) for block in blocks))


def _side_by_side(
    problem: Problem, blocks: list[Bounds], results: Iterator[tuple[Array, Array]]
) -> tuple[Array, Array]:
    """Return the results of all blocks of rows as one."""
    xp, first = problem.xp, next(results)
    results = chain([first], results)
    if is_followed(xp, first[0]):
        outputs, lses = zip(*results, strict=True)
        return xp.concat(outputs, axis=-2), xp.concat(lses, axis=-1)
    # In place where that goes unseen: blocks that wait for the last one take the memory of another output.
    shape = (*problem.lead, problem.query.shape[-2])
    output = xp.empty((*shape, problem.value.shape[-1]), dtype=first[0].dtype, device=device(problem.query))
    lse = xp.empty(shape, dtype=first[1].dtype, device=device(problem.query))
    for (row, stop), part in zip(blocks, results, strict=True):
        output[..., row:stop, :], lse[..., row:stop] = part
    return output, lse


def _attend(ops: Arithmetic, row: int, stop: int, columns: int) -> tuple[Array, Array]:
    """Compute one block of rows of all heads."""
    problem, xp = ops.problem, ops.xp
    lead, Sk = problem.lead, problem.key.shape[-2]
    region = Region(problem, (*(0,) * len(lead), row, 0), (*lead, stop - row, Sk))
    query = cast(problem, problem.query[..., row:stop, :]) * scale_in_base(problem)
    sums = xp.zeros((*region.sizes[:-1], problem.value.shape[-1]), dtype=problem.dtype, device=device(problem.query))
    running = nothing = start(problem, region, sums, shift=None)
    for tile in tiles_of_rows(problem, row, stop, columns):
        ((first, last),) = tile.columns
        running = advance(
            ops,
            region._replace(starts=(*region.starts[:-1], first), sizes=(*region.sizes[:-1], last - first)),
            query,
            cast(problem, problem.key[..., first:last, :]),
            cast(problem, problem.value[..., first:last, :]),
            running,
            rules=tile.rules,
            mixed=(0, stop - row),
        )
    output, lse = finish(ops, region, running)
    if isinstance(ops, Followed):  # no slope comes back to a row that attends nothing, whatever it is
        is_silent = (running.peak == nothing.peak) & (running.total == nothing.total)
        output = xp.where(is_silent, 0.0, output)
    return output, lse


def cast(problem: Problem, x: Array) -> Array:
    """Return an array in the dtype of the computation."""
    return problem.xp.astype(x, problem.dtype, copy=False)


def tiles_of_rows(problem: Problem, row: int, stop: int, columns: int) -> list[Tile]:
    """Return the tiles that a block of rows of all heads visits."""
    strips = bounds(0, problem.key.shape[-2], columns)
    offset = problem.query_offset or 0 if isinstance(problem.query_offset, int | None) else None
    # A trace with sizes that change takes one graph for all that fit into one tile, and export has no ints at all.
    is_vague = is_compiling(problem.xp) and (len(strips) == 1 or not isinstance(strips[0][1], int))
    answers = []
    for rule in problem.rules:
        verdicts = []
        for first, last in strips:
            if offset is None or problem.packing is not None or is_vague:  # what is not known may be anything
                verdicts.append((True, False))
                continue
            span = Span(None, row, stop - 1, row + offset, stop - 1 + offset, first, last - 1, None, None)
            possible, certain = rule.reach(span)
            verdicts.append((bool(possible), bool(certain)))
        answers.append((rule, [[possible for possible, _ in verdicts]], [[certain for _, certain in verdicts]]))
    # A block that sees nothing visits one tile all the same: its result must hang on the inputs for autograd.
    # All rows count as one chunk: their bounds, which a trace may not know, would make no keys.
    return plan([(0, 1)], strips, answers, columns) or [Tile((0, 1), (strips[0],), (0, 1), problem.rules)]
