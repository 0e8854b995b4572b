"""The memory that a call needs at its peak, beyond its arguments."""

import ctypes
import sys
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

from attention_xp._command.places import Side
from attention_xp._command.resident import rise
from attention_xp._engine.walkers.numpy.scratch import nothing_kept

__all__ = ["extra_bytes"]


def extra_bytes(side: Side) -> int | None:
    """Return the bytes that a call needs beyond its arguments, result included; ``None`` where nobody counts them.

    NumPy tells Python of its memory, also where a program of JAX calls it; JAX plans that of a program, and torch counts that of
    a GPU. Of torch's memory on the host, Linux alone can tell, in pages, by how much that of the whole process rises.
    """
    if side.place.backend == "numpy":
        return _whole(_traced, side)
    if side.place.backend == "jax":
        return _whole(partial(_planned, side.function), side)
    if side.place.backend == "torch":
        return _whole(_resident, side) if side.place.device.type == "cpu" else _on_gpu(side)
    return None


def _whole(count: Callable[[Side], int | None], side: Side) -> int | None:
    """Count with the memory that threads otherwise keep from one call to the next."""
    with nothing_kept():
        side()
        return count(side)


def _traced(call: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        _kept = call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _planned(program: Any, call: Callable[[], Any]) -> int | None:
    plan = program.memory_analysis()
    if plan is None:
        return None
    return int(plan.temp_size_in_bytes + plan.output_size_in_bytes) + _traced(call)


def _on_gpu(side: Side) -> int:
    cuda = sys.modules["torch"].cuda
    cuda.reset_peak_memory_stats(side.place.device)
    before = cuda.memory_allocated(side.place.device)
    _kept = side()
    return int(cuda.max_memory_allocated(side.place.device) - before)


def _resident(call: Callable[[], Any]) -> int | None:
    if sys.platform != "linux":
        return None
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not be taken again unseen
        return rise(call)
    except (AttributeError, OSError):
        return None
