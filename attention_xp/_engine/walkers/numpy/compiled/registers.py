"""The innermost loop of a product: sums of products that stay in vector registers, as code for LLVM.

numba leaves an array of sums in memory, however small it is. Therefore these few instructions are written out, of vectors
as long as the processor's registers; LLVM translates them for any processor.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from attention_xp._engine.walkers.numpy.compiled.powers import Lanes, power_of, spread

__all__ = [
    "BYTE",
    "FEATURES",
    "FEW",
    "HAS_LONG",
    "PAIR",
    "ROWS",
    "VECTORS",
    "WIDTH",
    "Registers",
    "add_products",
    "item_of",
    "raise_columns",
    "repeated",
]

FEATURES = cpu_target.target_context.codegen().magic_tuple()[2].split(",")  # of the processor that numba compiles for
# Whether there are 32 registers of 64 bytes, and not 16 of 32, with which products are no faster than BLAS'.
HAS_LONG = "+avx512f" in FEATURES
WIDTH = 64 if HAS_LONG else 32  # bytes of a register
VECTORS = 4 if HAS_LONG else 2  # that a row of sums takes
PAIR = 2  # that it takes at an edge, where there is no room for all of them
ROWS = 6  # of sums: with a row of the second factor and a number of the first, they fill the registers
FEW = 2  # rows at a time of the last ones, where these are fewer

_INDEX, BYTE = ir.IntType(64), ir.IntType(8)


@intrinsic  # type: ignore[untyped-decorator]
def add_products(
    _typing: Any,
    out: Any,
    x: Any,
    y: Any,
    strides: Any,
    count: Any,
    goes_on: Any,
    blocks: Any,
    rows: Any,
    vectors: Any,
    one: Any,
) -> Any:
    """Write ``x @ y`` to `rows` rows of so many `blocks` of so many vectors, or add it where it `goes_on`.

    out, x and y are addresses, and `strides` the bytes of out from row to row, of x from row to row and from column to
    column, and of y from row to row: (rows, count) @ (count, N). `one` is of the dtype.
    """
    if not isinstance(rows, types.IntegerLiteral):  # numba then asks again, with the numbers as they are written
        return None
    signature = types.void(out, x, y, strides, count, goes_on, blocks, rows, vectors, one)

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        addresses, (strides, count, goes_on, blocks) = arguments[:3], arguments[3:7]
        number = context.get_value_type(one)
        pointers = [builder.inttoptr(address, BYTE.as_pointer()) for address in addresses]
        steps = [builder.extract_value(strides, i) for i in range(4)]
        shape = rows.literal_value, vectors.literal_value
        _Kernel(builder, number, shape, steps).run(pointers, count, goes_on, blocks)
        return context.get_dummy_value()

    return signature, generate


@intrinsic  # type: ignore[untyped-decorator]
def raise_columns(
    _typing: Any, scores: Any, stride: Any, lines: Any, shift: Any, sums: Any, constants: Any, vectors: Any, one: Any
) -> Any:
    """Replace `lines` rows of so many vectors of scores by powers of ``scores - shift``, and add them to the sums.

    scores, shift and sums are addresses, `stride` the bytes from line to line. `one` is of the dtype.
    """
    if not isinstance(vectors, types.IntegerLiteral):
        return None
    signature = types.void(scores, stride, lines, shift, sums, constants, vectors, one)

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        number = context.get_value_type(one)
        columns = _Columns(builder, number, (1, vectors.literal_value), arguments[5])
        scores, shift, sums = (builder.inttoptr(arguments[i], BYTE.as_pointer()) for i in (0, 3, 4))
        columns.run(scores, arguments[1], arguments[2], shift, sums)
        return context.get_dummy_value()

    return signature, generate


def item_of(number: Any) -> int:
    """Return how many bytes a number of a type of LLVM has."""
    return 4 if isinstance(number, ir.FloatType) else 8


class Registers:
    """Some rows of vectors, for which instructions are written."""

    def __init__(self, builder: ir.IRBuilder, number: Any, shape: tuple[int, int]) -> None:
        self.builder = builder
        self.rows, self.vectors = map(range, shape)
        self.number, self.item = number, item_of(number)
        self.lanes = WIDTH // self.item
        self.vector = ir.VectorType(number, self.lanes)

    def pointer(self, line: Any, vector: int) -> Any:
        builder = self.builder
        return builder.bitcast(builder.gep(line, [_INDEX(vector * WIDTH)]), self.vector.as_pointer())

    def load(self, pointer: Any) -> Any:
        return self.builder.load(pointer, align=self.item)


class _Columns(Registers):
    """The instructions for powers and their sums."""

    def __init__(self, builder: ir.IRBuilder, number: Any, shape: tuple[int, int], constants: Any) -> None:
        super().__init__(builder, number, shape)
        self._constants = [
            Lanes(builder, spread(builder, builder.extract_value(constants, i), self.vector)) for i in range(5)
        ]

    def run(self, scores: Any, stride: Any, lines: Any, shift: Any, sums: Any) -> None:
        """Write the loop over the lines, in which the sums stay in registers."""
        builder = self.builder
        shifts = [Lanes(builder, self.load(self.pointer(shift, vector))) for vector in self.vectors]
        targets = [self.pointer(sums, vector) for vector in self.vectors]

        def body(line: Any, *totals: Any) -> list[Any]:
            after = []
            for vector, total in zip(self.vectors, totals, strict=True):
                at = self.pointer(line, vector)
                raised = power_of(Lanes(builder, self.load(at)) - shifts[vector], self._constants)
                builder.store(raised.value, at, align=self.item)
                after.append((Lanes(builder, total) + raised).value)
            return [builder.gep(line, [stride]), *after]

        _, *after = repeated(builder, lines, [scores, *map(self.load, targets)], body)
        for target, value in zip(targets, after, strict=True):
            builder.store(value, target, align=self.item)


class _Kernel(Registers):
    """The instructions for some rows of sums."""

    def __init__(self, builder: ir.IRBuilder, number: Any, shape: tuple[int, int], steps: list[Any]) -> None:
        super().__init__(builder, number, shape)
        self._steps = steps

    def run(self, pointers: list[Any], count: Any, goes_on: Any, blocks: Any) -> None:
        """Write the loop over blocks of columns: where rows begin is known before it, and in each block the same."""
        builder, (out, x, y), (out_row, x_row, *_) = self.builder, pointers, self._steps
        lines, offsets = (self._multiples(row) for row in (out_row, x_row))

        def block(out: Any, y: Any) -> list[Any]:
            targets = [self.pointer(builder.gep(out, [line]), vector) for line in lines for vector in self.vectors]
            self._write(self._summed(x, y, offsets, count), targets, goes_on)
            return [builder.gep(pointer, [_INDEX(len(self.vectors) * WIDTH)]) for pointer in (out, y)]

        repeated(builder, blocks, [out, y], block)

    def _summed(self, x: Any, y: Any, offsets: list[Any], count: Any) -> list[Any]:
        """Write the loop in which pointers move along a row of x and down a column of y, and return the sums."""
        builder, steps = self.builder, self._steps[2:]
        zeros = [ir.Constant(self.vector, [0.0] * self.lanes)] * (len(offsets) * len(self.vectors))

        def body(x: Any, y: Any, *totals: Any) -> list[Any]:
            added = self._added(totals, x, y, offsets)
            return [*(builder.gep(pointer, [step]) for pointer, step in zip((x, y), steps, strict=True)), *added]

        _, _, *sums = repeated(builder, count, [x, y, *zeros], body)
        return sums

    def _write(self, sums: list[Any], targets: list[Any], goes_on: Any) -> None:
        """Write sums, or add them to what is there: behind the loop, for products that are added to a large number lose digits."""
        builder = self.builder
        with builder.if_else(goes_on) as (then, otherwise):
            with then:
                self._store(
                    [builder.fadd(self.load(at), more) for at, more in zip(targets, sums, strict=True)], targets
                )
            with otherwise:
                self._store(sums, targets)

    def _store(self, values: list[Any], targets: list[Any]) -> None:
        for value, target in zip(values, targets, strict=True):
            self.builder.store(value, target, align=self.item)

    def _added(self, totals: Sequence[Any], x: Any, y: Any, offsets: list[Any]) -> list[Any]:
        """Return the sums with the products of one column of x and one row of y."""
        builder, sums = self.builder, iter(totals)
        vectors = [self.load(self.pointer(y, vector)) for vector in self.vectors]
        added = []
        for offset in offsets:
            same = self._spread(builder.gep(x, [offset]))
            for vector in vectors:
                product = builder.fmul(same, vector, flags=("contract",))
                added.append(builder.fadd(next(sums), product, flags=("contract",)))
        return added

    def _spread(self, pointer: Any) -> Any:
        """Return a vector of which each element is the number at a pointer."""
        builder = self.builder
        number = builder.load(builder.bitcast(pointer, self.number.as_pointer()), align=self.item)
        return spread(builder, number, self.vector)

    def _multiples(self, stride: Any) -> list[Any]:
        """Return where each row starts, in bytes.

        LLVM would otherwise make the address of each row from that of the row before, in a chain of sums that takes longer
        than the products. It cannot, once the offsets have gone through an empty piece of assembly, which hides their origin.
        """
        builder, same = self.builder, ir.FunctionType(_INDEX, [_INDEX])
        offsets = [builder.mul(stride, _INDEX(row)) for row in self.rows]
        return [builder.asm(same, "", "=r,0", [offset], side_effect=False) for offset in offsets]


def repeated(builder: ir.IRBuilder, count: Any, values: list[Any], body: Callable[..., list[Any]]) -> list[Any]:
    """Write a loop that runs `count` times, once at least, in which `body` makes new values; return the last ones."""
    before, loop, end = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("end")
    builder.branch(loop)
    builder.position_at_end(loop)
    left, *now = (_phi(builder, value, before) for value in (count, *values))
    after = body(*now)
    fewer = builder.sub(left, _INDEX(1))
    for phi, value in zip((left, *now), (fewer, *after), strict=True):
        phi.add_incoming(value, builder.block)
    builder.cbranch(builder.icmp_signed(">", fewer, _INDEX(0)), loop, end)
    builder.position_at_end(end)
    return after


def _phi(builder: ir.IRBuilder, value: Any, block: Any) -> Any:
    """Return what a value is in a loop, where it comes from a block at first."""
    phi = builder.phi(value.type)
    phi.add_incoming(value, block)
    return phi
