"""Keys behind an end that is known on the host, such as an int `key_lengths`: they are cut off, and never read."""

from dataclasses import replace

from attention_xp._backend.dtypes import as_dtype
from attention_xp._backend.libraries import device, is_jax_namespace
from attention_xp._backend.values import on_host
from attention_xp._typing import Array, Namespace
from attention_xp.masks import LengthMask, Mask
from attention_xp.masks._call_rules import AlignedMask

__all__ = ["filled_to", "known_end", "up_to"]


def known_end(xp: Namespace, rules: list[Mask], Sk: int, offset: int) -> tuple[int, list[Mask]]:
    """Return how many keys, which begin at position `offset`, may be attended, and the rules that are left for these.

    JAX keeps all keys: it would compile a program for each size, and needs one for all lengths that are values.
    """
    if is_jax_namespace(xp):
        return Sk, rules
    bounds = [_least_and_most(xp, rule, Sk, offset) for rule in rules]
    end = Sk
    for _, most in bounds:  # torch, where it compiles, knows no `min` with a default
        end = min(end, most)
    return end, [_of_keys(end, Sk, rule) for rule, (least, _) in zip(rules, bounds, strict=True) if least < end]


def _of_keys(end: int, Sk: int, rule: Mask) -> Mask:
    """Return a rule for the keys before the end."""
    return replace(rule, array=up_to(end, Sk, rule.array)) if isinstance(rule, AlignedMask) else rule


def _least_and_most(xp: Namespace, rule: Mask, Sk: int, offset: int) -> tuple[int, int]:
    """Return two counts: so many of the first keys a rule allows in every row, and behind so many it allows none."""
    if type(rule) is not LengthMask:
        return -1, Sk
    lengths = rule.lengths
    if isinstance(lengths, int):
        return _within(lengths - offset, Sk), _within(lengths - offset, Sk)
    if not on_host(xp, lengths) or lengths.size == 0:
        return -1, Sk
    return _within(int(lengths.min()) - offset, Sk), _within(int(lengths.max()) - offset, Sk)


def _within(bound: int, Sk: int) -> int:
    return min(max(bound, 0), Sk)


def up_to(end: int, Sk: int, array: Array, axis: int = -1) -> Array:
    """Return the part of an array for the keys before the end; an axis of length 1 is broadcast over the keys."""
    is_broadcast = axis == -1 and (array.ndim == 0 or array.shape[-1] == 1)  # also where there is only one key
    if end == Sk or is_broadcast:
        return array
    return array[(..., slice(end), *(slice(None),) * (-axis - 1))]


def filled_to(xp: Namespace, array: Array, Sk: int, axis: int = -1, value: float = 0.0) -> Array:
    """Return scores, weights or gradients of the keys before the end, with one value for all others."""
    missing = Sk - array.shape[axis]
    if missing == 0:
        return array
    shape = list(array.shape)
    shape[axis] = missing
    whole = xp.concat([array, xp.full(tuple(shape), value, dtype=array.dtype, device=device(array))], axis=axis)
    return as_dtype(xp, whole, array.dtype)  # NumPy joins in the machine's byte order
