"""Layouts and results as flash-attn has them."""

import math
from typing import Any

from attention_xp._attention import scaled_dot_product_attention
from attention_xp._backend.libraries import common_namespace, device, is_tensor
from attention_xp._checks.arrays import shapes
from attention_xp._random.draws import seed_words
from attention_xp._typing import Array, Namespace

__all__ = [
    "THEIR_NAMES",
    "as_theirs",
    "known_draw",
    "signed_weights",
    "swapped",
    "taken_apart",
    "their_lse",
    "with_offset",
    "without_weights",
]

# Our names in errors, and theirs.
THEIR_NAMES = {
    "query": "q",
    "key": "k",
    "value": "v",
    "scale": "softmax_scale",
    "slopes": "alibi_slopes",
    "bias": "alibi_slopes",
    "window": "window_size",
    "dropout_rate": "dropout_p",
}

_RELATIVE = {"is_causal", "window", "bias"}


def swapped(xp: Namespace, array: Array) -> Array:
    """Exchange sequence and heads: (B, S, H, D) <-> (B, H, S, D)."""
    return xp.permute_dims(array, (0, 2, 1, 3))


def taken_apart(name: str, packed: Any, letters: str) -> list[Any]:
    """Return the arrays that lie side by side along the last axis but two, of which `letters` says how many there are."""
    common_namespace(**{name: packed})
    sizes = letters.strip("()").split(", ")
    if packed.ndim != len(sizes) or packed.shape[-3] != int(sizes[-3]):
        raise ValueError(f"{name} must hold {sizes[-3]} arrays: expected {name} {letters}, {shapes(**{name: packed})}")
    return [packed[..., i, :, :] for i in range(int(sizes[-3]))]


def as_theirs(array: Array) -> Array:
    """Return an array that lies in order, as what flash-attn returns does: torch's ``view`` depends on it."""
    return array.contiguous() if is_tensor(array) else array


def their_lse(xp: Namespace, lse: Array) -> Array:
    """Return the log-sum-exp with plus infinity in rows without keys."""
    return as_theirs(xp.where(lse == -math.inf, math.inf, lse))


def with_offset(how: dict[str, Any], offset: Any) -> dict[str, Any]:
    """Return options with where the first query stands, if anything asks for it."""
    return {**how, "query_offset": offset} if _RELATIVE & how.keys() else how


def known_draw(xp: Namespace, q: Array, how: dict[str, Any]) -> dict[str, Any]:
    """Return options that draw the same dropout in several calls: a generator is asked for a seed, once."""
    rng = how.get("rng")
    if "dropout_rate" not in how or isinstance(rng, int) or (rng is not None and hasattr(rng, "dtype")):
        return how
    low, high = (int(word) % 2**32 for word in seed_words(rng, q, xp=xp))
    return {**how, "rng": low + high * 2**32}


def without_weights(xp: Namespace, q: Array) -> Array:
    """Return what flash-attn gives in the place of weights where nothing is dropped."""
    return xp.zeros((0,), dtype=q.dtype, device=device(q))


def signed_weights(xp: Namespace, q: Array, k: Array, v: Array, how: dict[str, Any]) -> Array:
    """Return the weights of arrays (B, H, S, D) before dropout, those that are dropped with a minus: (B, H, Sq, Sk)."""
    how = {name: option for name, option in how.items() if name != "impl"}
    dropped = scaled_dot_product_attention(q, k, v, **how)[1]
    weights = scaled_dot_product_attention(q, k, v, **{**how, "dropout_rate": 0.0})[1]
    return xp.where(dropped == 0.0, -weights, weights)
