"""Functions that modify scores, for any namespace."""

from collections.abc import Callable
from typing import Any

__all__ = ["causal_by_infinity", "distance_penalty"]


def distance_penalty(xp: Any) -> Callable[..., Any]:
    """Return a score_mod that uses every argument it is given."""

    def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        distance = xp.astype(q_idx - kv_idx + 2 * h - b, score.dtype)
        return 0.5 * score - 0.125 * xp.abs(distance)

    return score_mod


def causal_by_infinity(xp: Any) -> Callable[..., Any]:
    """Return a score_mod that excludes later keys with ``-inf``."""

    def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return xp.where(kv_idx <= q_idx, score, xp.full_like(score, float("-inf")))

    return score_mod
