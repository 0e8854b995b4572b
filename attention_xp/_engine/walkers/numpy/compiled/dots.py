"""Products of a few rows and of keys that are read where they lie.

To copy keys into another order pays where many rows meet them. A few rows read them once: each vector of a key is multiplied by
that of each row, and only at the end the numbers of these vectors are summed up, for several rows and keys at once.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from attention_xp._engine.walkers.numpy.compiled.compiling import inlined
from attention_xp._engine.walkers.numpy.compiled.memory import fetch_row
from attention_xp._engine.walkers.numpy.compiled.registers import BYTE, WIDTH, Registers, item_of, repeated

__all__ = ["FEW_KEYS", "multiply_keys"]

FEW_KEYS = 4  # that are met at once; their products with several rows fill a vector
_DISTANCE = 16  # keys that are fetched ahead: the processor's own fetching ends with a page
_LONG, _INDEX = ir.IntType(64), ir.IntType(32)


@inlined
def multiply_keys(addresses, strides, sizes, item, one, ahead):
    """Write ``x @ y.T`` to out: `sizes` are rows of x, rows of y, which are keys, and the bytes of each, whole vectors.

    out, x and y are addresses, and `strides` the bytes from row to row of each. Rows of out have room for a multiple of
    `FEW_KEYS`. Numbers have so many bytes; `one` is of the dtype. Of what is read next, as many rows with an address, the bytes
    from row to row, and those of each, are fetched meanwhile: memory has time for them.
    """
    (out, x, y), (rows, keys, width) = addresses, sizes
    several = WIDTH // item // FEW_KEYS
    for j in range(0, keys, FEW_KEYS):
        to, of, most, i = out + j * item, y + j * strides[2], keys - 1 - j, 0
        for row in range(FEW_KEYS):
            fetch_row(of + (_DISTANCE + row) * strides[2], width)
            fetch_row(ahead[0] + (j + row) * ahead[1], ahead[2])
        while i + several <= rows:
            _write_dots(to + i * strides[0], x + i * strides[1], of, strides, width // WIDTH, most, 0, one)
            i += several
        while i < rows:
            _write_dots(to + i * strides[0], x + i * strides[1], of, strides, width // WIDTH, most, 1, one)
            i += 1


@intrinsic  # type: ignore[untyped-decorator]
def _write_dots(
    _typing: Any, out: Any, x: Any, y: Any, strides: Any, count: Any, most: Any, rows: Any, one: Any
) -> Any:
    """Write the products of `FEW_KEYS` keys and so many rows, or, for 0, as many as fill a vector.

    Behind key number `most`, that key is read again.
    """
    if not isinstance(rows, types.IntegerLiteral):  # numba then asks again, with the number as it is written
        return None
    signature = types.void(out, x, y, strides, count, most, rows, one)

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        addresses, (strides, count, most) = arguments[:3], arguments[3:6]
        pointers = [builder.inttoptr(address, BYTE.as_pointer()) for address in addresses]
        steps = [builder.extract_value(strides, i) for i in range(3)]
        number = context.get_value_type(one)
        lanes = WIDTH // item_of(number)
        _Dots(builder, number, (rows.literal_value or lanes // FEW_KEYS, FEW_KEYS)).write(pointers, steps, count, most)
        return context.get_dummy_value()

    return signature, generate


class _Dots(Registers):
    """The instructions for the products of some rows and some keys; each product is a vector of sums until the end."""

    def write(self, pointers: list[Any], steps: list[Any], count: Any, most: Any) -> None:
        """Write the loop along rows and keys, what sums up its vectors, and what stores a number for each."""
        builder, (out, x, y), (out_row, x_row, y_row) = self.builder, pointers, steps
        xs = [builder.gep(x, [builder.mul(x_row, _LONG(i))]) for i in self.rows]
        ys = [builder.gep(y, [builder.mul(y_row, self._at_most(j, most))]) for j in range(FEW_KEYS)]

        def body(offset: Any, *sums: Any) -> list[Any]:
            rows, keys = ([self.load(self.pointer(builder.gep(a, [offset]), 0)) for a in some] for some in (xs, ys))
            products = [builder.fmul(row, key, flags=("contract",)) for row in rows for key in keys]
            added = [builder.fadd(*pair, flags=("contract",)) for pair in zip(sums, products, strict=True)]
            return [builder.add(offset, _LONG(WIDTH)), *added]

        zeros = [ir.Constant(self.vector, [0.0] * self.lanes)] * (len(xs) * FEW_KEYS)
        _, *sums = repeated(builder, count, [_LONG(0), *zeros], body)
        totals = self._totals(sums)
        for i in self.rows:
            of_row = self._picked(totals, totals, range(i * FEW_KEYS, (i + 1) * FEW_KEYS))
            line = builder.gep(out, [builder.mul(out_row, _LONG(i))])
            builder.store(of_row, builder.bitcast(line, of_row.type.as_pointer()), align=self.item)

    def _at_most(self, number: int, most: Any) -> Any:
        return self.builder.select(self.builder.icmp_signed("<", _LONG(number), most), _LONG(number), most)

    def _totals(self, vectors: list[Any]) -> Any:
        """Return one vector of the totals of some, no more than a vector has numbers."""
        while vectors[0].type.count > len(vectors):
            half = vectors[0].type.count // 2
            halves = [[self._picked(v, v, range(first, first + half)) for first in (0, half)] for v in vectors]
            vectors = [self.builder.fadd(*pair) for pair in halves]
        while len(vectors) > 1:  # neighbours are summed up in two vectors, whose sums are one vector
            width = vectors[0].type.count
            pairs = [
                [self._picked(*pair, range(first, 2 * width, 2)) for first in (0, 1)]
                for pair in zip(vectors[::2], vectors[1::2], strict=True)
            ]
            vectors = [self.builder.fadd(*pair) for pair in pairs]
        return vectors[0]

    def _picked(self, one: Any, other: Any, places: range) -> Any:
        """Return the numbers at some places of two vectors."""
        kind = ir.VectorType(_INDEX, len(places))
        return self.builder.shuffle_vector(one, other, ir.Constant(kind, list(places)))
