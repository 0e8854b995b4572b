"""The forward pass of every library without a walker of its own: two Python loops, all heads in one tile."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

from attention_xp._backend.libraries import device
from attention_xp._backend.modes import is_followed
from attention_xp._engine.plan.plan import Bounds, bounds
from attention_xp._engine.plan.row_tiles import tiles_of_rows
from attention_xp._engine.plan.tile_sizes import tile_sizes
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.arithmetic import Arithmetic, Followed
from attention_xp._engine.tile.step import advance, finish, scale_in_base, start
from attention_xp._engine.walkers.portable.gather import cast, gathered
from attention_xp._engine.walkers.reports import reported
from attention_xp._scores.region import Region
from attention_xp._typing import Array

__all__ = ["followed", "forward"]


def forward(problem: Problem, *, lse: bool = True) -> tuple[Array, Array]:  # noqa: ARG001  # it costs nothing
    """Return output (..., H, Sq, Dv) and log-sum-exp (..., H, Sq)."""
    return _by_blocks(Arithmetic(problem), _attend)


def followed(problem: Problem, call: Callable[..., Any] | None = None) -> tuple[Array, Array]:
    """Return the same by operations that the library records, so that it can differentiate them.

    With `call`, each block of rows is computed by ``call(function, *arguments)``, such as torch's ``checkpoint``.
    """
    return _by_blocks(Followed(problem), _attend if call is None else partial(call, _attend))


def _by_blocks(ops: Arithmetic, attend: Callable[..., tuple[Array, Array]]) -> tuple[Array, Array]:
    """Compute one block of rows after the other."""
    problem, (rows, columns) = ops.problem, tile_sizes(ops.problem)
    blocks = bounds(0, problem.query.shape[-2], rows)
    return _side_by_side(problem, blocks, (attend(ops, *block, columns) for block in reported(problem.xp, blocks)))


def _side_by_side(
    problem: Problem, blocks: list[Bounds], results: Iterator[tuple[Array, Array]]
) -> tuple[Array, Array]:
    """Return the results of all blocks of rows, joined along the rows."""
    xp, first = problem.xp, next(results)
    results = chain([first], results)
    if is_followed(xp, first[0]):
        outputs, lses = zip(*results, strict=True)
        return xp.concat(outputs, axis=-2), xp.concat(lses, axis=-1)
    # Written in place where no library records it: joining all blocks at the end takes the memory of a second output.
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
        first, last = tile.columns[0]
        running = advance(
            ops,
            region._replace(starts=(*region.starts[:-1], first), sizes=(*region.sizes[:-1], last - first)),
            query,
            gathered(problem, problem.key, tile),
            gathered(problem, problem.value, tile),
            running,
            rules=tile.rules,
            mixed=(0, stop - row),
        )
    output, lse = finish(ops, region, running)
    if isinstance(ops, Followed):  # a row that attends nothing has zero gradients, even if that of the output is NaN
        is_empty = (running.peak == nothing.peak) & (running.total == nothing.total)
        output = xp.where(is_empty, 0.0, output)
    return output, lse
