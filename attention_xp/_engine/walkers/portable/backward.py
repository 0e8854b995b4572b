"""The backward pass of every library without a walker of its own: two Python loops, all heads in one tile."""

import operator
from collections.abc import Callable, Iterator

from attention_xp._backend.libraries import device
from attention_xp._backend.shapes import summed_to
from attention_xp._engine.plan.plan import Bounds, bounds, side_by_side
from attention_xp._engine.plan.row_tiles import strips_of, tiles_of_rows
from attention_xp._engine.plan.tile_sizes import tile_sizes
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.arithmetic import Arithmetic
from attention_xp._engine.tile.backward_step import Rows, contribute, key_factor, shift_of, surviving
from attention_xp._engine.tile.gradients import Gradients, Known
from attention_xp._engine.tile.products import clean
from attention_xp._engine.tile.scores import query_factor
from attention_xp._engine.tile.step import scale_in_base
from attention_xp._engine.walkers.portable.gather import cast, gathered
from attention_xp._engine.walkers.reports import reported
from attention_xp._scores.region import Region
from attention_xp._typing import Array
from attention_xp.biases import Bias

__all__ = ["backward"]


def backward(
    problem: Problem, known: Known, wanted: tuple[bool, ...], ops_of: Callable[[Problem], Arithmetic] = Arithmetic
) -> Gradients:
    """Return the gradients of query, key, value and of the addends that are wanted, in the shapes of the problem."""
    ops, (m, n), lead = ops_of(problem), tile_sizes(problem), problem.lead
    Sq, Sk = problem.query.shape[-2], problem.key.shape[-2]
    kv_lead = lead if problem.heads is None else (*problem.batch, problem.key.shape[-3])
    blocks, strips = bounds(0, Sq, m), strips_of(problem, n)
    query = _Piecewise(problem, tuple(problem.query.shape), blocks)
    key, value = (_Piecewise(problem, (*kv_lead, *a.shape[-2:]), strips) for a in (problem.key, problem.value))
    addends = [
        _OfBias(problem, a) if isinstance(a, Bias) else _Piecewise(problem, tuple(a.shape), blocks, strips)
        for a in problem.addends
    ]
    captured: tuple[Array, ...] = ()
    for row, stop in reported(problem.xp, blocks if Sk else []):
        rows = _rows(problem, known, (row, stop))
        for tile in tiles_of_rows(problem, row, stop, n):
            first, last = tile.columns[0]
            found = contribute(
                ops,
                Region(problem, (*(0,) * len(lead), row, first), (*lead, stop - row, last - first)),
                rows,
                gathered(problem, problem.key, tile),
                gathered(problem, problem.value, tile),
                rules=tile.rules,
                mixed=(0, stop - row),
                wanted=wanted,
            )
            query.add(found.query, ((row, stop),))
            key.add(found.key, tile.columns)
            value.add(found.value, tile.columns)
            captured = tuple(map(operator.add, captured, found.captured)) if captured else found.captured
            for addend, piece in zip(addends, found.addends, strict=True):
                if piece is not None:
                    addend.add(piece, ((row, stop),), tile.columns)
    xp = problem.xp
    return Gradients(
        query.assembled() * query_factor(problem),
        summed_to(xp, key.assembled() * key_factor(problem), tuple(problem.key.shape)),
        summed_to(xp, value.assembled(), tuple(problem.value.shape)),
        tuple(addend.assembled() if is_wanted else None for addend, is_wanted in zip(addends, wanted, strict=True)),
        captured,
    )


def _rows(problem: Problem, known: Known, block: Bounds) -> Rows:
    part = slice(*block)
    some = known.at(..., part)
    query = cast(problem, problem.query[..., part, :]) * scale_in_base(problem)
    gradient = surviving(problem, some.gradient)
    return Rows(
        query,
        gradient,
        shift_of(problem, some.lse),
        problem.xp.expand_dims(some.delta(problem), axis=-1),
        clean(query) if problem.rules else query,
        gradient,
    )


