"""The dtype in which torch's autocast computes attention."""

from typing import Any

import torch
from torch.nn.attention.bias import CausalBias

__all__ = ["as_autocast"]


def as_autocast(*given: Any) -> tuple[Any, ...]:
    """Return tensors in the dtype that torch's autocast gives its own functions, whose list is not ours to join.

    It converts floating numbers but for those of 64 bits; what is no tensor stays as it is.
    """
    kind = given[0].device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return given
    dtype = torch.get_autocast_dtype(kind)
    return tuple(a.to(dtype) if _is_narrowed(a) else a for a in given)


def _is_narrowed(a: Any) -> bool:
    if not isinstance(a, torch.Tensor) or isinstance(a, CausalBias):
        return False
    return bool(a.is_floating_point()) and a.dtype != torch.float64
