"""Library, dtype and device of a new array: as they are named, or those of a given array."""

from collections.abc import Callable
from typing import NamedTuple

from attention_xp._backend.dtypes import dtype_name, floating_dtype, is_floating
from attention_xp._backend.libraries import common_namespace, creation_namespace, device as device_of, is_jax_namespace
from attention_xp._typing import Array, Device, DType, Namespace

__all__ = ["Place", "place_of"]


class Place(NamedTuple):
    """Library, dtype and device of a new array; ``None`` is the library's default."""

    xp: Namespace
    dtype: DType | None
    device: Device | None


def place_of(
    xp: Namespace | None,
    dtype: DType | str | None,
    device: Device | None,
    like: Array | None,
    known: Callable[[Namespace, DType | str | None], DType | None] = floating_dtype,
) -> Place:
    """Return library, dtype and device of a new array; `known` checks the dtype."""
    if like is None:
        xp = creation_namespace(xp)
        return Place(xp, known(xp, dtype), device)
    for name, given in (("xp", xp), ("device", device)):
        if given is not None:
            raise ValueError(f"{name} is that of like where like is given: expected like, or xp and device, got both")
    xp = common_namespace(like=like)
    if dtype is None and not is_floating(xp, like.dtype):
        raise TypeError(f"like must be a floating array where no dtype is given, got {dtype_name(like.dtype)}")
    return Place(xp, known(xp, dtype_name(like.dtype) if dtype is None else dtype), _device(xp, like))


def _device(xp: Namespace, like: Array) -> Device | None:
    """Return the device of an array; ``None`` where JAX has it on several devices, or in a trace."""
    device = device_of(like)
    return device if not is_jax_namespace(xp) or hasattr(device, "platform") else None