class _Piecewise:
    """A gradient that is summed up by pieces of rows and columns; along an axis of length 1 all pieces are added."""

    def __init__(
        self, problem: Problem, shape: tuple[int, ...], rows: list[Bounds], columns: list[Bounds] | None = None
    ) -> None:
        self.problem, self.shape = problem, shape
        *self.lead, height, width = (1,) * (2 - len(shape)) + shape
        self.rows = _parts(height, rows)
        self.columns = [(0, width)] if columns is None else _parts(width, columns)
        self.pieces: dict[tuple[int, int], Array] = {}  # by number: bounds that torch traces cannot be keys

    def add(self, piece: Array, rows: tuple[Bounds, ...], columns: tuple[Bounds, ...] = ((0, 0),)) -> None:
        """Add a piece that covers these stretches, side by side."""
        for i, rows_of_part in _cut(self.rows, rows):
            for j, columns_of_part in _cut(self.columns, columns):
                # Not compared with None: torch's compiler would fix such a slice.
                part = piece[..., rows_of_part, columns_of_part]
                self.pieces[i, j] = self.pieces[i, j] + part if (i, j) in self.pieces else part

    def assembled(self) -> Array:
        """Return the whole gradient, 0 where nothing was added."""
        xp = self.problem.xp
        if len(self.pieces) == 0:
            return self._zeros(self.shape)
        strips = [[self._piece(i, j) for j in range(len(self.columns))] for i in range(len(self.rows))]
        joined = [strip[0] if len(strip) == 1 else xp.concat(strip, axis=-1) for strip in strips]
        whole = joined[0] if len(joined) == 1 else xp.concat(joined, axis=-2)
        return xp.reshape(whole, self.shape)

    def _piece(self, i: int, j: int) -> Array:
        rows, columns = self.rows[i], self.columns[j]
        shape = (*self.lead, rows[1] - rows[0], columns[1] - columns[0])
        if (i, j) in self.pieces:
            return self.problem.xp.reshape(self.pieces[i, j], shape)
        return self._zeros(shape)

    def _zeros(self, shape: tuple[int, ...]) -> Array:
        return self.problem.xp.zeros(shape, dtype=self.problem.dtype, device=device(self.problem.query))


class _OfBias:
    """Gradients of the arrays of a bias, to which every tile may contribute."""

    def __init__(self, problem: Problem, bias: Bias) -> None:
        xp, like = problem.xp, device(problem.query)  # the arrays may be those of NumPy
        self.sums = tuple(xp.zeros(tuple(a.shape), dtype=problem.dtype, device=like) for a in bias.arrays)

    def add(self, pieces: tuple[Array, ...], *_: tuple[Bounds, ...]) -> None:
        """Add what a tile contributes."""
        self.sums = tuple(x + y for x, y in zip(self.sums, pieces, strict=True))

    def assembled(self) -> tuple[Array, ...]:
        """Return the gradients."""
        return self.sums


def _parts(length: int, parts: list[Bounds]) -> list[Bounds]:
    """Return the parts of an axis for which pieces are kept apart."""
    return parts if length != 1 and len(parts) > 0 else [(0, length)]


def _cut(parts: list[Bounds], stretches: tuple[Bounds, ...]) -> Iterator[tuple[int, slice]]:
    """Yield each part that stretches consist of, with its slice of the stretches side by side."""
    if len(parts) == 1:
        yield 0, slice(None)
        return
    numbers = [i for start, stop in stretches for i in range(_number(parts, start), _number(parts, stop))]
    if len(numbers) == 1:
        yield numbers[0], slice(None)
        return
    yield from zip(numbers, side_by_side(parts[i][1] - parts[i][0] for i in numbers), strict=True)


def _number(parts: list[Bounds], start: int) -> int:
    """Return the number of parts that begin before; `index` compares by identity first, which a trace does not support."""
    return len([first for first, _ in parts if first < start])
