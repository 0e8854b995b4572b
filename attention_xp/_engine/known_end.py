"""The keys that nobody may attend because they lie behind an end that Python knows: they are cut off, and never read."""

from array_api_compat import is_jax_namespace

from attention_xp._backend.libraries import device
from attention_xp._backend.values import on_host
from attention_xp._typing import Array, Namespace
from attention_xp.masks import LengthMask, Mask

__all__ = ["known_end", "up_to", "with_zeros"]


def known_end(xp: Namespace, rules: list[Mask], Sk: int) -> tuple[int, list[Mask]]:
    """Return how many keys can be attended, and the rules that decide about these.

    JAX keeps all keys: it would compile every size anew, and lengths that are values only once.
    """
    if is_jax_namespace(xp):
        return Sk, rules
    bounds = [_least_and_most(xp, rule, Sk) for rule in rules]
    end = Sk
    for _, most in bounds:  # torch, where it compiles, knows no `min` with a default
        end = min(end, most)
    return end, [rule for rule, (least, _) in zip(rules, bounds, strict=True) if least < end]


def _least_and_most(xp: Namespace, rule: Mask, Sk: int) -> tuple[int, int]:
    """Return how many of the first keys a rule allows at least, and behind which it allows none."""
    if type(rule) is not LengthMask:
        return -1, Sk
    lengths = rule.lengths
    if isinstance(lengths, int):
        return min(lengths, Sk), min(lengths, Sk)
    if not on_host(xp, lengths) or lengths.size == 0:
        return -1, Sk
    return tuple(int(min(max(bound, 0), Sk)) for bound in (lengths.min(), lengths.max()))  # type: ignore[return-value]


def up_to(end: int, Sk: int, array: Array, axis: int = -1) -> Array:
    """Return what an array holds for the keys before the end; along an axis of length 1 all keys are alike."""
    if end == Sk or array.ndim < -axis or array.shape[axis] == 1 != Sk:
        return array
    return array[(..., slice(end), *(slice(None),) * (-axis - 1))]


def with_zeros(xp: Namespace, array: Array, Sk: int, axis: int = -1) -> Array:
    """Return the weights, or gradients, of the keys before the end with zeros for all others."""
    missing = Sk - array.shape[axis]
    if missing == 0:
        return array
    shape = list(array.shape)
    shape[axis] = missing
    return xp.concat([array, xp.zeros(tuple(shape), dtype=array.dtype, device=device(array))], axis=axis)
