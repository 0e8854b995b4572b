"""Numbers at addresses: code for LLVM that reads and writes them, alone or in vectors, without a view being made first."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from attention_xp._engine.walkers.numpy.compiled.compiling import inlined
from attention_xp._engine.walkers.numpy.compiled.powers import spread
from attention_xp._engine.walkers.numpy.compiled.registers import BYTE, Registers

__all__ = ["clear_vector", "fetch_row", "multiply_vector", "number_at", "put_at"]

_CACHE_LINE = 64  # bytes


@inlined
def fetch_row(address: Any, width: Any) -> None:
    """Tell the processor that so many bytes from an address on are read soon; nothing happens where there are none."""
    for byte in range(0, width, _CACHE_LINE):
        _fetch(address + byte)


@intrinsic  # type: ignore[untyped-decorator]
def _fetch(_typing: Any, address: Any) -> Any:
    """Tell it of the cache line at an address."""

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        pointer, number = BYTE.as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch")
        builder.call(function, [builder.inttoptr(arguments[0], pointer), number(0), number(2), number(1)])
        return context.get_dummy_value()

    return types.void(address), generate


@intrinsic  # type: ignore[untyped-decorator]
def multiply_vector(_typing: Any, target: Any, source: Any, factor: Any) -> Any:
    """Write a vector in memory times a number to an address, which may be its own."""

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        registers = Registers(builder, context.get_value_type(factor), (1, 1))
        to, of = (registers.pointer(builder.inttoptr(address, BYTE.as_pointer()), 0) for address in arguments[:2])
        product = builder.fmul(registers.load(of), spread(builder, arguments[2], registers.vector))
        builder.store(product, to, align=registers.item)
        return context.get_dummy_value()

    return types.void(target, source, factor), generate


@intrinsic  # type: ignore[untyped-decorator]
def clear_vector(_typing: Any, address: Any, one: Any) -> Any:
    """Write a vector of zeros to memory. `one` is of their dtype."""

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        registers = Registers(builder, context.get_value_type(one), (1, 1))
        at = registers.pointer(builder.inttoptr(arguments[0], BYTE.as_pointer()), 0)
        builder.store(ir.Constant(registers.vector, [0.0] * registers.lanes), at, align=registers.item)
        return context.get_dummy_value()

    return types.void(address, one), generate


@intrinsic  # type: ignore[untyped-decorator]
def number_at(_typing: Any, address: Any, one: Any) -> Any:
    """Return the number at an address. `one` is of its dtype."""

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        kind = context.get_value_type(one)
        return builder.load(builder.inttoptr(arguments[0], kind.as_pointer()))

    return one(address, one), generate


@intrinsic  # type: ignore[untyped-decorator]
def put_at(_typing: Any, address: Any, number: Any) -> Any:
    """Write a number to an address."""

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        address, number = arguments
        builder.store(number, builder.inttoptr(address, number.type.as_pointer()))
        return context.get_dummy_value()

    return types.void(address, number), generate
