"""What is done to one line of scores, `KEYS` of a row of the query, as code for LLVM. Lines are given by their addresses."""

from collections.abc import Callable, Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from attention_xp._engine.walkers.numpy.compiled.powers import Lanes, spread, two_to
from attention_xp._engine.walkers.numpy.compiled.registers import BYTE, WIDTH, Registers, item_of, repeated
from attention_xp._engine.walkers.numpy.compiled.tangents import tanh_of

__all__ = [
    "KEYS",
    "add_line",
    "bend_line",
    "bound_line",
    "is_above",
    "keep_line",
    "largest_of_line",
    "raise_line",
    "verdict",
    "weigh_line",
]

KEYS = 64  # scores of a line
_INDEX, _EIGHT = ir.IntType(32), ir.IntType(64)  # a number of eight flags
_ONES = 0x0101010101010101  # eight flags that are 1


@intrinsic  # type: ignore[untyped-decorator]
def is_above(_typing: Any, line: Any, limit: Any) -> Any:
    """Whether a score of a line is larger than a limit, which takes less than to find the largest one."""

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        registers = _line(context, builder, limit)
        largest = _largest(registers, arguments[0])
        holds = builder.fcmp_ordered(">", largest.value, spread(builder, arguments[1], registers.vector))
        flags = ir.IntType(registers.lanes)
        return builder.icmp_unsigned("!=", builder.bitcast(holds, flags), flags(0))

    return types.boolean(line, limit), generate


@intrinsic  # type: ignore[untyped-decorator]
def largest_of_line(_typing: Any, line: Any, one: Any) -> Any:
    """Return the largest score of a line; NaN does not count, because its power is NaN whatever is subtracted.

    `one` is of the dtype.
    """

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        largest = _largest(_line(context, builder, one), arguments[0])
        return _folded(builder, largest.value, lambda *pair: _larger(*(Lanes(builder, half) for half in pair)).value)

    return one(line, one), generate


@intrinsic  # type: ignore[untyped-decorator]
def raise_line(_typing: Any, line: Any, shift: Any, sums: Any, limit: Any) -> Any:
    """Replace a line of scores by powers of ``scores - shift``, and add these to the sums of a row, one vector of them.

    The powers are those of `two_to`, and no score is far above the shift.
    """
    if not isinstance(limit, types.IntegerLiteral):  # numba then asks again, with the number as it is written
        return None

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        registers = _line(context, builder, shift)
        target = registers.pointer(builder.inttoptr(arguments[2], BYTE.as_pointer()), 0)
        total = Lanes(builder, registers.load(target))
        for at, score in _shifted(registers, *arguments[:2]):
            raised = two_to(score, limit.literal_value)
            builder.store(raised.value, at, align=registers.item)
            total = total + raised
        builder.store(total.value, target, align=registers.item)
        return context.get_dummy_value()

    return types.void(line, shift, sums, limit), generate


@intrinsic  # type: ignore[untyped-decorator]
def weigh_line(_typing: Any, line: Any, shift: Any, limit: Any) -> Any:
    """Replace a line of scores by powers of ``scores - shift``, those of `two_to`; any score may be above the shift."""
    if not isinstance(limit, types.IntegerLiteral):
        return None

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        registers = _line(context, builder, shift)
        for at, score in _shifted(registers, *arguments[:2]):
            raised = two_to(_bounded(score), limit.literal_value)
            builder.store(raised.value, at, align=registers.item)
        return context.get_dummy_value()

    return types.void(line, shift, limit), generate


@intrinsic  # type: ignore[untyped-decorator]
def bound_line(_typing: Any, line: Any, one: Any) -> Any:
    """Lower those scores of a line whose powers are infinity to where they are just that. `one` is of the dtype."""

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        registers = _line(context, builder, one)
        address = builder.inttoptr(arguments[0], BYTE.as_pointer())
        for vector in registers.vectors:
            at = registers.pointer(address, vector)
            builder.store(_bounded(Lanes(builder, registers.load(at))).value, at, align=registers.item)
        return context.get_dummy_value()

    return types.void(line, one), generate


@intrinsic  # type: ignore[untyped-decorator]
def bend_line(_typing: Any, line: Any, cap: Any) -> Any:
    """Replace a line of scores by their hyperbolic tangents times a cap."""

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        registers = _line(context, builder, cap)
        address = builder.inttoptr(arguments[0], BYTE.as_pointer())
        caps = Lanes(builder, spread(builder, arguments[1], registers.vector))
        for vector in registers.vectors:
            at = registers.pointer(address, vector)
            bent = caps * tanh_of(Lanes(builder, registers.load(at)))
            builder.store(bent.value, at, align=registers.item)
        return context.get_dummy_value()

    return types.void(line, cap), generate


