"""Memory that a thread keeps from call to call: fresh pages would cost more than what is computed in them."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from attention_xp._typing import Array, DType

__all__ = ["Scratch", "borrowed"]

_MOST = 2**24  # bytes that are kept
_LINE = 64  # bytes of a cache line

_kept = threading.local()
# glibc returns freed memory to the system beyond a limit that follows the largest block that was ever mapped and
# freed, up to 32 MiB. A first such block, which is never touched, spares every later call the pages of its results:
# they were a fifth of the time of a backward pass. Elsewhere it does nothing.
np.empty(2**25 - 2**16, np.uint8)


class Scratch:
    """A block of memory that arrays are cut from, one after the other."""

    def __init__(self, block: Array, dtype: DType) -> None:
        self._block, self._dtype = block, np.dtype(dtype)
        self._start = -block.ctypes.data % _LINE

    @staticmethod
    def size(*lengths: int, dtype: DType) -> int:
        """Return the bytes that arrays of so many numbers take, each at the beginning of a line."""
        return _LINE + sum(_lines(length * np.dtype(dtype).itemsize) for length in lengths)

    def empty(self, *shape: int) -> Array:
        """Return an array that nothing was written to."""
        size = math.prod(shape) * self._dtype.itemsize
        array = self._block[self._start : self._start + size].view(self._dtype).reshape(shape)
        self._start += _lines(size)
        return array


def _lines(size: int) -> int:
    return -(-size // _LINE) * _LINE


@contextmanager
def borrowed(size: int, dtype: DType) -> Iterator[Scratch]:
    """Lend so many bytes of this thread; a call inside a call gets its own."""
    block = vars(_kept).pop("block", None)
    if block is None or block.nbytes < size:
        block = np.empty(size, np.uint8)
    try:
        yield Scratch(block, dtype)
    finally:
        if block.nbytes <= _MOST:
            _kept.block = block
