"""Memory that begins with a cache line: what a thread keeps from call to call, and new memory for results.

Mapping new pages for each call would take longer than computing in them.
"""

import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from attention_xp._typing import Array, DType

__all__ = ["aligned", "lent", "nothing_kept"]

_MOST = 2**24  # bytes that are kept
_keeps = [True]
_LINE = 64  # bytes of a cache line

_kept = threading.local()
# glibc returns freed memory to the system beyond a limit that follows the largest block that was ever mapped and
# freed, up to 32 MiB. A first such block, which is never touched, spares every later call the pages of its results:
# they were a fifth of the time of a backward pass. Elsewhere it does nothing.
np.empty(2**25 - 2**16, np.uint8)


def _lines(size: int) -> int:
    return -(-size // _LINE) * _LINE


@contextmanager
def lent(lengths: Sequence[int], dtype: DType) -> Iterator[list[Array]]:
    """Lend this thread's memory as arrays of these lengths, aligned to cache lines; nested calls get memory of their own."""
    sizes = [length * np.dtype(dtype).itemsize for length in lengths]
    starts = list(itertools.accumulate(map(_lines, sizes), initial=0))
    block = vars(_kept).pop("block", None)
    if block is None or block.nbytes < starts[-1] + _LINE:
        block = np.empty(starts[-1] + _LINE, np.uint8)
    memory = _from_a_line(block)
    try:
        yield [memory[start : start + size].view(dtype) for start, size in zip(starts[:-1], sizes, strict=True)]
    finally:
        if block.nbytes <= _MOST and _keeps[-1]:
            _kept.block = block


def aligned(shape: tuple[int, ...], dtype: DType) -> Array:
    """Return new memory for an array, whose first number begins a cache line."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return _from_a_line(np.empty(size + _LINE, np.uint8))[:size].view(dtype).reshape(shape)


def _from_a_line(block: Array) -> Array:
    """Return the bytes of a block from the first one that begins a cache line on."""
    return block[-block.ctypes.data % _LINE :]


@contextmanager
def nothing_kept() -> Iterator[None]:
    """Let threads keep no memory meanwhile, so that who measures a call sees all the memory that it needs."""
    _keeps.append(False)
    try:
        yield
    finally:
        _keeps.pop()
