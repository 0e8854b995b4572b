"""Copies of queries, keys, values and outputs in the order that products want, in vectors where numbers are adjacent."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from attention_xp._engine.walkers.numpy.compiled.compiling import compiled, inlined
from attention_xp._engine.walkers.numpy.compiled.line import KEYS
from attention_xp._engine.walkers.numpy.compiled.memory import multiply_vector, number_at, put_at
from attention_xp._engine.walkers.numpy.compiled.powers import spread
from attention_xp._engine.walkers.numpy.compiled.registers import BYTE, WIDTH, Registers

__all__ = ["copy_head", "copy_row", "pack_head"]


@compiled()
def pack_head(address, strides, length, factor, packed):
    """Write keys (Sk, D) times a factor to (chunks, D, KEYS): those of a chunk side by side, with zeros behind the last one."""
    D, item, one = packed.shape[1], packed.itemsize, packed.dtype.type(0.0)
    lanes, line = WIDTH // item, KEYS * item
    for c in range((length + KEYS - 1) // KEYS):
        first, real = address + c * KEYS * strides[0], min(length - c * KEYS, KEYS)
        to = packed.ctypes.data + c * D * line
        turned = D - D % lanes if strides[1] == item and real == KEYS else 0
        for j in range(0, KEYS, lanes):
            for d in range(0, turned, lanes):
                _turn(to + d * line + j * item, line, first + j * strides[0] + d * item, strides[0], factor)
        for d in range(turned, D):
            for j in range(real):
                packed[c, d, j] = factor * number_at(first + j * strides[0] + d * strides[1], one)
            packed[c, d, real:] = one


@compiled()
def copy_head(address, strides, length, width, rows):
    """Write values (Sk, Dv), which have an address and strides in bytes, to rows of whole vectors, with zeros behind them."""
    item, one = rows.itemsize, rows.dtype.type(1.0)
    for i in range(length):
        copy_row(
            (rows.ctypes.data + i * rows.shape[1] * item, item),
            (address + i * strides[0], strides[1]),
            width,
            item,
            one,
        )
        for d in range(width, rows.shape[1]):
            rows[i, d] = 0.0


@inlined
def copy_row(to, of, count, item, factor):
    """Write a row of numbers times a factor to another one; of both, the address and the bytes from number to number are given."""
    (target, column), (source, step) = to, of
    done = 0
    if column == item and step == item:
        done = count - count % (WIDTH // item)
        for byte in range(0, done * item, WIDTH):
            multiply_vector(target + byte, source + byte, factor)
    for d in range(done, count):
        put_at(target + d * column, factor * number_at(source + d * step, factor))


@intrinsic  # type: ignore[untyped-decorator]
def _turn(_typing: Any, target: Any, line: Any, source: Any, row: Any, factor: Any) -> Any:
    """Write the transpose of a square of numbers, rows of one vector, times a factor; line and row are the bytes between those.

    In the index of a number, the bits of its row come before those of its column. To interleave the first half of the rows with
    the second rotates these bits by one place. Repeated for each bit of a row, this lets row and column change places.
    """

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        registers = Registers(builder, context.get_value_type(factor), (1, 1))
        places = [
            [
                registers.pointer(
                    builder.gep(builder.inttoptr(address, BYTE.as_pointer()), [builder.mul(step, step.type(i))]), 0
                )
                for i in range(registers.lanes)
            ]
            for address, step in (arguments[:2], arguments[2:4])
        ]
        factors = spread(builder, arguments[4], registers.vector)
        rows = [builder.fmul(registers.load(place), factors) for place in places[1]]
        for _ in range(registers.lanes.bit_length() - 1):
            rows = _interleaved(builder, rows)
        for vector, place in zip(rows, places[0], strict=True):
            builder.store(vector, place, align=registers.item)
        return context.get_dummy_value()

    return types.void(target, line, source, row, factor), generate


def _interleaved(builder: ir.IRBuilder, rows: list[Any]) -> list[Any]:
    """Return each vector of the first half interleaved with its partner in the second: its lower, and its upper numbers."""
    half, index = len(rows) // 2, ir.IntType(32)
    kind = ir.VectorType(index, len(rows))
    lower = [i // 2 + i % 2 * len(rows) for i in range(len(rows))]
    masks = [ir.Constant(kind, [place + more for place in lower]) for more in (0, half)]
    pairs = zip(rows[:half], rows[half:], strict=True)
    return [builder.shuffle_vector(*pair, mask) for pair in pairs for mask in masks]
