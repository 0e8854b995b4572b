"""The same call by others: the kernel of the array library, and the usual formula with all scores in memory."""

import sys
from functools import partial
from typing import Any

import numpy as np

from attention_xp._command.calls import Call
from attention_xp._command.places import Place, Side
from attention_xp._typing import Array, Namespace

__all__ = ["FORMULA", "additive", "by_formula", "has_kernel", "peer"]

FORMULA = "formula"


def by_formula(xp: Namespace, query: Array, key: Array, value: Array, mask: Array | None = None) -> tuple[Array, Array]:
    """Return output and weights as one writes them down; on NumPy arrays in float64 this is what all others should be."""
    scores = xp.matmul(query, xp.matrix_transpose(key)) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores + mask
    weights = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
    weights = weights / xp.sum(weights, axis=-1, keepdims=True)
    return xp.matmul(weights, value), weights


def has_kernel(place: Place) -> bool:
    """Whether the library brings attention of its own."""
    return place.backend in ("torch", "jax")


def peer(place: Place, call: Call, arrays: tuple[Array, ...]) -> tuple[str, Side]:
    """Return the kernel of the library, or the formula where it has none, with its name."""
    if place.backend == "torch":
        return "SDPA", _torch(place, call, arrays)
    if place.backend == "jax":
        return "jax.nn", _jax(place, call, arrays)
    mask = None if call.mask is None else place.array(additive(call))
    return FORMULA, place.side(lambda *a: by_formula(place.xp, *a)[0], *arrays, *([] if mask is None else [mask]))


def additive(call: Call) -> Array:
    """Return what the options exclude as an array that is added to the scores."""
    assert call.mask is not None
    return np.where(call.mask.to_array(call.queries, call.keys, call.query_offset or 0), 0.0, -np.inf)


def _torch(place: Place, call: Call, arrays: tuple[Array, ...]) -> Side:
    torch: Any = sys.modules["torch"]
    options: dict[str, Any] = {"is_causal": call.is_causal}
    if call.window is not None:
        assert call.mask is not None
        options = {"attn_mask": place.array(call.mask.to_array(call.queries, call.keys), "bool")}
    return place.side(partial(torch.nn.functional.scaled_dot_product_attention, **options), *arrays)


def _jax(place: Place, call: Call, arrays: tuple[Array, ...]) -> Side:
    """Return the function with arrays as it takes them, (B, S, H, D)."""
    jax: Any = sys.modules["jax"]
    window = None if call.window is None else tuple(call.keys if side is None else side for side in call.window)
    attend = partial(jax.nn.dot_product_attention, is_causal=call.is_causal, local_window_size=window)
    return place.side(attend, *(place.xp.permute_dims(x, (0, 2, 1, 3)) for x in arrays))
