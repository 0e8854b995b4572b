"""Whether all ranks make the same call, before anything is sent whose size depends on it."""

import hashlib
import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from attention_xp._backend.dtypes import dtype_name
from attention_xp._backend.libraries import is_array
from attention_xp._scores.frozen import freeze
from attention_xp._scores.rule import Rule
from attention_xp._typing import Array
from attention_xp.distributed._torch.messages import Channel, Ranks
from attention_xp.masks import Mask
from attention_xp.masks._mask import holds_array

__all__ = ["agree"]

_LOOKED_INTO = 2**24  # bytes of an array that may decide what is sent: lengths, ids, positions, and flags in rules


def agree(axes: tuple[Ranks, ...], call: Mapping[str, Any], device: Any) -> None:
    """Raise a ValueError on every rank unless all ranks, which lie along one axis or two, describe a call alike.

    Ranks compare in every call, also one of a kind that they know: a rank that does not know it yet waits for all others.
    """
    text = json.dumps({name: _described(given) for name, given in call.items()}, sort_keys=True).encode()
    digest = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)
    channels = [ranks.channel("comparing the calls of all ranks") for ranks in axes]
    ranks = axes[-1]
    numbers = _of_all(torch.tensor([digest, len(text), ranks.name], device=device), channels)
    if [name for *_, name in numbers] != list(range(ranks.of)):
        raise ValueError(
            f"group must be a pair (ring, heads) of groups that cross: expected those of a mesh of {axes[0].n} x {ranks.n} ranks"
        )
    if all(number[:2] == numbers[0][:2] for number in numbers):
        return
    longest = max(size for _, size, _ in numbers)
    padded = torch.tensor(list(text.ljust(longest)), dtype=torch.uint8, device=device)
    calls = [json.loads(bytes(one)) for one in _of_all(padded, channels, turn=1)]
    raise ValueError(f"{ranks.place}: ranks differ in {_differences(calls)}")


def _of_all(own: Array, channels: list[Channel], turn: int = 0) -> list[list[int]]:
    """Return the numbers of all ranks: along the last axis first, and along the other what all have heard there."""
    found = own[None]
    for channel in reversed(channels):
        found = channel.exchanged([found] * channel.ranks.n, turn).flatten(0, 1)
    return found.tolist()  # type: ignore[no-any-return]


def _differences(calls: list[dict[str, str]]) -> str:
    """Return what differs, and on which ranks."""
    found = []
    for name in dict.fromkeys(name for call in calls for name in call):
        ranks: dict[str, list[int]] = {}
        for rank, call in enumerate(calls):
            ranks.setdefault(call.get(name, "not given"), []).append(rank)
        if len(ranks) > 1:
            which = (f"{given} on rank {', '.join(map(str, those))}" for given, those in ranks.items())
            found.append(f"{name} ({'; '.join(which)})")
    return ", ".join(found)


def _described(given: Any) -> str:
    if is_array(given):
        return _of_array(given, ("int",))
    if isinstance(given, Rule):
        # An array of pairs holds the rows of a rank.
        kinds = ("int",) if isinstance(given, Mask) and holds_array(given) else ("int", "bool")
        return f"{given!r} {' '.join(_of_array(array, kinds) for array in freeze(given)[1])}".rstrip()
    if isinstance(given, tuple):
        return f"({', '.join(map(_described, given))})"
    if callable(given):
        return f"{getattr(given, '__module__', '')}.{getattr(given, '__qualname__', type(given).__name__)}"
    return repr(given) if given is None or isinstance(given, bool | int | float | str) else type(given).__name__


def _of_array(array: Array, looked_into: tuple[str, ...]) -> str:
    """Return dtype and shape of an array, and a sum of its content if it is of certain kinds."""
    name = f"{dtype_name(array.dtype)}{list(array.shape)}"
    is_tensor = isinstance(array, torch.Tensor)
    if is_tensor and array.requires_grad and torch.is_grad_enabled():
        name += " with gradients"
    if not any(kind in name for kind in looked_into) or array.nbytes > _LOOKED_INTO:
        return name
    content = np.ascontiguousarray(array.detach().cpu().numpy() if is_tensor else array)
    return f"{name} #{zlib.crc32(content.tobytes()):08x}"
