"""Gradients and tangents that torch passes in batches, as under ``is_grads_batched=True``."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from attention_xp._backend.modes import is_traced
from attention_xp._typing import Array

__all__ = ["mapped_over_batches"]


def mapped_over_batches(function: Callable[..., Sequence[Array | None]], *given: Array | None) -> list[Array | None]:
    """Return a function of gradients, each of which may be one of autograd's batched tensors.

    Autograd's own batching supports few operations. Here the batches are unwrapped, and mapped by ``torch.func.vmap``,
    which supports all.
    """
    level = _level()
    if level == 0:
        return list(function(*given))
    torch: Any = sys.modules["torch"]
    found: list[Array | None] = []

    def arrays(*some: Array | None) -> tuple[Array, ...]:
        found[:] = function(*some)
        return tuple(array for array in found if array is not None)

    # A new first axis, which has length 1 where there is no batch.
    batches = [None if a is None else torch._remove_batch_dim(a, level, 1, 0) for a in given]
    size = max(len(batch) for batch in batches if batch is not None)
    batches = [None if batch is None else batch.expand(size, *batch.shape[1:]) for batch in batches]
    mapped = iter(torch.func.vmap(arrays, tuple(None if batch is None else 0 for batch in batches))(*batches))
    return [None if array is None else torch._add_batch_dim(next(mapped), 0, level) for array in found]


def _level() -> int:
    """Return how deep autograd's batches are nested, which can only be found by entering one more level."""
    if is_traced():
        return 0
    torch = sys.modules["torch"]
    deeper: int = torch._C._vmapmode_increment_nesting()
    torch._C._vmapmode_decrement_nesting()
    return deeper - 1
