"""Tensors in 16 bits on the CPU, widened as a whole and rounded as a whole."""

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from attention_xp._backend.dtypes import dtype_name
from attention_xp._typing import Array, DType

__all__ = ["rounded", "widened"]

_MANY = 2**18  # numbers from which threads pay


def widened(arrays: Sequence[Array]) -> list[Array]:
    """Return tensors in float32; along axes that repeat the same numbers, these are not repeated in memory.

    NumPy asks for that memory in large pages, which halves the time where there is much of it.
    """
    import numpy as np  # noqa: PLC0415

    from_numpy = sys.modules["torch"].from_numpy
    distinct = [a[tuple(slice(0, 1) if step == 0 else slice(None) for step in a.stride())] for a in arrays]
    wide = [from_numpy(np.empty(tuple(a.shape), np.float32)) for a in distinct]
    _copy(distinct, wide)
    return [new.expand(array.shape) for new, array in zip(wide, arrays, strict=True)]


def rounded(array: Array, dtype: DType) -> Array:
    """Return a tensor of float32 in a dtype of 16 bits."""
    narrow = sys.modules["torch"].empty(array.shape, dtype=dtype)
    _copy([array], [narrow])
    return narrow


def _copy(sources: Sequence[Array], targets: Sequence[Array]) -> None:
    """Write the numbers of tensors to others, on threads of our own where loops are compiled."""
    from attention_xp._engine.walkers.numpy.pool import run_jobs  # noqa: PLC0415  # imports NumPy

    threads, works = sys.modules["torch"].get_num_threads(), []
    for source, target in zip(sources, targets, strict=True):
        convert = _loop(source, target)
        if convert is None:
            target.copy_(source)
        else:
            works.append((convert, _bits(source), _bits(target)))

    def do(job: int) -> None:
        for convert, source, target in works:
            size = -(-len(source) // threads)
            part = slice(job * size, (job + 1) * size)
            convert(source[part], target[part])

    run_jobs(threads if works else 0, lambda: nullcontext(do), threads)


def _loop(source: Array, target: Array) -> Callable[[Any, Any], None] | None:
    """Return a compiled loop that converts the bits of one tensor to those of another; ``None`` where torch converts."""
    from attention_xp._engine.walkers.numpy.compiled.found import loops  # noqa: PLC0415  # imports NumPy

    if source.numel() < _MANY or not source.is_contiguous() or loops() is None:
        return None
    from attention_xp._engine.walkers.numpy.compiled import narrow  # noqa: PLC0415  # imports numba

    kinds = dtype_name(source.dtype), dtype_name(target.dtype)
    return narrow.LOOPS.get(kinds)


def _bits(array: Array) -> Array:
    """Return the numbers of a tensor as bits, in one row, without a copy."""
    torch = sys.modules["torch"]
    signed, unsigned = ("int16", "uint16") if array.element_size() == 2 else ("int32", "uint32")
    return array.view(getattr(torch, signed)).view(-1).numpy().view(unsigned)
