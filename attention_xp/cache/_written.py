"""Rows written into the buffers of a cache.

A slot of a buffer is written once and never again, so that an older cache keeps showing what it showed: where all slots that
an append needs are still untouched, it writes in place; where one is not, as after the same cache was appended to twice, it
copies the buffer first. Only buffers in host memory are written in place, outside of traces, and only those that were made
here.
"""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import ReferenceType, ref

from attention_xp._backend.libraries import is_tensor
from attention_xp._backend.modes import in_forward_mode
from attention_xp._backend.rows import with_rows
from attention_xp._backend.values import host_view
from attention_xp._typing import Array, Namespace

__all__ = ["Block", "Rows", "claimed", "claimed_by_all", "in_host_memory", "untouched_first", "write", "write_blocks"]


class Rows(NamedTuple):
    """Rows of keys and values, and their places: ``[unit, :, slot]`` of a buffer (N, H, P, D)."""

    units: Array  # (m,)
    slots: Array  # (m,), of a unit in rising order
    keep: Array  # (m,) whether a row is written
    key: Array  # (m, H, D)
    value: Array  # (m, H, Dv)


Block = tuple[int, int, int]
"""The first rows of one item, which are to lie one behind the other: unit, start and rows, ``[unit, :, start : start + rows]``."""


class _Known(NamedTuple):
    key: "ReferenceType[Any]"
    value: "ReferenceType[Any]"
    used: Any  # slots of each unit that were written, counted from the first: a NumPy array (N,)


_KNOWN: dict[int, _Known] = {}
_LOCK = threading.RLock()  # also taken when an array is collected, which may be at any time


def write(
    xp: Namespace, key: Array, value: Array, rows: Rows, shown: Callable[[], Array], *, known: bool
) -> tuple[Array, Array]:
    """Return the buffers with rows in them: the same ones, if no cache can tell, or copies.

    `shown` says how many slots of each unit the cache shows; `known` whether all places are in host memory.
    """
    arrays = [key, value, rows.key, rows.value]
    if not known or not in_host_memory(*arrays):
        written = [with_rows(xp, a, *rows[:3], new) for a, new in ((key, rows.key), (value, rows.value))]
        return written[0], written[1]
    units, slots, keep, *new = map(_view, rows)
    units, slots = units[keep], slots[keep]
    key, value = _writable(xp, key, value, shown, units, slots, slots + 1)
    for buffer, added in zip((key, value), new, strict=True):
        _view(buffer)[units, :, slots] = added[keep]
    return key, value


def write_blocks(
    xp: Namespace, key: Array, value: Array, blocks: list[Block], new: tuple[Array, Array], shown: Callable[[], Array]
) -> tuple[Array, Array]:
    """Do the same with one block of each item, in host memory; `new` are keys and values (B, H, n, D) and (B, H, n, Dv)."""
    units, starts, ends = [], [], []
    for unit, start, count in blocks:
        if count:
            units.append(unit)
            starts.append(start)
            ends.append(start + count)
    key, value = _writable(xp, key, value, shown, units, starts, ends)
    B = len(key)
    # Whether all units get their rows at the same place: then they are one block.
    is_one = B > 0 and units == list(range(B)) and starts.count(starts[0]) == ends.count(ends[0]) == B
    for array, added in zip((key, value), new, strict=True):
        buffer, rows = _view(array), _view(added)
        if is_one:
            _, start, count = blocks[0]
            buffer[:, :, start : start + count] = rows[:, :, :count]
            continue
        for b, (unit, start, count) in enumerate(blocks):
            if count:
                buffer[unit, :, start : start + count] = rows[b, :, :count]
    return key, value


def _writable(
    xp: Namespace, key: Array, value: Array, shown: Callable[[], Array], units: Any, starts: Any, ends: Any
) -> tuple[Array, Array]:
    """Return the buffers, or copies where slots of units, from some bounds to others, were written before."""
    if claimed(key, value, units, starts, ends):
        return key, value
    key, value = (xp.asarray(a, copy=True) for a in (key, value))
    _remember(key, value, _view(shown()), units, ends)
    return key, value


def _view(array: Array) -> Any:
    """Return an array in host memory as one of NumPy."""
    return host_view(array)


def in_host_memory(*arrays: Array) -> bool:
    """Whether NumPy can write into arrays, and nobody records what is done with them."""
    for a in arrays:
        if type(a).__module__ == "numpy":
            continue
        if is_tensor(a) and (a.requires_grad or in_forward_mode()):
            return False
        if host_view(a) is None:
            return False
    return True


def untouched_first(key: Array, value: Array) -> Any:
    """Return for each unit whether a slot of it was written, as a NumPy array; ``None`` where it is not known."""
    with _LOCK:
        found = _found(key, value)
        return None if found is None else found.used > 0


def _found(key: Array, value: Array) -> _Known | None:
    known = _KNOWN.get(id(key))
    return known if known is not None and known.key() is key and known.value() is value else None


def claimed_by_all(key: Array, value: Array, slot: int) -> bool:
    """Mark the same slot of all units as written; False, and nothing is marked, where it is for one already, or it is not known."""
    with _LOCK:
        found = _found(key, value)
        if found is None or max(found.used.tolist()) > slot:
            return False
        found.used.fill(slot + 1)
        return True


def claimed(key: Array, value: Array, units: Any, starts: Any, ends: Any) -> bool:
    """Mark slots as written; False, and nothing is marked, where one is already, or it is not known."""
    with _LOCK:
        found = _found(key, value)
        if found is None:
            return False
        used = found.used
        if isinstance(units, list):  # of a few numbers, each of another unit
            for unit, start in zip(units, starts, strict=True):
                if start < used.item(unit):
                    return False
            for unit, end in zip(units, ends, strict=True):
                used[unit] = end
            return True
        if (starts < used[units]).any():
            return False
        import numpy as np  # noqa: PLC0415

        np.maximum.at(used, units, ends)
        return True


def _remember(key: Array, value: Array, shown: Any, units: Any, ends: Any) -> None:
    """Keep which slots of new buffers are shown or about to be written; in a rolling cache, the latter may come first."""
    import numpy as np  # noqa: PLC0415

    name, used = id(key), shown.copy()
    np.maximum.at(used, units, ends)

    def forget(_: Any) -> None:
        with _LOCK:
            if name in _KNOWN and _KNOWN[name].key() is None:
                del _KNOWN[name]

    with _LOCK:
        _KNOWN[name] = _Known(ref(key, forget), ref(value), used)