@intrinsic  # type: ignore[untyped-decorator]
def add_line(_typing: Any, line: Any, address: Any, factor: Any, least: Any) -> Any:
    """Add the numbers at an address, each `least` at least or NaN, times a factor to a line of scores."""

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        registers = _line(context, builder, factor)
        to, of = (builder.inttoptr(arguments[i], BYTE.as_pointer()) for i in (0, 1))
        factors, lowest = (Lanes(builder, spread(builder, arguments[i], registers.vector)) for i in (2, 3))
        for vector in registers.vectors:
            scores, more = (Lanes(builder, registers.load(registers.pointer(start, vector))) for start in (to, of))
            total = scores + factors * more.chosen("<", lowest, lowest, more)
            builder.store(total.value, registers.pointer(to, vector), align=registers.item)
        return context.get_dummy_value()

    return types.void(line, address, factor, least), generate


@intrinsic  # type: ignore[untyped-decorator]
def keep_line(_typing: Any, line: Any, flags: Any, other: Any) -> Any:
    """Replace the scores of a line by another number where flags, `KEYS` bytes, are 0."""

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        registers = _line(context, builder, other)
        to, of = (builder.inttoptr(arguments[i], BYTE.as_pointer()) for i in (0, 1))
        others = spread(builder, arguments[2], registers.vector)
        some = ir.VectorType(BYTE, registers.lanes)
        for vector in registers.vectors:
            at = builder.gep(of, [_INDEX(vector * registers.lanes)])
            flag = builder.load(builder.bitcast(at, some.as_pointer()), align=1)
            is_kept = builder.icmp_unsigned("!=", flag, ir.Constant(some, [0] * registers.lanes))
            target = registers.pointer(to, vector)
            builder.store(builder.select(is_kept, registers.load(target), others), target, align=registers.item)
        return context.get_dummy_value()

    return types.void(line, flags, other), generate


@intrinsic  # type: ignore[untyped-decorator]
def verdict(_typing: Any, flags: Any, step: Any, rows: Any) -> Any:
    """Return between which keys some flags of some lines are 1, and whether all are: `KEYS` bytes of each, which are 0 or 1.

    Keys are counted in eighths of a line; where no flag is 1, they end before they begin.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        first, step, rows = arguments
        kind = ir.VectorType(_EIGHT, KEYS // 8)
        nothing, everything = (ir.Constant(kind, [number] * (KEYS // 8)) for number in (0, _ONES))

        def body(flags: Any, some: Any, every: Any) -> list[Any]:
            here = builder.load(builder.inttoptr(flags, kind.as_pointer()), align=1)
            return [builder.add(flags, step), builder.or_(some, here), builder.and_(every, here)]

        _, some, every = repeated(builder, rows, [first, nothing, everything], body)
        eighths = builder.bitcast(builder.icmp_unsigned("!=", some, nothing), BYTE)
        before, behind = (count(eighths, ir.IntType(1)(0)) for count in (builder.cttz, builder.ctlz))
        is_full = builder.icmp_unsigned("==", _folded(builder, every, builder.and_), _EIGHT(_ONES))
        answers = [builder.zext(before, _EIGHT), builder.sub(_EIGHT(8), builder.zext(behind, _EIGHT))]
        return context.make_tuple(builder, signature.return_type, [*answers, builder.zext(is_full, _EIGHT)])

    return types.UniTuple(types.int64, 3)(flags, step, rows), generate


def _line(context: Any, builder: ir.IRBuilder, one: Any) -> Registers:
    """Return the vectors of a line."""
    number = context.get_value_type(one)
    return Registers(builder, number, (1, KEYS * item_of(number) // WIDTH))


def _largest(registers: Registers, line: Any) -> Lanes:
    """Return the largest scores of a line, one for each place of a vector; NaN does not count."""
    builder = registers.builder
    address = builder.inttoptr(line, BYTE.as_pointer())
    largest = Lanes(builder, ir.Constant(registers.vector, [float("-inf")] * registers.lanes))
    for vector in registers.vectors:
        largest = _larger(Lanes(builder, registers.load(registers.pointer(address, vector))), largest)
    return largest


def _shifted(registers: Registers, line: Any, shift: Any) -> Iterator[tuple[Any, Lanes]]:
    """Yield where each vector of a line of scores is, and these scores less the shift."""
    builder = registers.builder
    address, shifts = builder.inttoptr(line, BYTE.as_pointer()), spread(builder, shift, registers.vector)
    for vector in registers.vectors:
        at = registers.pointer(address, vector)
        yield at, Lanes(builder, registers.load(at)) - Lanes(builder, shifts)


def _bounded(scores: Lanes) -> Lanes:
    """Return scores, or the least number whose power of two is infinity where they are larger."""
    most = scores.like(float(scores.layout.bias + 1))
    return scores.chosen(">", most, most, scores)


def _larger(one: Lanes, other: Lanes) -> Lanes:
    return one.chosen(">", other, one, other)


def _folded(builder: ir.IRBuilder, vector: Any, join: Callable[[Any, Any], Any]) -> Any:
    """Return one number from a vector, by joining its halves, the halves of what comes out, and so on."""
    count = vector.type.count
    while count > 1:
        count //= 2
        nothing = ir.Constant(vector.type, ir.Undefined)
        places = (ir.Constant(ir.VectorType(_INDEX, count), list(range(first, first + count))) for first in (0, count))
        vector = join(*(builder.shuffle_vector(vector, nothing, half) for half in places))
    return builder.extract_element(vector, _INDEX(0))
