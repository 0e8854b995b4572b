"""Forward mode, by two Python loops: the changes of output and log-sum-exp."""

from typing import NamedTuple

from attention_xp._engine.plan.plan import Bounds, bounds
from attention_xp._engine.plan.tile_sizes import tile_sizes
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.arithmetic import Arithmetic
from attention_xp._engine.tile.backward_step import shift_of, sink_weights
from attention_xp._engine.tile.scores import query_factor
from attention_xp._engine.tile.step import scale_in_base
from attention_xp._engine.tile.tangent_step import Changing, Sums, advance_sums
from attention_xp._engine.walkers.portable.tiles import cast, gathered, tiles_of_rows
from attention_xp._scores.region import Region
from attention_xp._typing import Array

__all__ = ["Tangents", "walk"]


class Tangents(NamedTuple):
    """The changes of a problem's arrays."""

    query: Array
    key: Array
    value: Array
    addends: tuple[Array | None, ...]
    sinks: Array | None


def walk(problem: Problem, output: Array, lse: Array, tangents: Tangents) -> tuple[Array, Array]:
    """Return the changes of output (..., H, Sq, Dv) and log-sum-exp (..., H, Sq)."""
    xp, (m, n) = problem.xp, tile_sizes(problem)
    parts = [_rows(problem, lse, tangents, block, n) for block in bounds(0, problem.query.shape[-2], m)]
    total, change = (xp.concat(arrays, axis=-2) for arrays in zip(*parts, strict=True))
    if tangents.sinks is not None:
        total = total + sink_weights(problem, lse)[..., None] * cast(problem, tangents.sinks)
    return change - output * total, xp.squeeze(total, axis=-1)


def _rows(problem: Problem, lse: Array, tangents: Tangents, block: Bounds, columns: int) -> Sums:
    ops, (row, stop), lead = Arithmetic(problem), block, problem.lead
    query, by = (cast(problem, a[..., row:stop, :]) for a in (problem.query, tangents.query))
    sums = Sums(0.0, 0.0)
    for tile in tiles_of_rows(problem, row, stop, columns):
        first, last = tile.columns[0]
        key, value = (
            Changing(*(gathered(problem, a, tile) for a in pair))
            for pair in ((problem.key, tangents.key), (problem.value, tangents.value))
        )
        sums = advance_sums(
            ops,
            Region(problem, (*(0,) * len(lead), row, first), (*lead, stop - row, last - first)),
            Changing(query * scale_in_base(problem), by * query_factor(problem)),
            shift_of(problem, lse[..., row:stop]),
            key,
            value,
            tangents.addends,
            sums,
            rules=tile.rules,
            mixed=(0, stop - row),
        )
    return sums
