"""The yardstick: attention in a few lines, as everyone writes it."""

import math
from typing import Any

__all__ = ["usual_attention"]


def usual_attention(np: Any, query: Any, key: Any, value: Any, *, is_causal: bool = False) -> tuple[Any, Any]:
    """Return output and weights of scaled dot-product attention."""
    scores = np.matmul(query, np.swapaxes(key, -2, -1)) / math.sqrt(query.shape[-1])
    if is_causal:
        scores = np.where(np.tri(*scores.shape[-2:], dtype=bool), scores, -np.inf)
    scores = scores - np.max(scores, axis=-1, keepdims=True)
    exponentials = np.exp(scores)
    weights = exponentials / np.sum(exponentials, axis=-1, keepdims=True)
    return np.matmul(weights, value), weights
